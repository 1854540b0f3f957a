"""The handler of the mixture: it echoes, streams, forks, fails, hangs and dies, as the request says."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

if os.environ.get("IMPORT_HANGS"):
    time.sleep(600)  # for ever


def answer(request: bytes) -> bytes | Iterator[bytes]:
    """`stream N`, `fork N` (seconds of the child), `fail`, `hang`, `die`; everything else is echoed."""
    word, _, rest = request[:20].partition(b" ")
    if word == b"stream":
        return (b"%06d" % number for number in range(int(rest)))
    if word == b"fork":
        if not os.fork():
            time.sleep(float(rest))  # the child lives for so long
            os._exit(0)
        return b"forked"
    if word == b"fail":
        raise ValueError("on purpose")
    if word == b"hang":
        time.sleep(600)  # for ever
    if word == b"die":
        os._exit(3)
    return bytes(request)
