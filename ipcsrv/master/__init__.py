"""The master process: hold the path, accept, pass connections to workers, supervise."""
