"""What a program calls to start, stop and run a server."""
