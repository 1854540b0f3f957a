"""The public face: every promised name is there, and using the client costs the client's imports and no more."""

from __future__ import annotations

import pickle

import pytest
from support import run_python

import ipcsrv
from ipcsrv import errors

# fmt: off
PROMISED = [
    "serve", "Server", "call", "connect", "active_state", "State", "ensure_running", "default_path", "Pool", "aio",
    "Request", "Peer", "QUIT", "IpcError", "NotListening", "PathNotFound", "InvalidPath", "AddressInUse", "Untrusted",
    "Denied", "CallTimeout", "ConnectionLost", "ProtocolError", "TooLarge", "HandlerError", "ServerStopping",
]
# fmt: on
HEAVY = {
    "logging",
    "multiprocessing",
    "asyncio",
    "argparse",
    "filelock",
    "dataclasses",
    "socket",
    "enum",
    "typing",
    "contextlib",
    "re",
    "selectors",
    "threading",
    "hashlib",
    "subprocess",
    "json",
}  # fmt: skip
IMPORTED = "import sys; print(*sys.modules)"


def imported_by(source: str) -> set[str]:
    """The modules that a program imports beyond those of an empty one."""
    empty = set(run_python(f"import os; {IMPORTED}", options=("-S", "-E")).split())
    start = "import os, sys; sys.path[:0] = os.environ['PYTHONPATH'].split(os.pathsep)\n"
    return set(run_python(f"{start}{source}\n{IMPORTED}", options=("-S", "-E")).split()) - empty


@pytest.mark.parametrize("name", PROMISED)
def test_every_promised_name_is_public(name: str) -> None:
    assert name in ipcsrv.__all__
    assert getattr(ipcsrv, name) is not None


def test_every_public_name_can_be_had_and_is_listed() -> None:
    for name in ipcsrv.__all__:
        assert getattr(ipcsrv, name) is not None
    assert set(ipcsrv.__all__) <= set(dir(ipcsrv))
    assert len(set(ipcsrv.__all__)) == len(ipcsrv.__all__)


def test_every_error_of_the_tree_is_public() -> None:
    tree = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.IpcError)}
    assert tree <= set(ipcsrv.__all__)


def test_a_star_import_brings_what_is_public() -> None:
    assert run_python("from ipcsrv import *; print(call.__name__, State.LISTENING.name)") == "call LISTENING\n"


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'serv'"):
        ipcsrv.serv  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(ipcsrv, "__path_to_nowhere__")


def test_the_version_is_told() -> None:
    assert ipcsrv.__version__ == "0.1.0"


def test_a_state_survives_pickle_and_is_itself() -> None:
    assert pickle.loads(pickle.dumps(ipcsrv.State.LISTENING)) is ipcsrv.State.LISTENING


def test_importing_the_package_imports_nothing_but_itself() -> None:
    assert imported_by("import ipcsrv") <= {"ipcsrv", "ipcsrv._version", "__future__"}


def test_importing_what_calls_imports_nothing_heavy() -> None:
    assert not imported_by("import ipcsrv; ipcsrv.call") & HEAVY


def test_a_whole_call_imports_nothing_heavy(sock_path: str) -> None:
    from fake_server import echo, serving

    with serving(sock_path, echo):
        short = f"assert ipcsrv.call({sock_path!r}, b'x', timeout=5) == b'x'"
        long = f"assert ipcsrv.call({sock_path!r}, b'x' * 300000) == b'x' * 300000"
        assert not imported_by(f"import ipcsrv; {short}; {long}") & HEAVY


def test_the_client_does_not_load_the_server() -> None:
    loaded = imported_by(
        "import ipcsrv; ipcsrv.call, ipcsrv.Pool, ipcsrv.active_state, ipcsrv.default_path, ipcsrv.aio"
    )
    server_side = {"master", "worker", "server", "handlers", "settings", "spawner", "control", "request"}
    assert not loaded & {f"ipcsrv.{name}" for name in server_side}
    assert "ipcsrv.platform.server" not in loaded
