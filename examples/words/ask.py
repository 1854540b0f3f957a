"""A client of a server that runs: `python ask.py ./words.sock "to be or not to be"`."""

import sys

import ipcsrv

print(ipcsrv.call(sys.argv[1], sys.argv[2].encode(), timeout=10).decode())
