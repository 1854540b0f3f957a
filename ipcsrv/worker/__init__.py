"""The worker process and its template: take a connection, run the handler, answer."""
