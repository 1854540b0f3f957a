"""A client that starts its server unless it runs: `python autostart.py "to be or not to be"`.

However many of these run at once, one server is started. It stops by itself after ten minutes without a client.
"""

import sys

import ipcsrv

path = ipcsrv.default_path("words")
ipcsrv.ensure_running(path, "words:count", idle_exit=600)
print(ipcsrv.call(path, sys.argv[1].encode(), timeout=10).decode())
