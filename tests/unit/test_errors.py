"""The error tree: types, attributes, exit codes, one-line texts, and pickling."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest

from ipcsrv import errors
from ipcsrv.errors import Progress
from ipcsrv.peer import Peer

PATH = "/run/x.sock"

# error, its attributes, exit code
CASES = [
    (errors.IpcError(f"{PATH}: it broke", PATH), {"path": PATH}, 1),
    (errors.NotListening(PATH), {"path": PATH}, 3),
    (errors.PathNotFound(PATH), {"path": PATH}, 3),
    (errors.InvalidPath(PATH, "is a folder"), {"path": PATH, "reason": "is a folder"}, 7),
    (errors.AddressInUse(PATH, 12, "ipcsrv run"), {"path": PATH, "pid": 12, "command": "ipcsrv run"}, 6),
    (errors.Untrusted(PATH, Peer(1, 2, 3), 7), {"path": PATH, "peer": Peer(1, 2, 3), "expected": 7}, 5),
    (
        errors.CallTimeout(PATH, 1.5, Progress.REQUEST_SENT),
        {"path": PATH, "timeout": 1.5, "progress": Progress.REQUEST_SENT},
        4,
    ),
    (errors.ConnectionLost(PATH, Progress.RESPONSE_BEGUN), {"path": PATH, "progress": Progress.RESPONSE_BEGUN}, 3),
    (errors.ProtocolError("bad header", PATH), {"path": PATH, "reason": "bad header"}, 1),
    (errors.LocalProtocolError("twice"), {"path": None, "reason": "twice"}, 1),
    (
        errors.SettingsError("no such setting", name="wrkers", source="ipcsrv.toml", line=3, suggestion="workers"),
        {"path": None, "name": "wrkers", "source": "ipcsrv.toml", "line": 3, "suggestion": "workers"},
        2,
    ),
    (
        errors.HandlerImportError("m:f", "Traceback:\n  ...\nImportError: no m\n"),
        {"target": "m:f", "traceback_text": "Traceback:\n  ...\nImportError: no m\n", "reason": "ImportError: no m"},
        2,
    ),
    (
        errors.StartError("workers die", "/tmp/log", "ValueError: x"),
        {"reason": "workers die", "log_path": "/tmp/log", "traceback_text": "ValueError: x"},
        1,
    ),
    (errors.SocketStolen(PATH), {"path": PATH}, 8),
    (errors.ServerError("odd", "text", PATH), {"code": "odd", "message": "text", "path": PATH}, 1),
    (errors.HandlerError("ValueError: x", PATH), {"code": "handler", "message": "ValueError: x", "path": PATH}, 1),
    (errors.HandlerTimeout("after 5 s", PATH), {"code": "timeout", "message": "after 5 s", "path": PATH}, 1),
    (errors.HandlerCrashed("SIGSEGV", PATH), {"code": "crashed", "message": "SIGSEGV", "path": PATH}, 1),
    (errors.TooLarge("more than 5", PATH), {"code": "too-large", "message": "more than 5", "path": PATH}, 1),
    (errors.Malformed("bad", PATH), {"code": "malformed", "message": "bad", "reason": "bad", "path": PATH}, 1),
    (errors.Denied("user 5", PATH), {"code": "denied", "message": "user 5", "path": PATH}, 5),
    (errors.ServerBusy("full", PATH), {"code": "busy", "message": "full", "path": PATH}, 1),
    (errors.ServerStopping("stop", PATH), {"code": "stopping", "message": "stop", "path": PATH}, 1),
]


def name_of(value):
    return type(value).__name__ if isinstance(value, Exception) else None


@pytest.mark.parametrize(("error", "attributes", "exit_code"), CASES, ids=name_of)
def test_each_error_has_its_attributes_and_exit_code(error, attributes, exit_code):
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert error.exit_code == exit_code


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", [case[0] for case in CASES], ids=name_of)
def test_each_error_survives_pickle_with_everything(error, protocol):
    error.add_note("seen in the server")
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert again.__dict__ == error.__dict__
    assert str(again) == str(error)
    assert again.args == error.args
    del error.__notes__


@pytest.mark.parametrize("error", [case[0] for case in CASES], ids=name_of)
def test_each_text_is_one_line_and_names_the_path(error):
    assert str(error).isprintable()
    assert str(error)
    assert error.path is None or error.path in str(error)


def test_every_error_of_the_module_is_in_the_cases_and_in_the_printed_tree():
    defined = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.IpcError)}
    assert {type(case[0]) for case in CASES} == defined
    for cls in defined:
        assert f" {cls.__name__} " in errors.__doc__


@pytest.mark.parametrize(
    ("error", "base"),
    [
        (errors.CallTimeout, TimeoutError),
        (errors.ConnectionLost, ConnectionError),
        (errors.SettingsError, ValueError),
        (errors.PathNotFound, errors.NotListening),
        (errors.HandlerTimeout, errors.HandlerError),
        (errors.HandlerCrashed, errors.HandlerError),
        (errors.Malformed, errors.ProtocolError),
        (errors.Malformed, errors.ServerError),
        (errors.LocalProtocolError, errors.ProtocolError),
    ],
)
def test_an_error_is_also_what_callers_already_catch(error, base):
    assert issubclass(error, base)


@pytest.mark.parametrize(
    "make",
    [
        errors.IpcError,
        errors.NotListening,
        errors.PathNotFound,
        errors.InvalidPath,
        errors.AddressInUse,
        errors.Untrusted,
        errors.CallTimeout,
        errors.ConnectionLost,
        errors.SocketStolen,
        lambda: errors.HandlerImportError("m:f"),
        lambda: errors.HandlerImportError("m:f", "  \n", reason="is not callable"),
        lambda: errors.StartError("why"),
        lambda: errors.SettingsError("must be positive", name="workers", source="IPCSRV_WORKERS"),
    ],
)
def test_an_error_of_which_little_is_known_still_says_something(make):
    error = make()
    assert len(str(error)) > 5
    assert "None" not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_a_path_or_a_server_says_cannot_break_the_line_or_the_terminal():
    error = errors.from_reply("handler", "ValueError: a\nb\x1b[31m \udcff é", "/tmp/\tx")
    assert str(error).isprintable()
    assert "a b" in str(error)
    assert "\\x1b" in str(error)
    assert "é" in str(error)


@pytest.mark.parametrize("progress", [Progress.NOTHING_SENT, Progress.REQUEST_SENT, Progress.RESPONSE_BEGUN])
def test_progress_is_one_object_a_value(progress):
    assert Progress(str(progress)) is progress
    assert pickle.loads(pickle.dumps(progress)) is progress
    assert copy.deepcopy(progress) is progress
    assert progress == str(progress)


def test_progress_has_no_other_values():
    with pytest.raises(KeyError):
        Progress("perhaps")


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        ("handler", errors.HandlerError),
        ("timeout", errors.HandlerTimeout),
        ("crashed", errors.HandlerCrashed),
        ("too-large", errors.TooLarge),
        ("malformed", errors.Malformed),
        ("denied", errors.Denied),
        ("busy", errors.ServerBusy),
        ("stopping", errors.ServerStopping),
        ("of-the-future", errors.ServerError),
        ("", errors.ServerError),
    ],
)
def test_a_failure_reply_becomes_the_error_of_its_code(code, cls):
    error = errors.from_reply(code, "text", PATH)
    assert type(error) is cls
    assert (error.code, error.message, error.path) == (code, "text", PATH)


def test_what_the_client_needs_imports_nothing_beyond_itself():
    script = (
        "import sys, time; before = set(sys.modules)\n"
        "import ipcsrv.errors, ipcsrv.deadline, ipcsrv.peer, ipcsrv.protocol.pktline, ipcsrv.protocol.exchange\n"
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('ipcsrv')))"
    )
    result = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['__future__']"
