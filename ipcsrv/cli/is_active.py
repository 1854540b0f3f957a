"""`is-active`: whether a server listens, by one connection attempt; nothing is sent."""

from __future__ import annotations

from ..client import sync as client
from ..errors import IpcError, NotListening
from ..platform import client as platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from ._light import Arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `is-active` takes; `_light` must take the same."""
    from ._parser import add_path

    add_path(parser)
    parser.epilog = "Silent if a server listens; `ipcsrv ping` also checks that the server answers."


def run(arguments: Arguments | argparse.Namespace) -> int:
    """Return 0 if a server listens; otherwise raise an error that says what is there."""
    try:
        platform.attempt(arguments.path).close()
    except IpcError:
        raise
    except OSError:  # a full queue, or worse: only a probe, which takes time, can tell
        state = client.active_state(arguments.path).name
        if state == "NOT_LISTENING":
            raise NotListening(arguments.path) from None
        if state != "LISTENING":
            raise
    return 0
