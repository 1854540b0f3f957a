#!/bin/sh
# Send standard input as a request to the ipcsrv server at $1, print the response: sh client.sh PATH <request
# With ipcsrv installed, `ipcsrvc call PATH` does this. Here are head -c (POSIX.1-2024) and socat or OpenBSD's nc enough.
connect() { # sends the end of standard input as a half close, and then reads on
    if command -v socat >/dev/null; then socat -t 86400 - "UNIX-CONNECT:$1"; else nc -N -U "$1"; fi
}

encode() { # standard input as packets of at most 65516 bytes, then a flush
    part=$(mktemp) || exit
    while head -c 65516 >"$part" && [ -s "$part" ]; do
        printf %04x $(($(wc -c <"$part") + 4))
        cat "$part"
    done
    rm -f "$part"
    printf 0000
}

decode() { # the data of the packets up to the flush; what ends without one is an error
    part=$(mktemp) || exit
    status=1
    while size=$(head -c 4) && [ -n "$size" ]; do
        [ "$size" != 0000 ] || { status=0; break; }
        cat "$part" # the packet before this one: it was not the last
        head -c $((0x$size - 4)) >"$part"
    done
    if [ $status = 0 ]; then cat "$part"; else cat "$part" >&2; fi
    rm -f "$part"
    return $status
}

encode | connect "$1" | decode
