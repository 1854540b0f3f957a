from collections.abc import Callable
from typing import Any

from ..platform.server import AcceptedConnection, QueueReader

class CompiledPath:
    size: int
    next_check: int
    hung_up: bool
    connection: AcceptedConnection | None
    number: int
    waited: int
    message: tuple[bytes, int | None, int | None] | None
    def __init__(
        self,
        words: memoryview[int],
        layout: tuple[int, ...],
        handler: Callable[..., Any],
        request_type: type[bytes],
        most_in: int,
        most_out: int,
        timeout: float | None,
        tell_busy: Callable[[], object],
        on_answered: Callable[[int, int, int], object] | None,
        adopt: Callable[[int], AcceptedConnection],
        long_wait_ns: int,
        turns: int,
        span_ns: int,
    ) -> None: ...
    def take(self, queue: QueueReader, patience: int, ring: bool) -> int: ...
    def run(self, connection: AcceptedConnection, number: int, waited: int, patience: int, asked: bool) -> int: ...
    def rest(self) -> tuple[Any, Any, Any, Any]: ...
