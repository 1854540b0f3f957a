"""A handler whose module takes half a second to import: a server is seen while it starts."""

import time

time.sleep(0.5)


def handle(request: bytes) -> bytes:
    """The request itself."""
    return request
