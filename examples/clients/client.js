// Send standard input as a request to the ipcsrv server at PATH, print the response: node client.js PATH <request
"use strict";
const fs = require("fs");
const net = require("net");

const LARGEST = 65516; // bytes of data in a packet

function* packets(request) {
  for (let at = 0; at < request.length; at += LARGEST) {
    const data = request.subarray(at, at + LARGEST);
    yield Buffer.from((data.length + 4).toString(16).padStart(4, "0"));
    yield data;
  }
  yield Buffer.from("0000"); // flush: the end of the request
}

function call(path, request, done) {
  const server = net.connect(path, () => server.write(Buffer.concat([...packets(request)])));
  let waiting = Buffer.alloc(0);
  const parts = [];
  server.on("data", (chunk) => {
    waiting = Buffer.concat([waiting, chunk]);
    for (let size; waiting.length >= 4; waiting = waiting.subarray(size)) {
      size = parseInt(waiting.toString("latin1", 0, 4), 16);
      if (size === 0) return server.destroy(done(null, Buffer.concat(parts)));
      if (waiting.length < size) return;
      parts.push(waiting.subarray(4, size));
    }
  });
  server.on("end", () => done(new Error((parts.at(-1) || "the connection was closed").toString())));
  server.on("error", done);
}

call(process.argv[2], fs.readFileSync(0), (error, response) => {
  if (error) console.error(`client: ${error.message}`);
  else process.stdout.write(response);
  process.exitCode = error ? 1 : 0;
});
