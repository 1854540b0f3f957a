"""asyncio's own streams: one process, one loop. `python -m benchmarks.servers.asyncio_streams PATH`."""

from __future__ import annotations

import asyncio
import sys


async def serve_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        for _ in range(data.count(b"0000")):
            writer.write(b"0008pong0000")
        await writer.drain()
    writer.close()


async def main(path: str) -> None:
    server = await asyncio.start_unix_server(serve_client, path, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
