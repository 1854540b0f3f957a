from collections.abc import Callable
from typing import Any

from ..platform.server import AcceptedConnection

class CompiledPath:
    size: int
    next_check: int
    hung_up: bool
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
        long_wait_ns: int,
        turns: int,
        span_ns: int,
    ) -> None: ...
    def run(self, connection: AcceptedConnection, number: int, waited: int, patience: int, asked: bool) -> int: ...
    def rest(self) -> tuple[Any, Any, Any, Any]: ...
