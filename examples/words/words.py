"""A handler: the three commonest words of a text, as JSON. Serve it with `ipcsrv run ./words.sock words:count`."""

import collections
import json


def count(request: bytes) -> bytes:
    """The three commonest words of the request."""
    words = collections.Counter(request.decode().split())
    return json.dumps(words.most_common(3)).encode()
