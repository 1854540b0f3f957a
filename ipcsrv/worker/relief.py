"""The handler, where the master's word is heard by another thread than the handler's.  In the worker.

On most systems a signal brings it, whose handler runs in the worker's one thread: in the middle of the handler, so that
what waits behind a long request can be given to other workers.  Where there are no signals a thread hears it, and must
touch nothing that the worker's own thread may have in its hands: so that one holds a lock, but while it is in the
handler.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ..config.handlers import Handler
from .exchange import close_iterator

if TYPE_CHECKING:
    from threading import Lock

_END: Final = object()


def relievable(handler: Handler, gate: Lock | None) -> Handler:
    """`handler`, with `gate`, which the caller has, released while it runs, and while it makes the next chunk."""
    if gate is None:
        return handler

    def handled(request: Any) -> Any:
        gate.release()
        try:
            response = handler(request)
        finally:
            gate.acquire()
        return _chunks(response, gate) if isinstance(response, Iterator) else response

    return handled


def _chunks(chunks: Iterator[Any], gate: Lock) -> Iterator[Any]:
    try:
        while True:
            gate.release()
            try:
                chunk = next(chunks, _END)
            finally:
                gate.acquire()
            if chunk is _END:
                return
            yield chunk
    finally:
        close_iterator(chunks)
