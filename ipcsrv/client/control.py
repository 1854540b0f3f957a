"""The client's half of the control socket (docs/control.md).

The wire is the server's own protocol with one JSON object each way, so this is a call like any other, under the same
mutual trust.  The other half is `control_server`, in the master.
"""

from __future__ import annotations

import json
from typing import Any

from ..errors import IpcError, NotListening, ProtocolError, ServerError
from ..platform import client as platform
from . import sync as client

SUFFIX = ".control"


def request(path: str, command: str, *, timeout: float | None = 5.0, **arguments: Any) -> dict[str, Any]:
    """Have the server at `path` carry out a command and return its answer.

    timeout: in seconds, None for no limit.  Raises `NotListening`, `CallTimeout`, `Untrusted`, `ConnectionLost`, and
    `ServerError` where the server says why it did not do it.
    """
    question = json.dumps({"command": command, **arguments}).encode()
    try:
        return answer_of(client.call(path + SUFFIX, question, timeout=timeout, wait_if_busy=False), path)
    except NotListening:
        reason = "the server has no control socket: it was started with --no-control, or its log says why"
        raise fault_of(path) or ServerError("control", reason, path) from None


def fault_of(path: str) -> IpcError | None:
    """Return what a client is told that connects to the path itself; None where a server listens there all the same."""
    try:
        platform.attempt(path).close()
    except IpcError as error:
        return error
    except OSError:
        pass  # its queue is full
    return None


def answer_of(data: bytes, path: str) -> dict[str, Any]:
    """The answer in `data`, if it is a good one; else the error that it stands for."""
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ProtocolError("the control socket did not answer with a JSON object", path)
    if not answer.get("ok"):
        raise ServerError("control", str(answer.get("error")), path)
    return answer
