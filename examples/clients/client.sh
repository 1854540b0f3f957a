#!/bin/sh
# Send standard input as a request to the ipcsrv server at $1, print the response: sh client.sh PATH <request
# With ipcsrv installed, `ipcsrvc call PATH` does this. Here are head -c (POSIX.1-2024) and socat or OpenBSD's nc enough.
parts=$(mktemp -d) || exit
trap 'rm -rf "$parts"' EXIT
connect() { # sends the end of standard input as a half close, and then reads on
    if command -v socat >/dev/null; then socat -t 86400 - "UNIX-CONNECT:$1"; else nc -N -U "$1"; fi
}
encode() { # standard input as packets of at most 65516 bytes, then a flush
    while head -c 65516 >"$parts/out" && [ -s "$parts/out" ]; do
        printf %04x $(($(wc -c <"$parts/out") + 4)) && cat "$parts/out"
    done
    printf 0000
}
decode() { # the data of packets up to the flush; without one, the last packet says why it failed
    : >"$parts/in"
    while size=$(head -c 4) && [ -n "$size" ]; do
        cat "$parts/in" # another packet or the flush has come: the one before was no reason
        [ "$size" != 0000 ] || return 0
        head -c $((0x$size - 4)) >"$parts/in"
    done
    cat "$parts/in" >&2
    return 1
}

encode | connect "$1" | decode
