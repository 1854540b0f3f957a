// Send standard input as a request to the ipcsrv server at PATH, print the response: go run client.go PATH <request
package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"os"
)

const largest = 65516 // bytes of data in a packet

func main() {
	server, err := net.Dial("unix", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	out, in, data := bufio.NewWriter(server), bufio.NewReader(server), make([]byte, largest)
	for n, _ := io.ReadFull(os.Stdin, data); n > 0; n, _ = io.ReadFull(os.Stdin, data) {
		fmt.Fprintf(out, "%04x%s", n+4, data[:n])
	}
	fmt.Fprint(out, "0000") // flush: the end of the request
	out.Flush()
	held, size := []byte{}, 0 // the last packet: with no flush behind it, it is "ERR ..."
	for header := make([]byte, 4); ; io.ReadFull(in, held) {
		if _, err := io.ReadFull(in, header); err != nil {
			log.Fatal(string(held))
		}
		os.Stdout.Write(held)
		if fmt.Sscanf(string(header), "%x", &size); size < 4 {
			return
		}
		held = make([]byte, size-4)
	}
}
