"""Fixtures of every suite: a short path for a socket, and real servers that are gone without trace at the end."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator

import pytest
import support

pytest_plugins = ["pytester"]


def pytest_configure(config: pytest.Config) -> None:
    """Give servers the signals that they expect; on Windows, skip by capability what a test reaches for in vain."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job has it so, and its children too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGQUIT") and signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    if os.name == "nt" and not config.pluginmanager.has_plugin("wine.capabilities"):
        config.pluginmanager.import_plugin("wine.capabilities")
    if not config.pluginmanager.has_plugin("ipcsrv"):  # its entry point is there only where the package is installed
        config.pluginmanager.import_plugin("ipcsrv.pytest_plugin")


def pytest_xdist_auto_num_workers() -> int:
    """Run twice as many tests at once as there are processors: most of them wait for other processes."""
    return 2 * (os.cpu_count() or 1)


ServerFactory = Callable[..., support.RunningServer]


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Logs of started servers go to pytest's own folder, not to the home of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(support.HOME_OF_LOGS, str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Where Python may not write compiled modules beside its sources, a thousand processes would compile them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture
def sock_dir() -> Iterator[str]:
    """A new private folder with a short name: pytest's tmp_path is too long for a socket on some systems."""
    folder = tempfile.mkdtemp(prefix="i-", dir="/tmp" if os.sep == "/" and os.path.isdir("/tmp") else None)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def sock_path(sock_dir: str) -> str:
    """A path for a socket, at which there is nothing yet."""
    return os.path.join(sock_dir, "s")


@pytest.fixture
def server(sock_path: str) -> Iterator[ServerFactory]:
    """Start servers: `server("handlers_for_tests:echo", "--workers", "2", path=..., env=...)`.

    Each is the real command in its own process and listens when the call returns. What still runs at the end is
    stopped, and a process that outlives its master fails the test. `listening=False` returns at once, for a server
    that is expected not to get so far.
    """
    started: list[support.RunningServer] = []

    def start(
        target: str = "handlers_for_tests:echo",
        *options: str,
        path: str | None = None,
        env: dict[str, str] | None = None,
        listening: bool = True,
    ) -> support.RunningServer:
        running = support.RunningServer(path or sock_path, target, *options, env=env)
        started.append(running)
        return running.wait_until_listening() if listening else running

    yield start
    for running in started:
        running.clean_up()


@pytest.fixture
def echo_server(server: ServerFactory) -> support.RunningServer:
    """A server that echoes, with two workers."""
    return server("handlers_for_tests:echo", "--workers", "2")


@pytest.fixture
def leaves_nothing(sock_dir: str) -> Iterator[None]:
    """For a test whose servers must be gone with every file and all shared memory when it ends."""
    memory, children = support.abandoned_memory(), support.children()
    yield
    assert os.listdir(sock_dir) == []
    support.wait_until(lambda: support.abandoned_memory() <= memory, "no shared memory is left")
    assert support.children() == children
