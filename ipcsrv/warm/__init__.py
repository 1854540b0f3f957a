"""Command-line programs served warm: `ipcsrv warm PROGRAM` (docs/warm.md).

Client side: `program` finds the program and its server's path, `stamps` checks that the server is up to date, `client`
passes a run to it, `starting` runs cold and starts servers, `management` lists, stops and installs.
Server side, in the program's own interpreter: `bootstrap` starts it, `template` imports the program, `worker` is the
handler, and `run` turns a forked process into the program.
"""
