"""`ping`: a health check. The master answers, or with --worker a worker; the handler is not called."""

from __future__ import annotations

from time import monotonic

from ..client import control

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from ._light import Arguments

_TIMEOUT = 5.0  # seconds; a healthy master answers within 50 ms


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `ping` takes; `_light` must take the same."""
    from ._parser import add_path, add_timeout

    add_path(parser)
    parser.add_argument("--worker", action="store_true", help="require an answer from a worker, not only the master")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the answer and the time that it took")
    add_timeout(parser, "give up after this time (default: 5s)")
    parser.epilog = ("Silent if the server answers. Exit codes: 0 healthy, 1 the server reported a failure, "
                     "3 no server, 4 no answer in time.")  # fmt: skip


def run(arguments: Arguments | argparse.Namespace) -> int:
    """Ask the control socket; returns 0, or raises an error."""
    timeout = _TIMEOUT if arguments.timeout is None else arguments.timeout
    more: dict[str, Any] = {"worker": True} if arguments.worker else {}
    begun = monotonic()
    answer = control.request(arguments.path, "ping", timeout=timeout, **more)
    milliseconds = (monotonic() - begun) * 1000
    if arguments.worker and "worker" not in answer:
        from .messages import complain

        complain(f"{arguments.path}: only the master answered, the server is older than this command; restart it")
    if arguments.verbose:
        source = "a worker" if "worker" in answer else "the master"
        print(f"{arguments.path}: answer from {source} in {milliseconds:.2f} ms")
    return 0
