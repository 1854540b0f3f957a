"""The pytest plugin, in test sessions of its own."""

from __future__ import annotations

import os
from pathlib import Path

import page_runner
import pytest
import support

HANDLERS = """
import os, time

def upper(request):
    return bytes(request).upper()

def fail(request):
    raise ValueError("no " + bytes(request).decode())

def crash(request):
    os._exit(9)

def leave_a_process(request):
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)
"""
LONGEST_ON_MACOS = 103  # bytes


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with handlers, in which tests find the plugin, and warnings are errors."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(support.ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytester.makeini("[pytest]\naddopts = -p ipcsrv.pytest_plugin -p no:cacheprovider\nfilterwarnings = error\n")
    pytester.makepyfile(handlers=HANDLERS)
    pytester.syspathinsert()
    return pytester


def run(session: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    """Run the tests of `source` in a process of their own."""
    session.makepyfile(test_it=f"import os\nimport ipcsrv, pytest\nimport handlers\n{source}")
    return session.runpytest_subprocess(*options, timeout=50)


def test_servers_serve_and_leave_nothing(session: pytest.Pytester) -> None:
    result = run(session, f"""
def test_server(ipcsrv_server, ipcsrv_path):
    assert len(os.fsencode(ipcsrv_path + ".ipcsrv.lock")) <= {LONGEST_ON_MACOS}
    assert os.listdir(os.path.dirname(ipcsrv_path)) == []
    first = ipcsrv_server(handlers.upper, workers=2)
    second = ipcsrv_server("zlib:compress", workers=1)
    assert first.path == ipcsrv_path != second.path
    assert first.call(b"a") == b"A"
    assert second.call(b"a") != b"a"
    assert first.status()["workers_wanted"] == 2
    first.reload()
    with first.connect() as connection:
        assert connection.call(b"b") == b"B"
    assert "reloading" in first.log
    first.stop()
    assert ipcsrv.active_state(first.path) is not ipcsrv.State.LISTENING
""")
    result.assert_outcomes(passed=1)


def test_inline_handler_shares_the_test_process(session: pytest.Pytester) -> None:
    result = run(session, """
def test_closure(ipcsrv_server, monkeypatch):
    seen = []

    def handle(request):
        seen.append(bytes(request))
        return f"{os.getpid()} {os.environ['WORD']}".encode()

    server = ipcsrv_server(handle, inline=True)
    monkeypatch.setenv("WORD", "patched")
    assert server.call(b"a") == b"%d patched" % os.getpid()
    assert seen == [b"a"]

def test_several(ipcsrv_server):
    servers = [ipcsrv_server(lambda request, n=n: b"%d" % n, inline=True) for n in range(3)]
    assert [server.call() for server in servers] == [b"0", b"1", b"2"]

def test_is_gone():
    import threading
    assert threading.active_count() == 1

def test_start_fails(ipcsrv_server):
    with pytest.raises(ipcsrv.HandlerImportError):
        ipcsrv_server("no_such_module:handle", inline=True)

def test_settings_that_do_not_fit(ipcsrv_server):
    with pytest.raises(ValueError, match="excludes workers"):
        ipcsrv_server(handlers.upper, inline=True, workers=2)

def test_raises(ipcsrv_server):
    with pytest.raises(ipcsrv.HandlerError):
        ipcsrv_server(handlers.fail, inline=True).call(b"a")
""")
    result.assert_outcomes(passed=6, errors=1)
    result.stdout.fnmatch_lines(["*the handler raised:*", "*ValueError: no a"])


def test_server_at_the_path_of_another_is_refused(session: pytest.Pytester) -> None:
    result = run(session, """
@pytest.mark.parametrize("inline", [False, True])
def test_path(ipcsrv_server, ipcsrv_path, inline):
    first = ipcsrv_server(handlers.fail, path=ipcsrv_path, inline=inline)
    for second_inline in (False, True):
        with pytest.raises(ipcsrv.AddressInUse):
            ipcsrv_server(handlers.fail, path=ipcsrv_path, inline=second_inline)
    assert first.status()["handler"] == "handlers:fail"
""")
    result.assert_outcomes(passed=2)


def test_inline_servers_leave_no_descriptor_open(session: pytest.Pytester) -> None:
    result = run(session, """
import gc

def test_descriptors(ipcsrv_server):
    counts = []
    for n in range(4):
        server = ipcsrv_server(lambda request: bytes(request), inline=True)
        assert server.call(b"a") == b"a"
        server.stop()
        del server
        gc.collect()
        counts.append(len(os.listdir("/dev/fd")))
    assert len(set(counts[1:])) == 1, counts
""")
    result.assert_outcomes(passed=1)


def test_forked_child_ends_in_each_inline_server(session: pytest.Pytester) -> None:
    result = run(session, """
def test_fork(ipcsrv_server):
    def handle(request):
        child = os.fork()
        return b"child" if child == 0 else b"%d" % os.waitpid(child, 0)[1]

    for _ in range(2):
        server = ipcsrv_server(handle, inline=True)
        assert server.call() == b"0"
        server.stop()
""", "-W", "ignore::DeprecationWarning")  # CPython's, of a fork where there are threads
    result.assert_outcomes(passed=1)


def test_unexpected_failure_of_the_handler_fails_the_test(session: pytest.Pytester) -> None:
    result = run(session, """
@pytest.mark.parametrize("may_fail", [False, TypeError, (KeyError, ValueError), True])
def test_raises(ipcsrv_server, may_fail):
    server = ipcsrv_server(handlers.fail, workers=1, may_fail=may_fail)
    with pytest.raises(ipcsrv.HandlerError):
        server.call(b"way")

@pytest.mark.parametrize("may_fail", [False, True])
def test_crashes(ipcsrv_server, may_fail):
    server = ipcsrv_server(handlers.crash, workers=1, may_fail=may_fail)
    with pytest.raises(ipcsrv.IpcError):
        server.call()

def test_is_not_in_the_log(ipcsrv_server):
    server = ipcsrv_server(handlers.fail, workers=1, log_level="critical")
    with pytest.raises(ipcsrv.HandlerError):
        server.call(b"way")
""")
    result.assert_outcomes(passed=7, errors=4)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_raises?False?*", "*handler raised:", "*ValueError: no*"])
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_raises?TypeError?*"])
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_crashes?False?*", "*exited with status 9*"])
    result.stdout.fnmatch_lines(["*raised in 1 requests, which are not in the log*"])


def test_allowed_failures_are_those_of_the_given_types(session: pytest.Pytester) -> None:
    session.makepyfile(failures="""
class Refused(LookupError):
    pass

def fail(request):
    name, text = bytes(request).decode().split(" ", 1)
    if name == "Group":
        raise ExceptionGroup(text, [ValueError(text)])
    try:
        raise OSError("the cause")
    except OSError as error:
        raise {"ValueError": ValueError, "KeyError": KeyError, "Refused": Refused}[name](text) from error
""")
    result = run(session, """
import failures

@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(("request_text", "allowed"), [
    ("KeyError a", LookupError), ("Refused a", failures.Refused), ("Refused a", (OSError, LookupError)),
    ("ValueError first\\nTypeError: second", ValueError), ("ValueError ", ValueError), ("Group several", Exception),
])
def test_allowed(ipcsrv_server, request_text, allowed, log_format):
    server = ipcsrv_server(failures.fail, inline=True, may_fail=allowed, log_format=log_format, log_file=None)
    with pytest.raises(ipcsrv.HandlerError):
        server.call(request_text.encode())

@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(("request_text", "allowed"), [
    ("KeyError no ValueError", ValueError), ("KeyError a", OSError),
    ("ValueError first\\nTypeError: second", TypeError),
])
def test_not_allowed(ipcsrv_server, request_text, allowed, log_format):
    server = ipcsrv_server(failures.fail, inline=True, may_fail=allowed, log_format=log_format)
    with pytest.raises(ipcsrv.HandlerError):
        server.call(request_text.encode())
""")
    result.assert_outcomes(passed=18, errors=6)


def test_response_of_a_wrong_type_is_a_type_error(session: pytest.Pytester) -> None:
    result = run(session, """
def answer(request):
    if request == b"a":
        raise ValueError("a")
    return "text"

@pytest.mark.parametrize("may_fail", [TypeError, Exception, ValueError, False])
def test_types(ipcsrv_server, may_fail):
    server = ipcsrv_server(answer, inline=True, may_fail=may_fail)
    for request in [b"a"] * (may_fail in (ValueError, Exception)) + [b"b", b"b"]:
        with pytest.raises(ipcsrv.HandlerError):
            server.call(request)

def test_many(ipcsrv_server):
    server = ipcsrv_server(answer, inline=True, may_fail=ValueError)
    for n in range(150):
        with pytest.raises(ipcsrv.HandlerError):
            server.call(b"a")
""")
    result.assert_outcomes(passed=5, errors=2)
    result.stdout.fnmatch_lines(["*raised in 2 requests, which are not in the log, or returned what is no*"] * 2)


def test_failures_and_remains_are_reported_with_the_log(session: pytest.Pytester) -> None:
    result = run(session, """
def test_fails(ipcsrv_server):
    ipcsrv_server(handlers.upper, workers=1)
    assert not "reached"

def test_raises(ipcsrv_server):
    server = ipcsrv_server(handlers.fail, workers=1)
    with pytest.raises(ipcsrv.HandlerError):
        server.call(b"way")

def test_cannot_start(ipcsrv_server):
    ipcsrv_server("no_such_module:handle", workers=1)

def test_closure(ipcsrv_server):
    ipcsrv_server(lambda request: b"")

def test_leaves_a_file(ipcsrv_server):
    server = ipcsrv_server(handlers.upper, workers=1)
    server.stop()
    open(server.path, "w").close()

@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="processes are found by /proc")
def test_leaves_a_process(ipcsrv_server):
    ipcsrv_server(handlers.leave_a_process, workers=1).call()
""")
    left = ["files are left: s", *(["processes are left: "] if support.have_proc else [])]
    result.assert_outcomes(passed=1 + len(left), failed=3, errors=1 + len(left), skipped=2 - len(left))
    said = result.stdout.str()
    assert said.count("ipcsrv log of ") == 3 + len(left)
    assert said.count("listening on ") == 2 + len(left)
    assert [text for text in left if text not in said] == []
    assert "no module 'no_such_module'" in said
    assert "With inline=True it is served in this process" in said
    assert "_good_report" not in said.partition("test_cannot_start")[0]


def test_sessions_in_parallel_do_not_meet(session: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    result = run(session, """
@pytest.mark.parametrize("n", range(3))
def test_server(ipcsrv_server, n):
    server = ipcsrv_server(handlers.upper, workers=1)
    assert server.call(b"a") == b"A"
    assert not (n == 2 and "reached")
""", "-p", "xdist", "-n", "2")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*ipcsrv log of *", "*listening on *"])


def test_plugin_that_is_not_used_costs_nothing(session: pytest.Pytester) -> None:
    result = run(session, """
import sys
loaded = {name for name in sys.modules if name.partition(".")[0] == "ipcsrv"}

def test_loaded(pytestconfig):
    assert loaded == {"ipcsrv", "ipcsrv._version", "ipcsrv.pytest_plugin"}
    assert not pytestconfig.pluginmanager.has_plugin("ipcsrv-logs")
""")
    result.assert_outcomes(passed=1)


def test_examples_of_the_page_pass(session: pytest.Pytester) -> None:
    for block in page_runner.blocks((support.ROOT / "docs" / "pytest.md").read_text("utf-8")):
        if block.file_name is not None:
            (session.path / block.file_name).write_text(block.text)
    session.runpytest_subprocess(timeout=50).assert_outcomes(passed=4)


def test_entry_point_is_declared() -> None:
    declared = (Path(support.ROOT) / "setup.cfg").read_text()
    assert "pytest11 =\n    ipcsrv = ipcsrv.pytest_plugin\n" in declared
