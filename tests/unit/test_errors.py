"""The error tree: types, attributes, exit codes, one-line texts, and pickling."""

from __future__ import annotations

import copy
import json
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
    (errors.StartTimeout(3.0, "/tmp/log", goes_on=True), {"timeout": 3.0, "log_path": "/tmp/log"}, 4),
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
def test_error_has_its_attributes_and_exit_code(error, attributes, exit_code):
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert error.exit_code == exit_code


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", [case[0] for case in CASES], ids=name_of)
def test_error_survives_pickle(error, protocol):
    error.add_note("seen in the server")
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert again.__dict__ == error.__dict__
    assert str(again) == str(error)
    assert again.args == error.args
    del error.__notes__


@pytest.mark.parametrize("error", [case[0] for case in CASES], ids=name_of)
def test_error_survives_json_with_its_text(error):
    again = errors.from_fields(json.loads(json.dumps(errors.to_fields(error), default=str)))
    assert (type(again), str(again)) == (type(error), str(error))


@pytest.mark.parametrize("fields", [{}, {"kind": "os", "args": ["x"]}, {"kind": "IpcError", "args": 5}])
def test_fields_of_another_version_are_a_start_error(fields):
    assert type(errors.from_fields(fields)) is errors.StartError


@pytest.mark.parametrize("error", [case[0] for case in CASES], ids=name_of)
def test_text_is_one_line_and_names_the_path(error):
    assert str(error).isprintable()
    assert str(error)
    assert error.path is None or error.path in str(error)


def test_every_error_is_in_the_cases_and_the_printed_tree():
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
def test_error_has_a_base_that_callers_catch(error, base):
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
def test_error_without_details_has_a_text(make):
    error = make()
    assert len(str(error)) > 5
    assert "None" not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_foreign_text_cannot_break_the_line():
    error = errors.from_reply("handler", "ValueError: a\nb\x1b[31m \udcff é", "/tmp/\tx")
    assert str(error).isprintable()
    assert "a b" in str(error)
    assert "\\x1b" in str(error)
    assert "é" in str(error)


@pytest.mark.parametrize("progress", [Progress.NOTHING_SENT, Progress.REQUEST_SENT, Progress.RESPONSE_BEGUN])
def test_progress_has_one_object_per_value(progress):
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
def test_failure_reply_becomes_its_error(code, cls):
    error = errors.from_reply(code, "text", PATH)
    assert type(error) is cls
    assert (error.code, error.message, error.path) == (code, "text", PATH)


def test_client_modules_import_nothing_else():
    script = (
        "import sys, time; before = set(sys.modules)\n"
        "import ipcsrv.errors, ipcsrv.deadline, ipcsrv.peer, ipcsrv.protocol.pktline, ipcsrv.protocol.exchange\n"
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('ipcsrv')))"
    )
    result = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['__future__']"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.NotListening(PATH), "no server at {}: nothing listens on the socket; start one with `ipcsrv start`"),
        (errors.PathNotFound(PATH), "no server at {}: the socket does not exist; start one with `ipcsrv start`"),
        (errors.ConnectionLost(PATH, Progress.REQUEST_SENT),
         "{}: connection closed before the response was complete; the request may have been executed"),
        (errors.HandlerError("ValueError: x", PATH),
         "{}: handler raised ValueError: x; the traceback is in the server's log (`ipcsrv logs`)"),
        (errors.from_reply("handler", "ValueError \n", PATH),
         "{}: handler raised ValueError; the traceback is in the server's log (`ipcsrv logs`)"),
        (errors.HandlerTimeout("the request was not complete within read_timeout", PATH),
         "{}: timed out: the request was not complete within read_timeout; see the server's log (`ipcsrv logs`)"),
        (errors.HandlerCrashed("killed by SIGSEGV", PATH),
         "{}: the handler's process died: killed by SIGSEGV; the request may have been executed"),
        (errors.ServerError("control", "the server is stopping", PATH), "{}: the server is stopping"),
        (errors.InvalidPath(PATH, "it is a folder; name a file in it"), "{}: it is a folder; name a file in it"),
        (errors.InvalidPath(PATH, "it is not a socket"), "{}: it is not a socket; choose another path"),
    ],
)  # fmt: skip
def test_text_says_what_failed_why_and_what_to_do(error, text):
    assert str(error) == text.format(PATH)


def test_import_error_names_the_last_frames():
    traceback_text = """Traceback (most recent call last):
  File "<frozen importlib._bootstrap>", line 1, in load
  File "/app/words.py", line 3, in <module>
    import lib
  File "/app/lib.py", line 7, in <module>
    undefined
NameError: name 'undefined' is not defined
"""
    error = errors.HandlerImportError("words:count", traceback_text)
    assert str(error) == ("cannot load handler words:count: NameError: name 'undefined' is not defined; "
                          "see /app/lib.py:7 and /app/words.py:3")  # fmt: skip
    assert error.__notes__ == [traceback_text.rstrip()]
    again = errors.HandlerImportError("other:name", traceback_text, str(error))  # as another process reported it
    assert str(again) == str(error)
