from collections.abc import Callable
from typing import Any

from ..platform.server import Connection, Listener

class CompiledPath:
    size: int
    next_check: int
    unsecured: int
    connection: Connection
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
        secure: Callable[[], object],
        on_answered: Callable[[int, int, int], object] | None,
        adopt: Callable[[int], Connection],
        slow_ns: int,
        slow_memory: int,
        span_ns: int,
    ) -> None: ...
    learns: bool
    def receive(self, listener: Listener) -> int: ...
    def welcome(self, listener: Listener, others: object) -> int: ...
    def know(self, uid: int, gid: int) -> None: ...
    def run(
        self,
        connection: Connection,
        descriptor: int,
        flags: int,
        turns: int,
        waited: int,
        number: int,
        others: object,
    ) -> int: ...
    def rest(self) -> tuple[Any, Any, Any, Any]: ...

def has_said(descriptor: int) -> bool | None: ...
