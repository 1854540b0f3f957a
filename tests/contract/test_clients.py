"""One contract for both command line clients: `ipcsrv` and the native `ipcsrvc` do and say the same."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import support
from conftest import ServerFactory
from fake_server import FLUSH, answer, echo, message, packet, read_exactly, read_message, serving, silent

import ipcsrv

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the native client is for Unix")

NOBODY = 65534
Command = list[str]


def run(command: Command, *arguments: str, input: bytes = b"") -> tuple[int, bytes, str]:
    """Exit code, standard output and standard error of a client."""
    done = subprocess.run([*command, *arguments], input=input, capture_output=True, timeout=support.TIMEOUT,
                          env=support.environment())
    return done.returncode, done.stdout, done.stderr.decode()


def line(error: object) -> str:
    """What a client writes for an error."""
    return f"ipcsrv: {error}\n"


def expected(path: str, data: bytes) -> tuple[int, bytes, str]:
    """What the library makes of the exchange: the reference for what a client writes."""
    output = bytearray()
    try:
        with ipcsrv.connect(path) as connection:
            for piece in connection.stream(data):
                output += piece
    except ipcsrv.IpcError as error:
        return error.exit_code, bytes(output), line(error)
    return 0, bytes(output), ""


@pytest.mark.parametrize("data", [b"", b"x", b"\x00\xff0000\n", b"a" * 65516, b"b" * 65517, bytes(range(256)) * 20_000])
def test_input_of_any_size_comes_back(client_command: Command, sock_path: str, data: bytes) -> None:
    with serving(sock_path, echo):
        assert run(client_command, "call", sock_path, input=data) == (0, data, "")


@pytest.mark.parametrize("word", ["x", "", "a" * 100_000])
def test_an_operand_comes_back(client_command: Command, sock_path: str, word: str) -> None:
    with serving(sock_path, echo):
        assert run(client_command, "call", sock_path, word, "--timeout", "20") == (0, word.encode(), "")


def test_an_operand_that_is_not_text_comes_back(client_command: Command, sock_path: str) -> None:
    with serving(sock_path, echo):
        assert run(client_command, "call", sock_path, os.fsdecode(b"\xff\xfe")) == (0, b"\xff\xfe", "")


REPLIES: list[bytes] = [
    b"", b"00", b"0008pi", b"0008ping", b"0008ping00", b"zzzzping0000", b"0001", b"0002", b"0003", b"fff1", b"-008",
    b"'\n\x00\"", b"HTTP/1.1 400 Bad Request", message(b"ERR handler data, since a flush follows"),
    packet(b"part") + packet(b"ERR busy"), packet(b"ERR handler ValueError: caf\xc3\xa9 \xff \x1b[1m\r\ntwo"),
    packet(b"ERR denied no"), packet(b"ERR new-one odd"), packet(b"ERR stopping now") + b"0004",
    packet(b"ERR timeout ") + b"00", packet(b"ERR ") + packet(b"more") + FLUSH, message(b"one") + message(b"two"),
    packet(b"ERR handler " + b"m" * 1088), packet(b"ERR handler " + b"m" * 1089),
    packet(b"ERR handler KeyboardInterrupt: "), packet(b"ERR handler"), packet(b"ERR busy \t"), packet(b"ERR "),
    packet(b"ERR control x"), packet(b"ERR control"), packet(b"ERR na\0me a\0b"), packet(b"ERR na:\n"),
    packet(b"ERR too-large \n\r\n \x85\xc2\x85x\xe2\x80\xa9y\xe3\x80\x80"),
    *(packet(b"ERR denied " + text) for text in (
        b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xf0\x9f\x98x", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80",
        b"\xf8\xff", b"\xe0\x80\x80", "\u061c\u3000\ue000\u0378\U000e0001\U0001f600\U0010ffff\u00ad".encode())),
]  # fmt: skip


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: repr(reply[:12]))
def test_a_reply_is_reported_as_the_library_does(client_command: Command, sock_path: str, reply: bytes) -> None:
    with serving(sock_path, answer(reply)):
        assert run(client_command, "call", sock_path, "x") == expected(sock_path, b"x")


def garbage(rng: random.Random) -> bytes:
    """Random bytes, or a valid reply with some bytes changed, removed or repeated."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(200))
    reply = bytearray()
    for _ in range(rng.randrange(1, 6)):
        data = packet(rng.randbytes(rng.choice((0, 1, 50, 1100, 1101, 5000))))
        reply += rng.choice((data, packet(b"ERR handler no"), FLUSH))
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(reply))
        reply[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        if not reply:
            break
    return bytes(reply)


def test_garbage_is_reported_as_the_library_does(sanitized_client: Path, sock_path: str) -> None:
    """The address and undefined behaviour sanitizers watch, where they are there; standard error would show it."""
    rng = random.Random(15)
    for _ in range(150):
        reply, cut = garbage(rng), rng.random()

        def script(connection: socket.socket, reply: bytes = reply, cut: float = cut) -> None:
            read_message(connection)
            for piece in (reply[: int(cut * len(reply))], reply[int(cut * len(reply)) :]):
                connection.sendall(piece)

        with serving(sock_path, script):
            assert (reply, *run([str(sanitized_client)], "call", sock_path, "x")) == (reply, *expected(sock_path, b"x"))


@pytest.mark.parametrize("timeout", [[], ["--timeout", "20"]], ids=["no limit", "20 s"])
@pytest.mark.parametrize(
    ("reply", "outcome"), [(message(b"early"), 0), (packet(b"ERR denied no"), 5), (b"", 3)],
    ids=["a response", "a failure", "the end"])  # fmt: skip
def test_a_server_that_speaks_first_is_heard_while_input_is_silent(
    client_command: Command, sock_path: str, reply: bytes, outcome: int, timeout: list[str]
) -> None:
    def at_once(connection: socket.socket) -> None:
        connection.sendall(reply)

    with serving(sock_path, at_once), client(client_command, "call", sock_path, *timeout) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.wait(support.TIMEOUT) == outcome
        assert process.stdout.read() == (b"early" if outcome == 0 else b"")
        assert (process.stderr.read() == b"") is (outcome == 0)


def test_a_response_comes_out_before_its_end(client_command: Command, sock_path: str) -> None:
    go_on = threading.Event()

    def in_two(connection: socket.socket) -> None:
        read_message(connection)
        connection.sendall(packet(b"first"))
        assert go_on.wait(support.TIMEOUT)
        connection.sendall(packet(b"second") + FLUSH)

    with serving(sock_path, in_two), client(client_command, "call", sock_path, "x") as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"first"
        go_on.set()
        assert (process.stdout.read(), process.wait(support.TIMEOUT)) == (b"second", 0)


def client(command: Command, *arguments: str) -> subprocess.Popen[bytes]:
    """A client that runs, with pipes to all its streams."""
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, env=support.environment())


def test_a_request_goes_out_before_its_end(client_command: Command, sock_path: str) -> None:
    arrived = threading.Event()

    def script(connection: socket.socket) -> None:
        assert read_exactly(connection, 7) == b"0007one"
        arrived.set()
        read_message(connection)
        connection.sendall(message(b"done"))

    with serving(sock_path, script), client(client_command, "call", sock_path) as process:
        assert process.stdin is not None
        process.stdin.write(b"one")
        process.stdin.flush()
        assert arrived.wait(support.TIMEOUT)
        assert process.communicate(b"two", timeout=support.TIMEOUT) == (b"done", b"")


def test_an_answer_before_the_request_was_read(client_command: Command, sock_path: str) -> None:
    def upside_down(connection: socket.socket) -> None:
        connection.sendall(packet(b"x" * 60000) * 20)  # more than a socket holds
        assert read_message(connection) == b"y" * 4_000_000
        connection.sendall(FLUSH)

    with serving(sock_path, upside_down):
        assert run(client_command, "call", sock_path, input=b"y" * 4_000_000) == (0, b"x" * 1_200_000, "")


def test_a_refusal_in_the_middle_of_a_request(client_command: Command, sock_path: str) -> None:
    def too_large(connection: socket.socket) -> None:
        read_exactly(connection, 100_000)
        connection.sendall(packet(b"ERR too-large enough"))

    with serving(sock_path, too_large):
        assert run(client_command, "call", sock_path, input=b"x" * 4_000_000) == expected(sock_path, b"x" * 4_000_000)


@pytest.mark.parametrize("request_data", [b"", b"x" * 4_000_000])
def test_a_part_of_a_response_before_the_whole_request_is_no_execution(
    client_command: Command, sock_path: str, request_data: bytes
) -> None:
    closed = threading.Event()

    def hasty(connection: socket.socket) -> None:
        read_exactly(connection, 100_000 if request_data else 0)
        connection.sendall(packet(b"part"))
        connection.shutdown(socket.SHUT_RDWR)
        closed.set()

    with serving(sock_path, hasty), client(client_command, "call", sock_path) as process:
        assert request_data or closed.wait(support.TIMEOUT)  # before the end of standard input is sent
        output, said = process.communicate(request_data, timeout=support.TIMEOUT)
    progress = ipcsrv.errors.Progress.REQUEST_SENT if request_data else ipcsrv.errors.Progress.NOTHING_SENT
    assert (process.returncode, output) == (3, b"part")
    assert said.decode() == line(ipcsrv.ConnectionLost(sock_path, progress))


def test_a_reset_of_standard_input_is_not_the_servers(client_command: Command, sock_path: str) -> None:
    ours, given = socket.socketpair()
    with given, serving(sock_path, silent):
        given.sendall(b"unread")
        ours.close()
        done = subprocess.run([*client_command, "call", sock_path], stdin=given, capture_output=True,
                              timeout=support.TIMEOUT, env=support.environment())
    assert (done.returncode, done.stderr.decode()) == (1, line("standard input: Connection reset by peer"))


@pytest.mark.parametrize("begun", [b"", b"0008pi"])
def test_a_silent_server_is_given_up_at_the_deadline(client_command: Command, sock_path: str, begun: bytes) -> None:
    def script(connection: socket.socket) -> None:
        read_message(connection)
        connection.sendall(begun)
        silent(connection)

    with serving(sock_path, script):
        code, output, said = run(client_command, "call", sock_path, "x", "--timeout", "0.2")
    progress = ipcsrv.errors.Progress.RESPONSE_BEGUN if begun else ipcsrv.errors.Progress.REQUEST_SENT
    assert (code, output, said) == (4, b"", line(ipcsrv.CallTimeout(sock_path, 0.2, progress)))


def test_input_that_does_not_come_is_given_up(client_command: Command, sock_path: str) -> None:
    with serving(sock_path, silent), client(client_command, "call", sock_path, "--timeout", "0.2") as process:
        assert process.wait(support.TIMEOUT) == 4
        assert process.stderr is not None
        assert process.stderr.read().decode() == line(ipcsrv.CallTimeout(sock_path, 0.2))


@pytest.mark.parametrize("command", ["call", "is-active"])
def test_a_path_without_a_server_says_why(client_command: Command, sock_dir: str, command: str) -> None:
    plain, stale, datagrams = (os.path.join(sock_dir, name) for name in ("plain", "stale", "datagrams"))
    Path(plain).touch()
    for path, kind in ((stale, socket.SOCK_STREAM), (datagrams, socket.SOCK_DGRAM)):
        with socket.socket(socket.AF_UNIX, kind) as listener:
            listener.bind(path)
    loop = os.path.join(sock_dir, "loop")
    os.symlink(loop, loop)
    names = ("none", "plain/below", "f" * 200, "a\n\x1b\xe9", "\u061c\ue000", "d/" * 2100 + "s")
    strange = [os.fsdecode(name) for name in (b"\xff\xc3", b"\xed\xb3\xbf")]
    absent = [os.path.join(sock_dir, name) for name in (*names, *strange)]
    for path in (*absent, stale, sock_dir, plain, datagrams, loop, ""):
        with pytest.raises(ipcsrv.IpcError) as caught:
            ipcsrv.connect(path, 0.05)
        got = run(client_command, command, path, *(["--timeout", "0.05"] if command == "call" else []))
        assert (path, *got) == (path, caught.value.exit_code, b"", line(caught.value))


@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="long paths go through /proc")
def test_a_path_of_any_length_is_reached(client_command: Command, sock_dir: str) -> None:
    folder = os.path.join(sock_dir, *["d" * 60] * 4)
    os.makedirs(folder)
    with serving(os.path.join(folder, "s"), echo):
        assert run(client_command, "call", os.path.join(folder, "s"), "x") == (0, b"x", "")


def test_a_starting_server_is_waited_for(client_command: Command, sock_path: str) -> None:
    """A socket that refuses is tried for a second."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sock_path)
        with client(client_command, "call", sock_path, "x") as process:
            time.sleep(0.1)  # at least one attempt is refused
            listener.listen()
            connection = listener.accept()[0]
            read_message(connection)
            connection.sendall(message(b"at last"))
            assert process.communicate(timeout=support.TIMEOUT) == (b"at last", b"")
            connection.close()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_server_of_another_user_is_sent_nothing(sanitized_client: Path, sock_dir: str, sock_path: str) -> None:
    """Of the native client; the Python one has tests of its own."""
    native = shutil.copy(sanitized_client, sock_dir)
    drop = "import os, sys; os.setuid(65533); os.execv(sys.argv[1], sys.argv[1:])"
    serve = f"""
import os, socket, sys
os.setuid({NOBODY})
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind({sock_path!r})
    listener.listen()
    os.chmod({sock_path!r}, 0o777)
    print(flush=True)
    sys.exit(listener.accept()[0].recv(9) != b"")
"""
    os.chmod(sock_dir, 0o777)
    with subprocess.Popen([sys.executable, "-c", serve], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        error = ipcsrv.errors.Untrusted(sock_path, ipcsrv.Peer(1, NOBODY, 0), "you or root")
        assert run([sys.executable, "-c", drop, native], "call", sock_path, "x") == (5, b"", line(error))
        assert process.wait(support.TIMEOUT) == 0


def endless(connection: socket.socket) -> None:
    """Read a request and never end the response."""
    read_message(connection)
    while True:
        connection.sendall(packet(b"and so on"))


def test_ctrl_c_is_quiet_and_exits_130(client_command: Command, sock_path: str) -> None:
    with serving(sock_path, endless), client(client_command, "call", sock_path, "x") as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert (process.communicate(timeout=support.TIMEOUT)[1], process.returncode) == (b"", 130)


def test_an_ignored_ctrl_c_stays_ignored(client_command: Command, sock_path: str) -> None:
    """As in a background job of a shell without job control."""
    def interrupting(connection: socket.socket) -> None:
        read_message(connection)
        process.send_signal(signal.SIGINT)
        connection.sendall(message(b"done"))

    shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    with serving(sock_path, interrupting), client([*shell, *client_command], "call", sock_path, "x") as process:
        assert (*process.communicate(timeout=support.TIMEOUT), process.returncode) == (b"done", b"", 0)


@pytest.mark.parametrize("command", ["call", "is-active", "ping"])
def test_a_network_address_is_refused_by_all(client_command: Command, command: str) -> None:
    for address in ("localhost:80", "http://x/y", ":80", "unix:/x"):
        code, output, said = run(client_command, command, address)
        assert (code, output) == (2, b"")
        assert "is a network address; " in said or "PATH is a path without `unix:`; use /x" in said


def test_a_reader_that_goes_away_ends_the_call(client_command: Command, sock_path: str) -> None:
    with serving(sock_path, endless), client(client_command, "call", sock_path, "x") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert (process.wait(support.TIMEOUT), process.stderr.read()) == (141, b"")


def test_what_is_not_plain_is_the_python_commands(sanitized_client: Path, sock_path: str) -> None:
    native = [str(sanitized_client)]
    assert run(native, "--version") == (0, f"ipcsrv {ipcsrv.__version__}\n".encode(), "")
    with serving(sock_path, echo):
        assert run(native, "call", sock_path, "--timeout", "20s", "--", "-x") == (0, b"-x", "")
    assert run(native, "call")[0] == 2


def test_autostart_refuses_another_handler(client_command: Command, server: ServerFactory) -> None:
    running = server("handlers_for_tests:echo")
    code, output, said = run(client_command, "call", running.path, "x", "--autostart", "handlers_for_tests:pid")
    assert (code, output) == (6, b"")
    assert "its handler is handlers_for_tests:echo, not handlers_for_tests:pid" in said


@pytest.mark.parametrize("name", ["words", "wörds"])  # JSON escapes the second
def test_autostart_runs_the_current_code(
    client_command: Command, sock_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    try:
        for word in ("one", "another"):
            (tmp_path / f"{name}.py").write_text(f"def say(request):\n    return b'{word}'\n")
            for _ in range(2):
                got = run(client_command, "call", sock_path, "x", "--autostart", f"{name}:say")
                assert got == (0, word.encode(), "")
    finally:
        support.run_command("stop", sock_path)


def test_autostart_starts_no_python_for_a_current_server(
    sanitized_client: Path, server: ServerFactory, tmp_path: Path
) -> None:
    alone = shutil.copy(sanitized_client, tmp_path)
    call = ["env", f"PATH={tmp_path}", alone, "call", server("handlers_for_tests:upper").path, "x", "--autostart"]
    assert run(call, "handlers_for_tests:upper") == (0, b"X", "")
    assert run(call, "handlers_for_tests:echo")[0] == 1


def test_ping_asks_the_control_socket(sanitized_client: Path, server: ServerFactory) -> None:
    running = server()
    assert run([str(sanitized_client)], "ping", running.path) == (0, b"", "")


@pytest.mark.parametrize(
    ("closed", "output"), [("<&-", b"hi\n"), (">&-", b""), ("2>&-", b"hi\n"), ("<&- >&- 2>&-", b"")]
)
def test_a_closed_standard_stream_is_not_the_connection(
    client_command: Command, sock_path: str, closed: str, output: bytes
) -> None:
    """What is printed must not go to the server, nor be taken from it."""
    asked = []

    def script(connection: socket.socket) -> None:
        asked.append(read_message(connection))
        connection.sendall(message(b"hi\n"))
        asked.append(connection.recv(100))

    with serving(sock_path, script):
        shell = ["sh", "-c", f'"$@" {closed}', "sh", *client_command, "call", sock_path, "ask"]
        assert run(shell) == (0, output, "")
        support.wait_until(lambda: len(asked) == 2)
    assert asked == [b"ask", b""]


def test_a_request_from_a_closed_standard_input_is_refused(client_command: Command, sock_path: str) -> None:
    with serving(sock_path, echo):
        shell = ["sh", "-c", '"$@" <&-', "sh", *client_command, "call", sock_path]
        assert run(shell) == (2, b"", line("standard input is closed; give the request as an argument"))


def test_an_error_is_not_written_to_standard_output(client_command: Command, sock_path: str) -> None:
    shell = ["sh", "-c", '"$@" 2>&-', "sh", *client_command, "call", sock_path, "ask"]
    assert run(shell) == (3, b"", "")


def test_non_blocking_standard_streams_are_waited_for(client_command: Command, sock_path: str) -> None:
    """A terminal or pipe is shared with other programs, any of which may have made it non-blocking."""
    data = bytes(range(256)) * 8000
    (reads, asks), (gets, writes) = os.pipe(), os.pipe()
    os.set_blocking(reads, False)
    os.set_blocking(writes, False)
    with serving(sock_path, echo):
        command = [*client_command, "call", sock_path]
        with subprocess.Popen(command, stdin=reads, stdout=writes, env=support.environment()) as process:
            os.close(reads)
            os.close(writes)
            with open(gets, "rb") as output, open(asks, "wb", buffering=0) as request:
                sender = threading.Thread(target=lambda: (request.write(data), request.close()))
                sender.start()
                assert output.read() == data
                sender.join(support.TIMEOUT)
            assert process.wait(support.TIMEOUT) == 0


def test_a_response_beyond_the_size_limit_of_files_is_an_error(
    client_command: Command, sock_path: str, tmp_path: Path
) -> None:
    with serving(sock_path, echo):
        limited = 'ulimit -f 1; head -c 100000 /dev/zero | "$@" > "$0"'
        code, _, said = run(["sh", "-c", limited, str(tmp_path / "output"), *client_command, "call", sock_path])
    assert (code, said) == (1, line("File too large"))
