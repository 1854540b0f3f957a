"""The client side: connections and calls, for threads and for asyncio, and where a server's socket is."""
