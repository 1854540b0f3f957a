"""The long versions of the tests of faults: `python tests/soak/hurt.py NAME...` or `all`; each says what it measured.

Run from the root of the project, with the interpreter that has the test tools.  See README.md for what each must reach.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [os.fspath(TESTS), os.fspath(TESTS.parent)]

import support  # noqa: E402
from faults import kills, load, mixture  # noqa: E402

import ipcsrv  # noqa: E402
from ipcsrv.protocol import pktline  # noqa: E402

SECONDS = float(os.environ.get("SOAK_SECONDS", "10"))
results: list[tuple[str, bool, str]] = []


@contextlib.contextmanager
def served(target: str, *options: str) -> Iterator[support.RunningServer]:
    """A server in a folder of its own, of which nothing must be left."""
    folder = tempfile.mkdtemp(prefix="i-")
    os.environ["PYTHONPATH"] = os.fspath(TESTS / "faults")
    running = support.RunningServer(os.path.join(folder, "s"), target, *options).wait_until_listening()
    try:
        yield running
    finally:
        running.clean_up()
        shutil.rmtree(folder)


def record(name: str, good: bool, text: str) -> None:
    """Print a result, and remember it for the exit status."""
    results.append((name, good, text))
    print(f"{'ok  ' if good else 'FAIL'} {name}: {text}", flush=True)


# -- processes that die -----------------------------------------------------------------------------------------------


def kill_workers() -> None:
    """kill -9 of a random worker every 50 ms, with 8 keeping and 8 connecting clients."""
    with served("handlers_for_tests:echo", "--workers", "4") as running:  # noqa: SIM117
        with load.Load(running.path) as clients:
            killed = load.kill_workers(running, SECONDS)
            over = time.monotonic()
            load.wait_until(lambda: load.is_whole(running), "the pool is whole")
            seconds = time.monotonic() - over
    failed = len(clients.failures) + len(clients.refusals)
    good = failed <= killed and not clients.wrong and clients.slowest_failure < 1 and seconds < 1
    record("kill-workers", good, f"{killed} kills in {SECONDS:g} s; {clients.report()}; whole after {seconds:.2f} s")


def mixed_kills() -> None:
    """The same beside half uploads, slow downloads, pipelining clients and requests of 10 MB, on 2 workers."""
    timeouts = ("--read-timeout", "120", "--write-timeout", "120")
    with served("handlers_for_tests:echo", "--workers", "2", *timeouts) as running:
        halves, halves_left, downloads, body = unfinished(running.path, 100, 40)
        with load.Load(running.path, keeping=3, connecting=3) as clients, load.Load(  # noqa: SIM117
                running.path, keeping=1, connecting=1, size=lambda count: 10_000_000 * (count % 2)) as large:
            with pipelining(running.path) as lost:
                killed = load.kill_workers(running, SECONDS)
                load.wait_until(lambda: load.is_whole(running), "the pool is whole")
        whole = finish(halves, halves_left, downloads, body)
    failed = sum(len(each.failures) + len(each.refusals) for each in (clients, large)) + len(lost)
    wrong = clients.wrong + large.wrong
    record("mixed-kills", failed <= killed and whole == 140 and not wrong,
           f"{killed} kills in {SECONDS:g} s; {clients.answered + large.answered} answered, {wrong} wrong, {failed} "
           f"failed ({len(lost)} of pipelining clients); stalled exchanges completed {whole} of 140")


def unfinished(path: str, uploads: int, readers: int) -> tuple[list[socket.socket], bytes, list[socket.socket], bytes]:
    """Clients in the middle of an upload of 1 MB, what they lack, those that do not read 10 MB, and these bytes."""
    upload = b"".join(load.packet(b"u" * 50_000) for _ in range(20)) + b"0000"
    cut = len(upload) // 2
    body = b"d" * 10_000_000
    halves = [load.raw(path, upload[:cut]) for _ in range(uploads)]
    downloads = [load.raw(path) for _ in range(readers)]
    for client in downloads:
        client.settimeout(60)
        for buffer in pktline.encode(body):
            client.sendall(buffer)
    return halves, upload[cut:], downloads, body


def finish(halves: list[socket.socket], rest: bytes, downloads: list[socket.socket], body: bytes) -> int:
    """Complete them; returns how many got the right answer."""
    whole = 0
    for client in halves:
        with contextlib.suppress(OSError):
            client.sendall(rest)
            whole += read_response(client) == b"u" * 1_000_000
    for client in downloads:
        with contextlib.suppress(OSError):
            whole += read_response(client) == body
    for client in halves + downloads:
        client.close()
    return whole


def read_response(client: socket.socket) -> bytes | None:
    """Read one response; None if the connection ends before it does."""
    decoder = pktline.Decoder()
    client.settimeout(30)
    while data := client.recv(1 << 18):
        decoder.feed(data)
        if (message := decoder.next_message()) is not None:
            return message
    return None


@contextlib.contextmanager
def pipelining(path: str) -> Iterator[list[str]]:
    """Two clients with 8 requests in flight; yields the list of connections that they lost."""
    over, lost = threading.Event(), []

    def client() -> None:
        while not over.is_set():
            with load.raw(path) as link:
                try:
                    while not over.is_set():
                        link.sendall(load.message(b"x") * 8)
                        received = 0
                        while received < 8 * len(load.message(b"x")):
                            data = link.recv(4096)
                            if not data or b"ERR " in data:
                                raise ConnectionError(data)
                            received += len(data)
                except OSError as error:
                    lost.append(str(error))

    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield lost
    over.set()
    for thread in threads:
        thread.join()


def masters() -> None:
    """kill -9 of the master under load, 50 times; the next start is at once on the same path."""
    rounds, slowest_end, slowest_start, failures = 50, 0.0, 0.0, 0
    folder = tempfile.mkdtemp(prefix="i-")
    for _ in range(rounds):
        began = time.monotonic()
        running = support.RunningServer(os.path.join(folder, "s"), "handlers_for_tests:slow", "--workers", "2")
        running.wait_until_listening()
        slowest_start = max(slowest_start, time.monotonic() - began)
        with load.Load(running.path, keeping=3, connecting=3, size=lambda _: 1, timeout=1.0, request=b"5") as clients:
            processes = running.processes()
            running.kill()
            killed = time.monotonic()
            left = support.wait_gone(processes, 3.0)
            slowest_end = max(slowest_end, time.monotonic() - killed)
            clients.stop_asking()
        failures += bool(left) or bool(clients.wrong) or clients.slowest_failure > 1
        running.output.rest()
    shutil.rmtree(folder)
    record("masters", not failures and slowest_end < 1.0,
           f"{rounds} kills; last process gone after {slowest_end:.2f} s at most; slowest start {slowest_start:.2f} s; "
           f"rounds that failed {failures}")


def kills_anywhere() -> None:
    """Kill any subset of processes at every step of start, reload, scale and drain, with every start method."""
    seed, rounds, failed = os.environ.get("SOAK_SEED", str(random.randrange(1 << 32))), 0, 0
    rng, until = random.Random(seed), time.monotonic() + 18 * SECONDS
    while time.monotonic() < until:
        method, step = rng.choice(["fork", "forkserver", "spawn"]), rng.choice(kills.STEPS)
        with begun() as start:
            try:
                kills.survive(start, method, step, rng, stop_template=method != "spawn" and rng.random() < 0.3)
            except AssertionError as error:
                failed += 1
                print(f"{method}, {step}: {error}", flush=True)
        rounds += 1
    record("kills-anywhere", not failed, f"{rounds} servers, seed {seed}; {failed} did not end as they should")


def mixture_of_all() -> None:
    """Every kind of client and fault at once, with every start method, for twelve times SOAK_SECONDS."""
    seed, rounds, failed = os.environ.get("SOAK_SEED", str(random.randrange(1 << 32))), 0, 0
    os.environ["PYTHONPATH"] = os.fspath(TESTS / "faults")
    until = time.monotonic() + 12 * SECONDS
    while time.monotonic() < until:
        for method in ("fork", "forkserver", "spawn"):
            folder = tempfile.mkdtemp(prefix="i-")
            try:
                mixture.survive(Path(folder), method, f"{seed}-{rounds}", SECONDS)
            except AssertionError as error:
                failed += 1
                print(f"{method}, {seed}-{rounds}: {error}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
        rounds += 1
    record("mixture", not failed, f"{3 * rounds} servers, seed {seed}; {failed} with something that must not be")


@contextlib.contextmanager
def begun() -> Iterator[kills.Start]:
    """What starts a server in a folder of its own, and does not wait for it; no process of it is left."""
    folder = tempfile.mkdtemp(prefix="i-")
    os.environ["PYTHONPATH"] = os.fspath(TESTS / "faults")
    made: list[support.RunningServer] = []

    def start(target: str, *options: str) -> support.RunningServer:
        made.append(support.RunningServer(os.path.join(folder, "s"), target, *options))
        return made[0]

    try:
        yield start
    finally:
        for pid in set().union(*(running.processes() for running in made)):
            with contextlib.suppress(ProcessLookupError):
                support.kill(pid)
        for running in made:
            running.process.wait(support.TIMEOUT)
        shutil.rmtree(folder)


# -- stop, reload, scale ----------------------------------------------------------------------------------------------


def stops() -> None:
    """SIGTERM with 200 connections queued, 10 times; every one is answered and the next start is at once."""
    wrong, rounds = 0, 10
    for _ in range(rounds):
        with served("handlers_for_tests:slow", "--workers", "2") as running:
            clients = [load.raw(running.path, load.message(b"5")) for _ in range(200)]
            running.signal(signal.SIGTERM)
            wrong += sum(client.recv(9) != load.message(b"5") for client in clients)
            wrong += running.wait() != 0
            for client in clients:
                client.close()
            again = support.RunningServer(running.path, "handlers_for_tests:echo").wait_until_listening()
            wrong += again.call(b"x") != b"x"
            again.clean_up()
    record("stops", not wrong, f"{rounds} stops with 200 queued each; not answered {wrong}")


def stops_under_load() -> None:
    """SIGTERM under the load of 16 clients, 30 times: no request that was sent is lost."""
    rounds, failed, stopping, answered = 30, 0, 0, 0
    for _ in range(rounds):
        with served("handlers_for_tests:echo", "--workers", "2") as running:
            with load.Load(running.path, timeout=1.0) as clients:
                running.signal(signal.SIGTERM)
                running.wait()
                clients.stop_asking()
            failed += len(clients.failures) + clients.wrong
            stopping += sum(isinstance(error, ipcsrv.ServerStopping) for error, _ in clients.refusals)
            answered += clients.answered
    record("stops-under-load", not failed, f"{rounds} stops; {answered} answered, {failed} lost, "
           f"{stopping} told `ERR stopping` for a request that had been sent")


def reloads() -> None:
    """SIGHUP every 200 ms under load, then SIGTTIN and SIGTTOU the same."""
    for name, signals in (("reloads", [signal.SIGHUP]),
                          ("scaling", [signal.SIGTTIN, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTTOU])):
        with served("handlers_for_tests:echo", "--workers", "2") as running:
            with load.Load(running.path) as clients:
                until, count = time.monotonic() + SECONDS, 0
                while time.monotonic() < until:
                    running.signal(signals[count % len(signals)])
                    count += 1
                    time.sleep(0.2)
                load.wait_until(lambda: load.is_whole(running), "the pool is whole")
            generation = running.status()["generation"]
        bad = len(clients.failures) + len(clients.refusals) + clients.wrong
        record(name, not bad, f"{count} signals, generation {generation}; {clients.report()}")


# -- crowds -----------------------------------------------------------------------------------------------------------


def stalled() -> None:
    """1,000 silent, 200 in half a header, 50 in the middle of 1 MB, 50 that do not read 1 MB, on 2 workers."""
    timeouts = ("--read-timeout", "12", "--write-timeout", "12")
    with served("handlers_for_tests:echo", "--workers", "2", *timeouts) as running:
        quiet = measured(running.path)
        silent = [load.raw(running.path) for _ in range(1000)]
        header = [load.raw(running.path, b"00") for _ in range(200)]
        middle = [load.raw(running.path, load.packet(b"x" * 60000) * 2) for _ in range(50)]
        deaf = [load.raw(running.path) for _ in range(50)]
        for client in deaf:
            load.fill(client, load.packet(b"y" * 65000) * 16 + b"0000")
        crowded = measured(running.path)
        gone = 0
        for client in header + middle:
            gone += b"ERR timeout" in load.rest_of(client)
        load.wait_until(lambda: not any(worker["suspended"] for worker in load.workers_of(running)), "no stream waits")
        again = measured(running.path)
        for client in silent + header + middle + deaf:
            client.close()
    base = max(quiet, again)
    record("stalled", crowded <= 2 * base and gone == 250,
           f"p99 of 4 healthy clients {quiet * 1e3:.2f} ms before, {crowded * 1e3:.2f} ms with the crowd, "
           f"{again * 1e3:.2f} ms after ({crowded / base:.2f} times); stalled ones told in time {gone} of 250")


def unread() -> None:
    """100 half uploads of 1 MB and 40 clients that do not read their 10 MB, on 2 workers: memory, and other clients."""
    timeouts = ("--read-timeout", "120", "--write-timeout", "120")
    with served("handlers_for_tests:echo", "--workers", "2", *timeouts) as running:
        before = {worker["pid"]: worker["rss_bytes"] for worker in load.workers_of(running)}
        quiet = measured(running.path)
        crowd = unfinished(running.path, 100, 40)
        load.wait_until(lambda: running.status()["stalled"] == 140, "all of them have stalled")
        crowded = measured(running.path)
        grown = max(worker["rss_bytes"] - before[worker["pid"]] for worker in load.workers_of(running))
        whole = finish(*crowd)
        again = measured(running.path)
    base = max(quiet, again)
    record("unread", grown < 10_000_000 and crowded <= 1.5 * base and whole == 140,
           f"a worker has grown by {grown / 1e6:.1f} MB at most; p99 of 4 other clients {quiet * 1e3:.2f} ms before, "
           f"{crowded * 1e3:.2f} ms beside them, {again * 1e3:.2f} ms after; completed {whole} of 140")


def measured(path: str, seconds: float = 3.0) -> float:
    """The 99th percentile of healthy clients, who pause a little between requests."""
    with load.Load(path, keeping=2, connecting=2, pause=0.002) as clients:
        time.sleep(seconds)
    assert not clients.failures, clients.report()
    return load.percentile([second for book in clients.books for second in book.seconds], 0.99)


def burst() -> None:
    """5,000 connections at once against 2 workers and a handler of 20 ms."""
    program = ("import sys; sys.path[:0] = sys.argv[3:]; from faults import load; "
               "clients = [load.raw(sys.argv[1], load.message(b'20'), timeout=None) for _ in range(int(sys.argv[2]))]; "
               "print(sum(client.recv(10) == load.message(b'20') for client in clients))")
    with served("handlers_for_tests:slow", "--workers", "2") as running:
        began = time.monotonic()
        command = [sys.executable, "-c", program, running.path, "1250", os.fspath(TESTS), os.fspath(TESTS.parent)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
        answered = sum(int(process.communicate()[0]) for process in processes)
        seconds = time.monotonic() - began
    record("burst", answered == 5000, f"{answered} of 5000 answered in {seconds:.1f} s (the handler alone takes 50 s)")


def descriptors() -> None:
    """RLIMIT_NOFILE of 64 with 500 clients who all stay."""
    with load.started_by('ulimit -n 64; exec "$@"'):
        context = served("handlers_for_tests:slow", "--workers", "2")
        running = context.__enter__()
    began = time.monotonic()
    clients = [load.raw(running.path) for _ in range(500)]
    for client in clients:
        client.sendall(load.message(b"5"))
    answered = sum(client.recv(9) == load.message(b"5") for client in clients)
    seconds = time.monotonic() - began
    for client in clients:
        client.close()
    alive = running.call(b"5") == b"5" and load.is_whole(running)
    context.__exit__(None, None, None)
    said = str(running.output).count("cannot take connections for now")
    record("descriptors", answered == 500 and alive and said <= 1,
           f"{answered} of 500 answered in {seconds:.1f} s; said {said} times; pool whole: {alive}")


# -- constancy --------------------------------------------------------------------------------------------------------


def nobody_is_held(running: support.RunningServer) -> bool:
    """Whether no client is parked, nor silent in a worker's hands."""
    found = running.status()
    return not found["idle"] and not any(worker["suspended"] for worker in found["workers"])


def memory() -> None:
    """1,000,000 small requests (SOAK_REQUESTS): memory and descriptors of every process as after the first 10,000."""
    total = int(os.environ.get("SOAK_REQUESTS", "1000000"))
    with served("handlers_for_tests:echo", "--workers", "2") as running:
        ask(running.path, 10_000)
        load.wait_until(lambda: nobody_is_held(running), "the clients have gone")
        before = {pid: (load.pss(pid), len(support.descriptors(pid))) for pid in running.processes()}
        began = time.monotonic()
        ask(running.path, total)
        seconds = time.monotonic() - began
        load.wait_until(lambda: nobody_is_held(running), "the clients have gone")
        after = {pid: (load.pss(pid), len(support.descriptors(pid))) for pid in running.processes()}
    growth = {pid: after[pid][0] / before[pid][0] - 1 for pid in before if pid in after}
    constant = all(after[pid][1] == before[pid][1] for pid in before if pid in after)
    record("memory", set(before) == set(after) and max(growth.values()) < 0.05 and constant,
           f"{total} requests in {seconds:.0f} s; PSS grew by at most {max(growth.values()):.1%}, in all "
           f"{sum(pss for pss, _ in before.values()) >> 10} -> {sum(pss for pss, _ in after.values()) >> 10} KiB; "
           f"descriptors constant: {constant}")


def ask(path: str, count: int) -> None:
    """So many small requests from four processes, half of them on kept connections with 16 requests in flight."""
    program = """
import sys; sys.path[:0] = sys.argv[4:]
import ipcsrv, threading
from faults import load
path, count, keep = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1"
if keep:
    client, data = load.raw(path), load.message(b"x" * 40) * 16
    for _ in range(count // 16):
        client.sendall(data)
        left = len(data)
        while left:
            left -= len(client.recv(left))
else:
    for _ in range(count):
        ipcsrv.call(path, b"x" * 40)
"""
    tests = [os.fspath(TESTS), os.fspath(TESTS.parent)]
    shares = [(count * 9 // 20, "1"), (count * 9 // 20, "1"), (count // 20, "0"), (count // 20, "0")]
    processes = [subprocess.Popen([sys.executable, "-c", program, path, str(share), keep, *tests])
                 for share, keep in shares]
    assert [process.wait() for process in processes] == [0] * 4


def idle() -> None:
    """An idle server with 4 workers for 30 s: system calls a second, of all its processes together."""
    seconds = float(os.environ.get("SOAK_IDLE", "30"))
    with served("handlers_for_tests:echo", "--workers", "4") as running:
        running.call(b"x")
        time.sleep(1)
        report = tempfile.NamedTemporaryFile(suffix=".strace")  # noqa: SIM115 - it goes with the function
        pids = [argument for pid in running.processes() for argument in ("-p", str(pid))]
        tracer = subprocess.Popen(["strace", "-c", "-f", "-o", report.name, *pids], stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        tracer.send_signal(signal.SIGINT)
        tracer.wait()
        lines = Path(report.name).read_text().splitlines()
        # % time, seconds, usecs/call, calls, [errors,] "total"; nothing at all where there was no call
        total = sum(int(line.split()[3]) for line in lines if line.rstrip().endswith("total"))
    record("idle", total / seconds < 1, f"{total} system calls in {seconds:g} s ({total / seconds:.2f} a second)")


# -- bad input --------------------------------------------------------------------------------------------------------


def garbage() -> None:
    """100,000 random, truncated and mutated messages (SOAK_CASES) against a running server."""
    from faults.test_exhaustion import nonsense

    cases, rng = int(os.environ.get("SOAK_CASES", "100000")), random.Random()
    with served("handlers_for_tests:echo", "--workers", "2", "--max-request-size", "1MB", "--read-timeout", "1",
                "--log-level", "error") as running:
        workers = load.worker_pids(running)
        before = sum(map(load.pss, running.processes()))
        for number in range(cases):
            client = load.raw(running.path)
            with contextlib.suppress(OSError):
                client.sendall(nonsense(rng))
                if number % 2:
                    client.shutdown(socket.SHUT_WR)
                    load.rest_of(client)
            client.close()
        well = running.call(b"well") == b"well"
        same = load.worker_pids(running) == workers
        after = sum(map(load.pss, running.processes()))
    record("garbage", well and same and after < before * 1.2,
           f"{cases} cases; no worker died: {same}; PSS {before >> 10} -> {after >> 10} KiB")


def flood() -> None:
    """A client that would send 10 GB in the largest packets, with max_request_size at 1 MB."""
    with served("handlers_for_tests:echo", "--workers", "1", "--max-request-size", "1MB") as running:
        pid = load.worker_pids(running).pop()
        running.call(b"x" * 900_000)
        before = load.peak_rss(pid)
        client = load.raw(running.path)
        sent, piece = 0, load.packet(b"x" * 65516)
        with contextlib.suppress(ConnectionError):
            while sent < 10**10:
                sent += client.send(piece)
        told = b"ERR too-large" in load.rest_of(client)
        client.close()
        grown = load.peak_rss(pid) - before
    record("flood", told and grown < 3_000_000,
           f"cut off after {sent} bytes had been sent; told: {told}; the worker's peak grew by {grown >> 10} KiB "
           "over that of one request of 0.9 MB")


SOAKS: dict[str, Callable[[], None]] = {
    soak.__name__.replace("_", "-"): soak
    for soak in (kill_workers, mixed_kills, masters, kills_anywhere, mixture_of_all, stops, stops_under_load, reloads,
                 stalled, unread, burst, descriptors, memory, idle, garbage, flood)
}


def main() -> int:
    """Run the soaks that are named."""
    names = list(SOAKS) if sys.argv[1:] == ["all"] else sys.argv[1:]
    if not names or not set(names) <= set(SOAKS):
        print(f"{__doc__}\nNAME: {', '.join(SOAKS)}")
        return 2
    for name in names:
        limit = threading.Timer(600, lambda: os._exit(3))  # no soak takes so long: it hangs
        limit.daemon = True
        limit.start()
        SOAKS[name]()
        limit.cancel()
    return 0 if all(good for _, good, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
