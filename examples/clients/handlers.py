"""Handlers for the tests."""


def echo(request: bytes) -> bytes:
    """Return the request; one that begins with "fail" is refused."""
    if request.startswith(b"fail"):
        raise ValueError("asked to fail")
    return request
