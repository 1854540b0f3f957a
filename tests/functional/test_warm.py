"""`ipcsrv warm`: a program does the same warm as cold, with either client, also at a terminal."""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import native
import pytest
import support

pty = pytest.importorskip("pty", reason="needs a Unix")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="programs are run by forked processes")

Result = tuple[int, bytes, bytes]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The clients by name: the Python one, and the native one where there is a compiler."""
    folder = tmp_path_factory.mktemp("commands")
    found = {"python": str(native.write_command(folder))}
    with contextlib.suppress(pytest.skip.Exception):
        found["native"] = str(native.build_sanitized(tmp_path_factory.getbasetemp()))
    return found


class Place:
    """A folder with a program and a runtime folder of its own, and the clients."""

    def __init__(self, folder: Path, commands: dict[str, str]) -> None:
        self.folder = folder
        self.program = folder / "bin" / "prog"
        self.program.parent.mkdir()
        self.program.write_text(f"#!{sys.executable}\nimport sys\nfrom warm_prog import main\nsys.exit(main())\n")
        self.program.chmod(0o755)
        self.module = folder / "lib" / "warm_prog.py"
        self.module.parent.mkdir()
        shutil.copy(support.TESTS / "program_for_warm.py", self.module)
        self.clients = commands
        self.mark = folder.name  # by which the server's processes are found
        marked = {support.MARK: self.mark}
        environment = support.environment(IPCSRV_RUNTIME_DIR=str(folder / "run"), IPCSRV_WARM_DEBUG="1", **marked)
        environment["PYTHONPATH"] = f"{self.module.parent}:{environment['PYTHONPATH']}"
        environment.pop("PYTHONUNBUFFERED")
        self.environment = environment

    def run(self, *command: str | Path, input: bytes = b"", **options: object) -> Result:
        """Exit status, standard output and standard error of a command."""
        done = subprocess.run([str(word) for word in command], input=input, capture_output=True,
                              timeout=support.TIMEOUT, **{"env": self.environment, **options})
        return done.returncode, done.stdout, done.stderr

    def warm(self, client: str, *arguments: str, **options: object) -> Result:
        """The result of a warm run; a cold one would say so on standard error."""
        return self.run(self.clients[client], "warm", self.program, "--", *arguments, **options)

    def manage(self, *arguments: str | Path) -> str:
        """What a command about servers prints."""
        code, output, said = self.run(self.clients["python"], "warm", *arguments)
        assert code == 0, said
        return output.decode()


def remove(folder: Path) -> None:
    """Remove a place, in which a start that was begun in the background may still write."""
    support.wait_until(lambda: shutil.rmtree(folder, ignore_errors=True) or not folder.exists(), "the folder is gone")


@pytest.fixture(scope="module")
def place(commands: dict[str, str]) -> Iterator[Place]:
    """A place whose program has a server."""
    folder = Path(tempfile.mkdtemp(prefix="w-", dir="/tmp"))
    made = Place(folder, commands)
    made.manage("--restart", made.program)
    yield made
    made.manage("--stop")
    remove(folder)


@pytest.fixture(params=["python", "native"])
def client(request: pytest.FixtureRequest, place: Place) -> str:
    """The name of a client."""
    if request.param not in place.clients:
        pytest.skip("no C compiler")
    return str(request.param)


def comparable(result: Result) -> Result:
    """A result without what differs from one process to the next."""
    return result[0], re.sub(rb"0x[0-9a-f]{6,}", b"0x", result[1]), result[2]


ACTIONS = [
    ("exit", "0"), ("exit", "3"), ("exit", "255"), ("exit", "256"), ("exit_text",),
    ("os_exit", "4"), ("raise",),
    ("both",), ("interrupt",), ("die", "9"), ("die", "10"), ("die", "15"), ("die", "11"), ("deep",), ("signals",),
    ("hook", "exit"), ("hook", "raise"), ("hook", "none"), ("hook", "missing"), ("interrupt", "derived"), ("join",),
    ("surroundings",), ("echo",), ("child",), ("pool",), ("exec",), ("logging",), ("no-such-action",), (),
]  # fmt: skip


if sys.version_info < (3, 13):  # which leaves the overflow to whatever comes next, and that prints it
    ACTIONS.append(("exit", str(2**63)))
CASES = [("native", action) for action in ACTIONS]
CASES += [("python", action) for action in ACTIONS if action and action[0] in ("raise", "die", "surroundings", "echo")]


@pytest.mark.parametrize(("client", "action"), CASES, ids=str)
def test_a_warm_run_does_what_a_cold_one_does(place: Place, client: str, action: tuple[str, ...]) -> None:
    if client not in place.clients:
        pytest.skip("no C compiler")
    cold = place.run(place.program, *action, input=b"a line\nand a second\n", cwd="/usr")
    warm = place.warm(client, *action, input=b"a line\nand a second\n", cwd="/usr")
    assert comparable(warm) == comparable(cold)


def test_what_was_not_flushed_is_written_at_the_end(place: Place, client: str) -> None:
    path = place.folder / "written"
    assert place.warm(client, "atexit", str(path)) == (0, b"thread\nregistered\n", b"")
    assert path.read_text() == "written"


def test_runs_share_no_state(place: Place, client: str) -> None:
    assert place.warm(client, "random")[1] != place.warm(client, "random")[1]


SHELL_COMMANDS = [
    "{} flood | head -n 2", "{} both >/dev/full", "{} echo <&-", "{} both >&-", "{} both 2>&1 | cat",
    "trap '' HUP; {} surroundings", "umask 077; {} surroundings",
]  # fmt: skip


@pytest.mark.parametrize("command", SHELL_COMMANDS)
def test_streams_are_those_of_the_shell(place: Place, client: str, command: str) -> None:
    shell = ["bash", "-c"] if shutil.which("bash") else ["sh", "-c"]
    cold = place.run(*shell, command.format(place.program))
    warm = place.run(*shell, command.format(f"{place.clients[client]} warm {place.program}"))
    said = re.sub(rb"ipcsrv: warm: a standard stream is closed; running it cold\n", b"", warm[2])
    assert comparable((*warm[:2], said)) == comparable(cold)


@contextlib.contextmanager
def running(place: Place, client: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A warm run in progress."""
    command = [place.clients[client], "warm", str(place.program), *arguments]
    with subprocess.Popen(command, env=place.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_signals_are_relayed(place: Place, client: str) -> None:
    with running(place, client, "catch") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGQUIT", "SIGTERM"):
            process.send_signal(getattr(signal, name))
            assert process.stdout.readline() == f"caught {name}\n".encode()
        assert process.wait(support.TIMEOUT) == 9


def test_a_dead_worker_ends_its_client(place: Place, client: str) -> None:
    """Also where it has not read all signals, which the client sees as a reset of the control channel."""
    with running(place, client, "pid") as process:
        assert process.stdout is not None
        pid = process.stdout.readline().decode().strip()
        worker = int(subprocess.check_output(["ps", "-o", "ppid=", "-p", pid]))
        os.kill(worker, signal.SIGSTOP)
        process.send_signal(signal.SIGWINCH)
        time.sleep(0.05)  # for the client to pass it on; if it does not, the test is only weaker
        os.kill(worker, signal.SIGKILL)
        said = process.communicate(timeout=support.TIMEOUT)[1]
        text = b"ipcsrv: warm: the server died during the run; it may have done a part of its work\n"
        assert (process.returncode, said) == (1, text)


def test_death_by_a_signal_is_the_clients_too(place: Place, client: str) -> None:
    with running(place, client, "wait") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(support.TIMEOUT) == -signal.SIGTERM


def test_a_killed_client_ends_the_run(place: Place, client: str) -> None:
    with running(place, client, "pid") as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
        assert support.wait_gone({pid}) == set()


def test_a_run_that_stops_stops_its_client(place: Place, client: str) -> None:
    with running(place, client, "stopped") as process:
        assert os.waitpid(process.pid, os.WUNTRACED)[1] >> 8 == signal.SIGSTOP
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=support.TIMEOUT)[0] == b"continued\n"


class Terminal:
    """A shell with job control at a terminal of its own."""

    def __init__(self, place: Place, path: str) -> None:
        environment = {**place.environment, "PATH": f"{path}:/usr/bin:/bin", "PS1": "$ ", "TERM": "dumb"}
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(place.folder)
            os.execve("/bin/bash", ["bash", "--norc", "--noediting", "-i"], environment)
        self.text = ""
        self._seen = 0

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.descriptor, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until the terminal shows the text, after what was waited for before."""
        until = time.monotonic() + support.TIMEOUT
        while text not in self.text[self._seen :]:
            ready, _, _ = select.select([self.descriptor], [], [], until - time.monotonic())
            assert ready, f"no {text!r} in {self.text!r}"
            self.text += os.read(self.descriptor, 4096).decode()
        self._seen = self.text.index(text, self._seen) + len(text)

    def close(self) -> None:
        """Leave the shell."""
        os.close(self.descriptor)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


SCENES: dict[str, list[tuple[str, str]]] = {
    "input": [("prog ask\n", "name? "), ("you\n", "hello you\r\n$ "), ("echo =$?\n", "=0\r\n$ ")],
    "ctrl-c": [("prog wait\n", "waiting\r\n"), ("\x03", "KeyboardInterrupt\r\n\r\n$ "), ("echo =$?\n", "=130\r\n$ ")],
    "ctrl-backslash": [("prog wait\n", "waiting\r\n"), ("\x1c", "\r\n$ "), ("echo =$?\n", "=131\r\n$ ")],
    "ctrl-z": [
        ("prog wait\n", "waiting\r\n"), ("\x1a", "Stopped                 prog wait\r\n$ "), ("fg\n", "continued\r\n"),
        ("\x03", "KeyboardInterrupt\r\n\r\n$ "),
    ],
    "surroundings": [("prog surroundings\n", "\r\n$ "), ("echo =$?\n", "=0\r\n$ ")],
}


@pytest.mark.skipif(not os.path.exists("/bin/bash"), reason="job control is tried with bash")
@pytest.mark.parametrize("scene", SCENES)
def test_a_terminal_shows_the_same(place: Place, client: str, scene: str) -> None:
    launchers = place.folder / f"launchers-{client}"
    launchers.mkdir(exist_ok=True)
    launcher = launchers / "prog"
    launcher.write_text(f'#!/bin/sh\nexec {place.clients[client]} warm {place.program} "$@"\n')
    launcher.chmod(0o755)
    shown = []
    for path in (place.program.parent, launchers):
        terminal = Terminal(place, str(path))
        try:
            terminal.wait_for("$ ")
            for keys, text in SCENES[scene]:
                terminal.type(keys)
                terminal.wait_for(text)
        finally:
            terminal.close()
        varies = r"PATH', '[^']*'|0x[0-9a-f]{6,}| \(core dumped\)|\('SHLVL', '[^']*'\)"
        shown.append(re.sub(varies, "", terminal.text))
    assert shown[1] == shown[0]


@pytest.fixture
def own_place(commands: dict[str, str]) -> Iterator[Place]:
    """A place without a server yet."""
    folder = Path(tempfile.mkdtemp(prefix="w-", dir="/tmp"))
    made = Place(folder, commands)
    yield made
    made.manage("--stop")
    remove(folder)


def wait_until_warm(place: Place, client: str) -> None:
    """Run until a run is warm; each that is cold has a server started or reloaded."""

    def is_warm() -> bool:
        code, output, said = place.warm(client, "both")
        assert (code, output) == (0, b"to output\n")
        return said == b"to error\n"

    support.wait_until(is_warm)


def the_client(place: Place) -> str:
    return "native" if "native" in place.clients else "python"


def test_the_first_run_is_cold_and_starts_the_server(own_place: Place) -> None:
    code, output, said = own_place.warm(the_client(own_place), "exit", "3")
    assert (code, output, said) == (3, b"", b"ipcsrv: warm: no server has been started; running it cold\n")
    wait_until_warm(own_place, the_client(own_place))
    assert str(own_place.program) in own_place.manage("--list")


def test_a_changed_source_is_run_at_once(own_place: Place) -> None:
    client = the_client(own_place)
    wait_until_warm(own_place, client)
    before = own_place.module.stat()
    other = own_place.module.with_name("other.py")  # of the same size and time
    other.write_text(own_place.module.read_text().replace("to output", "as output"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(own_place.module)
    shutil.rmtree(own_place.module.parent / "__pycache__")  # where Python compares no more than these
    assert own_place.warm(client, "both")[:2] == (0, b"as output\n")
    support.wait_until(lambda: own_place.warm(client, "both") == (0, b"as output\n", b"to error\n"))


@pytest.mark.parametrize("other", ["locale", "groups"])
def test_a_process_of_another_kind_has_another_server(own_place: Place, other: str) -> None:
    if other == "groups" and os.geteuid() != 0:
        pytest.skip("only root can change its groups")
    own_place.manage("--restart", own_place.program)
    locale = {"env": {**own_place.environment, "LC_NUMERIC": "C"}}
    options: dict[str, object] = locale if other == "locale" else {"group": 4711, "extra_groups": [4712]}
    cold = own_place.run(own_place.program, "surroundings", **options)
    warm = own_place.warm(the_client(own_place), "surroundings", **options)
    assert (*warm[:2], b"no server has been started" in warm[2]) == (*cold[:2], True)

    def same_when_warm() -> bool:
        """Either client uses the other server."""
        warm = [own_place.warm(client, "surroundings", **options) for client in own_place.clients]
        assert {result[1] for result in warm} == {cold[1]}
        return all(result[2] == b"" for result in warm)

    support.wait_until(same_when_warm)


def test_a_module_imported_late_is_learned(own_place: Place) -> None:
    """But not one that a run without it would see: it prints, makes the import fail, or is a line editor."""
    lib = own_place.module.parent
    (lib / "late.py").write_text("")
    (lib / "late_prints.py").write_text("import sys\nprint('late', file=sys.stderr)\n")
    (lib / "late_ends.py").write_text("import os, sys\nif len(sys.argv) == 1:\n    os._exit(3)\n")  # in the template
    names = ["late", "late_prints", "readline"]
    action = f"\n\ndef do_late(*names):\n    print([name for name in {names} if name in sys.modules])\n"
    own_place.module.write_text(own_place.module.read_text() + action + "    list(map(__import__, names))\n")
    client = the_client(own_place)
    assert own_place.warm(client, "late", *names)[1] == b"[]\n"
    support.wait_until(lambda: own_place.warm(client, "late", *names) == (0, b"['late']\n", b"late\n"))
    assert own_place.warm(client, "late", "late_ends")[:2] == (0, b"['late']\n")
    (learned,) = (own_place.folder / "run" / "warm").glob("*.learned")
    support.wait_until(lambda: b"late_ends" in learned.read_bytes())
    own_place.manage("--restart", own_place.program)
    assert (own_place.warm(client, "late"), learned.read_text()) == ((0, b"[]\n", b""), "-\n")
    own_place.manage("--stop", own_place.program)
    assert not learned.exists()


NOT_REACHED = [
    "if sys.argv[1:] == ['effect']:\n    import effect\n",
    "if sys.argv[1:] != ['effect']:\n    sys.exit(warm_prog.main())\nimport effect\n",
    "try:\n    import warm_prog\nexcept ImportError:\n    import effect\n",
    "def late():\n    import effect\n",
]


def test_an_import_that_no_run_does_is_not_done(own_place: Place) -> None:
    mark = own_place.folder / "imported"
    (own_place.module.parent / "effect.py").write_text(f"open({str(mark)!r}, 'a').close()\n")
    for lines in NOT_REACHED:
        end = "if __name__ == '__main__':\n    sys.exit(warm_prog.main())\n"
        own_place.program.write_text(f"#!{sys.executable}\nimport sys\nimport warm_prog\n{lines}{end}")
        own_place.manage("--restart", own_place.program)
        assert own_place.warm(the_client(own_place), "exit", "3") == (3, b"", b"")
        assert not mark.exists(), lines


def test_a_module_named_by_preload_is_imported(own_place: Place) -> None:
    (own_place.module.parent / "extra.py").write_text("")
    action = "\n\ndef do_extra():\n    print('extra' in sys.modules)\n"
    own_place.module.write_text(own_place.module.read_text() + action)
    own_place.manage("--preload", "extra", "--restart", own_place.program)
    assert own_place.warm(the_client(own_place), "extra") == (0, b"True\n", b"")


def test_another_environment_has_another_server(own_place: Place) -> None:
    """A variable that is read by an import is not the server's, but the client's."""
    module = own_place.module.read_text().replace("START = ", "MODE = os.environ.get('PROG_MODE')\nSTART = ")
    own_place.module.write_text(module + "\n\ndef do_mode():\n    print(MODE)\n")
    client = the_client(own_place)
    other = {**own_place.environment, "PROG_MODE": "other"}

    def is_warm(environment: dict[str, str], shown: bytes) -> bool:
        """On a busy machine a run may be cold; it shows the same."""
        code, output, said = own_place.warm(client, "mode", env=environment)
        assert (code, output) == (0, shown)
        return said == b""

    wait_until_warm(own_place, client)
    for environment, shown in [(own_place.environment, b"None\n"), (other, b"other\n")] * 2:
        support.wait_until(lambda env=environment, shown=shown: is_warm(env, shown), "a warm run")


def test_many_clients_at_once_start_one_server(own_place: Place) -> None:
    client = own_place.clients[the_client(own_place)]
    command = [client, "warm", str(own_place.program), "exit", "7"]
    processes = [subprocess.Popen(command, env=own_place.environment, stderr=subprocess.DEVNULL) for _ in range(8)]
    assert [process.wait(support.TIMEOUT) for process in processes] == [7] * 8
    wait_until_warm(own_place, the_client(own_place))
    assert own_place.manage("--list").count(str(own_place.program)) == 1


def test_a_program_that_does_not_import_fails_as_cold(own_place: Place) -> None:
    own_place.module.write_text("raise RuntimeError('broken')\n")
    cold = own_place.run(own_place.program)
    for _ in range(2):
        warm = own_place.warm(the_client(own_place))
        assert (warm[0], warm[1], warm[2].endswith(cold[2])) == (1, b"", True)


def test_a_run_for_which_no_worker_is_free_is_cold(own_place: Place) -> None:
    own_place.manage("--workers", "1", "--restart", own_place.program)
    client = the_client(own_place)
    with running(own_place, client, "wait") as process:
        assert process.stdout is not None
        process.stdout.readline()
        long = {f"LONG_{number}": "x" * 100_000 for number in range(8)}  # more than a socket holds
        for name in own_place.clients:
            for more in ({}, long):
                said = own_place.warm(name, "exit", "3", env={**own_place.environment, **more})
                assert said == (3, b"", b"ipcsrv: warm: no worker is free; running it cold\n")
        process.terminate()


def test_off_runs_cold(place: Place, client: str) -> None:
    result = place.warm(client, "exit", "3", env={**place.environment, "IPCSRV_WARM": "off"})
    assert result == (3, b"", b"ipcsrv: warm: IPCSRV_WARM=off; running it cold\n")


def test_what_is_no_python_program_runs(place: Place, client: str) -> None:
    script = place.folder / "script"
    script.write_text("#!/bin/sh\necho $1; exit 4\n")
    script.chmod(0o755)
    assert place.run(place.clients[client], "warm", script, "x")[:2] == (4, b"x\n")


@pytest.mark.parametrize("name", ["no-such-program", ":", "a:", ":b", "import:b", "a.:b"])
def test_a_missing_program_exits_2(place: Place, client: str, name: str) -> None:
    code, output, said = place.run(place.clients[client], "warm", name)
    assert (code, output, said.count(b"\n")) == (2, b"", 1)


def test_a_script_need_not_be_executable(own_place: Place) -> None:
    own_place.program.chmod(0o644)
    off = {**own_place.environment, "IPCSRV_WARM": "off"}
    for client in own_place.clients:
        assert own_place.warm(client, "exit", "3", env=off)[:2] == (3, b"")
    wait_until_warm(own_place, the_client(own_place))
    own_place.program.write_text(own_place.program.read_text() + "# changed\n")
    assert own_place.warm(the_client(own_place), "exit", "3")[:2] == (3, b"")


def test_an_installed_launcher_is_the_program(place: Place) -> None:
    folder = place.folder / "launchers"
    launcher = place.manage("--install", folder, place.program).strip()
    assert launcher == str(folder / "prog")
    assert place.run(launcher, "exit", "3") == (3, b"", b"")
    cold = place.run(place.program, "--", "exit", "3")
    assert place.run(launcher, "--", "exit", "3") == cold
    if "native" in place.clients:  # the kernel runs this one
        with_kernel = folder / "with-kernel"
        with_kernel.write_text(f"#!{place.clients['native']} warm\n{place.program}\n")
        with_kernel.chmod(0o755)
        assert place.run(with_kernel, "--", "exit", "3") == cold
        assert place.run(place.clients["python"], "warm", with_kernel, "--", "exit", "3") == cold
    assert place.manage("--install", folder, place.program).strip() == launcher
    code, _, said = place.run(place.clients["python"], "warm", "--install", place.program.parent, place.program)
    assert (code, b"there is a file already" in said) == (2, True)


def test_a_function_of_a_module_runs(own_place: Place) -> None:
    target = "warm_prog:main"
    own_place.manage("--restart", target)
    for action in (("exit", "3"), ("raise",), ("exit_text",)):
        off = {**own_place.environment, "IPCSRV_WARM": "off"}
        cold = own_place.run(own_place.clients["python"], "warm", target, *action, env=off)
        warm = own_place.run(own_place.clients[the_client(own_place)], "warm", target, *action)
        assert (warm[:2], warm[2]) == (cold[:2], cold[2].partition(b"cold\n")[2])


@pytest.mark.skipif(not support.have_proc, reason="looks at processes in /proc")
def test_many_runs_leave_nothing(place: Place) -> None:
    client = place.clients[the_client(place)]

    def left() -> list[int]:
        """The numbers of open descriptors of the server's processes."""
        counts = []
        for pid in support.marked_processes(place.mark):
            with contextlib.suppress(FileNotFoundError):
                counts.append(len(os.listdir(f"/proc/{pid}/fd")))
        return sorted(counts)

    assert place.run(client, "warm", place.program, "exit", "0")[0] == 0
    before = left()
    for _ in range(20):
        assert place.run(client, "warm", place.program, "exit", "0")[0] == 0
    support.wait_until(lambda: left() == before)


FIRST_LINES = [
    "#!/usr/bin/env python3",
    "#!{python} -u",
    "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''",
    "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''",
]


@pytest.mark.parametrize("line", FIRST_LINES)
def test_both_clients_find_the_same_server(own_place: Place, line: str) -> None:
    """The paths of the server's files are computed in Python and in C."""
    environment = {**own_place.environment, "PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"}
    environment["PYTHONPATH"] += ":."  # so that the server depends on the folder
    own_place.environment = environment
    text = own_place.program.read_text().partition("\n")[2]
    own_place.program.write_text(f"{line.format(python=sys.executable)}\n{text}")
    own_place.manage("--restart", own_place.program)
    for client in own_place.clients:
        assert own_place.warm(client, "exit", "3") == (3, b"", b"")


def test_a_folder_that_others_may_enter_is_not_used(own_place: Place, client: str) -> None:
    (own_place.folder / "run").mkdir(mode=0o755)
    code, _, said = own_place.warm(client, "exit", "3")
    assert (code, b"others may enter" in said, b"running it cold" in said) == (3, True, True)
    os.chmod(own_place.folder / "run", 0o700)


def test_garbage_in_the_stamps_is_no_server(place: Place) -> None:
    """The sanitizers watch the native client read them; what takes over is only named."""
    if "native" not in place.clients:
        pytest.skip("no C compiler")
    alone = place.folder / "alone"
    alone.mkdir()
    shutil.copy(place.clients["native"], alone)
    (alone / "ipcsrv").write_text("#!/bin/sh\necho python takes over\n")
    (alone / "ipcsrv").chmod(0o755)
    (stamps,) = (place.folder / "run" / "warm").glob("prog-*.stamps")
    good, rng = stamps.read_bytes(), random.Random(15)
    try:
        for _ in range(60):
            bad = bytearray(good)
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(min(len(bad), 200)) if rng.random() < 0.7 else rng.randrange(len(bad))
                bad[at : at + rng.randrange(40)] = rng.randbytes(rng.randrange(4))
            stamps.write_bytes(bad[: rng.randrange(len(bad) + 1)] if rng.random() < 0.3 else bad)
            code, output, said = place.run(alone / "ipcsrvc", "warm", place.program, "exit", "3")
            assert (code, output) in ((0, b"python takes over\n"), (3, b"")), said
    finally:
        stamps.write_bytes(good)


def test_an_environment_of_its_own_changes_under_a_server(own_place: Place) -> None:
    """The program has its own version of what the server uses, and a new line of a .pth file is not read by a fork."""
    environment = own_place.folder / "env"
    venv.create(environment, symlinks=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "filelock.py").write_text("VERSION = 'of the program'\n")
    (own_place.folder / "more").mkdir()
    (own_place.folder / "more" / "optional_part.py").write_text("")
    action = "\n\ndef do_parts():\n    import filelock, importlib.util\n"
    action += "    print(filelock.VERSION, importlib.util.find_spec('optional_part') is not None)\n"
    own_place.module.write_text(own_place.module.read_text() + action)
    own_place.program.write_text(f"#!{environment}/bin/python\n{own_place.program.read_text().partition(chr(10))[2]}")
    client = the_client(own_place)
    own_place.manage("--restart", own_place.program)
    with running(own_place, client, "catch") as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert own_place.warm(client, "parts") == (0, b"of the program False\n", b"")
        (packages / "more.pth").write_text(f"{own_place.folder / 'more'}\n")
        (packages / "filelock.py").write_text("VERSION = 'newer'\n")
        assert own_place.warm(client, "parts")[:2] == (0, b"newer True\n")
        support.wait_until(lambda: own_place.warm(client, "parts") == (0, b"newer True\n", b""))
        process.terminate()
        assert process.wait(support.TIMEOUT) == 9


READ_AT_IMPORT = """
import multiprocessing.process as processes
ARGUMENTS, INPUT, FOLDER, TERMINAL = sys.argv, sys.stdin, os.getcwd(), sys.stdout.isatty()
CONFIGURATION = "none"
if os.path.exists("prog.cfg"):
    with open("prog.cfg") as file:
        CONFIGURATION = file.read()


def do_imported(*_):
    print(ARGUMENTS[1:], FOLDER, TERMINAL, CONFIGURATION, processes.ORIGINAL_DIR, INPUT.read())
"""


def test_what_an_import_reads_is_the_clients(own_place: Place) -> None:
    """The arguments, the working folder, whether there is a terminal, and a file that is new, changed or gone."""
    own_place.module.write_text(own_place.module.read_text() + READ_AT_IMPORT)
    client = the_client(own_place)
    wait_until_warm(own_place, client)
    folders = [own_place.folder / "one", own_place.folder / "two"]
    for folder in folders:
        folder.mkdir()

    def check(folder: Path, configuration: str) -> None:
        expected = f"['imported', 'x'] {folder} False {configuration} {folder} input\n".encode()

        def run() -> Result:
            return own_place.warm(client, "imported", "x", cwd=folder, input=b"input")

        assert run()[:2] == (0, expected)
        support.wait_until(lambda: run() == (0, expected, b""))

    check(folders[0], "none")
    check(folders[1], "none")
    (folders[0] / "prog.cfg").write_text("first")
    check(folders[0], "first")
    (folders[0] / "prog.cfg").write_text("second")
    check(folders[0], "second")
    check(folders[1], "none")
    terminal, theirs = pty.openpty()
    command = [own_place.clients[client], "warm", str(own_place.program), "imported"]

    def is_warm() -> bool:
        done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, cwd=folders[0], env=own_place.environment,
                              stdin=subprocess.DEVNULL, timeout=support.TIMEOUT, check=True)  # fmt: skip
        assert f" {folders[0]} True second ".encode() in os.read(terminal, 4096)
        return done.stderr == b""

    support.wait_until(is_warm)
    os.close(theirs)
    os.close(terminal)


DONE_AT_IMPORT = """
import logging.handlers
import warnings
print("printed at import")
sys.stdout.flush()
warnings.warn("warned at import", UserWarning, stacklevel=2)
atexit.register(print, "registered at import")
atexit.register(print, "never")
atexit.unregister(print)
atexit.register(print, "registered again")
handler = logging.handlers.MemoryHandler(9, target=logging.StreamHandler(sys.stdout))
logging.getLogger().addHandler(handler)
FILE, FOUND = open("written", "a"), os.path.isdir(".")


def do_at_import():
    logging.warning("logged")
    FILE.write("a line\\n")
    globals().pop("atexit")
"""


def test_what_an_import_leaves_for_the_end_is_done_by_each_run(own_place: Place) -> None:
    """What it prints is shown by each run, and a relative path is one in the client's folder."""
    own_place.module.write_text(own_place.module.read_text() + DONE_AT_IMPORT)
    own_place.environment["PYTHONWARNINGS"] = "default,ignore::ResourceWarning"
    client, folder = the_client(own_place), own_place.folder
    cold = own_place.run(own_place.program, "at_import", cwd=folder)
    own_place.run(own_place.clients["python"], "warm", "--restart", own_place.program, cwd=folder)
    for count in (2, 3):
        assert own_place.warm(client, "at_import", cwd=folder) == cold
        assert (folder / "written").read_text() == "a line\n" * count
    assert b"warned at import" in cold[2]
    assert not Path("/written").exists()


def test_the_first_run_shows_the_traceback_of_a_cold_one(own_place: Place) -> None:
    own_place.module.write_text(own_place.module.read_text() + "\n\ndef do_missing():\n    os.environ['NO_SUCH']\n")
    cold = own_place.run(own_place.program, "missing")
    warm = own_place.warm(the_client(own_place), "missing")
    assert (warm[:2], warm[2].partition(b"cold\n")[2]) == (cold[:2], cold[2])
