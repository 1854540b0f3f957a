"""A handler for a test: whatever the token is, nothing has changed."""


def handle(request: bytes) -> bytes:
    """Return the token alone."""
    return request + b"\0"
