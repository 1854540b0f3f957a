"""What is measured: each workload starts its contestants, drives them in interleaved rounds, returns a `Result`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import clients, coldstart
from .contestants import Contestant, bare_c, ipcsrv, peers, running, systemd_socket
from .measure import Figures, Ratio, geometric_mean, ratio, rounds

Drive = Callable[[str, Contestant], float]
CLIENT_COUNTS = (1, 2, 4, 8)
MEGABYTES_10 = 10_000_000


@dataclass(frozen=True)
class Plan:
    """How long: rounds of so many seconds for each contestant. programs: the C programs by name, or none."""

    rounds: int
    seconds: float
    programs: dict[str, Path]
    folder: Path


@dataclass
class Result:
    """One row or block of the table: the figures by contestant, and the ratios that the targets are about."""

    title: str
    unit: str
    figures: Figures = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)  # figures that are no ratio, by the target's name
    notes: list[str] = field(default_factory=list)


# -- driving ----------------------------------------------------------------------------------------------------------


def c_load(plan: Plan, path: str, mode: str, count: int, *more: object) -> dict[str, float]:
    """What `c/load.c` reports; from Python where there is no compiler. A failed request ends the benchmark."""
    if "load" in plan.programs:
        command = [str(plan.programs["load"]), path, mode, str(count), str(plan.seconds), *map(str, more)]
    else:
        command = [sys.executable, "-m", "benchmarks.clients", "ipc", path, mode, str(count), str(plan.seconds)]
    report: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
    return report


def rate(report: dict[str, float]) -> float:
    return report["requests"] / report["seconds"]


def drive(plan: Plan, contestant: Contestant, path: str, mode: str, count: int) -> float:
    """Requests a second, from the C load where the protocol allows it, else from the peer's own library."""
    if contestant.protocol == "ipc" and "load" in plan.programs:
        return rate(c_load(plan, path, mode, count))
    if contestant.protocol == "http" and "load" in plan.programs:
        request = plan.folder / "request.http"
        request.write_bytes(clients.HTTP)
        return rate(c_load(plan, path, mode, count, 0, 0, request, "pong"))
    return drive_in_python(plan, contestant, path, mode, count)


def drive_in_python(plan: Plan, contestant: Contestant, path: str, mode: str, count: int) -> float:
    command = [sys.executable, "-m", "benchmarks.clients", contestant.protocol, path, mode, str(count)]
    output = subprocess.run([*command, str(plan.seconds)], check=True, capture_output=True, timeout=120).stdout
    return rate(json.loads(output))


SAME_SHAPE = "C of the same shape"


def beside_c(plan: Plan, ours: Contestant, bare: Contestant | None, work: Drive, *more: Contestant | None) -> Figures:
    """All in interleaved rounds; ours alone if there is no compiler."""
    both = [each for each in (bare, *more, ours) if each is not None]
    with running(both) as paths:
        return rounds(plan.rounds, {each.name: lambda each=each: work(paths[each.name], each) for each in both})


def bare(plan: Plan, mode: str, *numbers: int, processes: int = 2, name: str = "bare C") -> Contestant | None:
    program = plan.programs.get("server")
    return None if program is None else bare_c(program, mode, *numbers, processes=processes, name=name)


def ratio_to_c(figures: Figures) -> dict[str, Ratio]:
    return {name: ratio(figures["ipcsrv"], figures[name]) for name in ("bare C", SAME_SHAPE) if name in figures}


# -- rates ------------------------------------------------------------------------------------------------------------


def connecting(plan: Plan) -> list[Result]:
    """One connection per request, 1 to 8 clients, beside the bare accept loop and beside C of the same shape."""
    results = []
    for count in CLIENT_COUNTS:
        work: Drive = lambda path, _, count=count: rate(c_load(plan, path, "connect", count))  # noqa: E731
        figures = beside_c(plan, ipcsrv(), bare(plan, "once"), work, bare(plan, "pass", name=SAME_SHAPE))
        results.append(Result(f"connect per request, {count} clients", "requests/s", figures, ratio_to_c(figures)))
    names = [name for name in ("bare C", SAME_SHAPE) if all(name in result.ratios for result in results)]
    means = {name: geometric_mean([result.ratios[name] for result in results]) for name in names}
    if means:
        results.append(Result("connect per request, geometric mean", "", ratios=means))
    return results


def start_methods(plan: Plan) -> list[Result]:
    """One connection per request, 2 clients: `spawn`, and a listener from systemd, beside `fork`."""
    work: Drive = lambda path, _: rate(c_load(plan, path, "connect", 2))  # noqa: E731
    methods = {name: ipcsrv("pong", 2, name, "--start-method", name) for name in ("fork", "spawn")}
    methods["systemd's socket"] = systemd_socket()
    with running(list(methods.values())) as paths:
        figures = rounds(plan.rounds, {name: lambda name=name: work(paths[name], methods[name]) for name in methods})
    return [Result("connect per request, by start method", "requests/s", figures,
                   {f"fork, {name}": ratio(figures[name], figures["fork"]) for name in methods if name != "fork"})]


def kept(plan: Plan) -> list[Result]:
    """One connection a client: one request at a time, and 16 in flight."""
    results = []
    cases = (("keep-alive, 1 client", "keep", 1, ()), ("keep-alive, 2 clients", "keep", 2, ()),
             ("pipelined 16 deep, 2 clients", "pipeline", 2, (0, 16)))
    for title, mode, count, more in cases:
        if mode == "pipeline" and "load" not in plan.programs:
            continue
        work: Drive = lambda path, _, mode=mode, count=count, more=more: (  # noqa: E731
            rate(c_load(plan, path, mode, count, *more)))
        figures = beside_c(plan, ipcsrv(), bare(plan, "keep"), work)
        results.append(Result(title, "requests/s", figures, ratio_to_c(figures)))
    return results


def beside_peers(plan: Plan) -> list[Result]:
    """Every peer, by the C load where it can, 1 to 8 clients connecting, 2 keeping their connection."""
    contestants = [ipcsrv(), *peers()]
    results = []
    with running(contestants) as paths:
        for count in CLIENT_COUNTS:
            results.append(_one_against_all(plan, contestants, paths, "connect", count))
        results.append(_one_against_all(plan, contestants, paths, "keep", 2))
    best = [max_ratio(result) for result in results[:-1]]
    results.append(Result("connecting, all counts, against the best peer of each", "",
                          ratios={"best peer": geometric_mean(best)}))
    return results


def _one_against_all(plan: Plan, contestants: list[Contestant], paths: dict[str, str], mode: str,
                     count: int) -> Result:
    able = [each for each in contestants if (each.keeps if mode == "keep" else each.connects)]
    figures = rounds(plan.rounds, {
        each.name: lambda each=each: drive(plan, each, paths[each.name], mode, count) for each in able})
    ratios = {name: ratio(figures["ipcsrv"], their) for name, their in figures.items() if name != "ipcsrv"}
    verb = "connecting" if mode == "connect" else "keep-alive"
    return Result(f"{verb} beside the peers, {count} clients", "requests/s", figures, ratios)


def max_ratio(result: Result) -> Ratio:
    """Against the peer that came nearest."""
    return min(result.ratios.values(), key=lambda each: each.median)


# -- bytes ------------------------------------------------------------------------------------------------------------


def bulk(plan: Plan) -> list[Result]:
    """100 KB and 10 MB requests, 10 MB responses, in GB/s."""
    cases = [("100 KB requests", "pong", 100_000, 100_000, 0),
             ("10 MB requests", "pong", MEGABYTES_10, MEGABYTES_10, 0),
             ("10 MB responses", "big", 0, MEGABYTES_10, MEGABYTES_10)]
    results = []
    for title, handler, request, size, response in cases:
        work: Drive = lambda path, _, request=request, size=size: (  # noqa: E731
            rate(c_load(plan, path, "keep", 1, request)) * size / 1e9)
        figures = beside_c(plan, ipcsrv(handler), bare(plan, "bulk", response), work)
        results.append(Result(title, "GB/s", figures, ratio_to_c(figures)))
    return results


def chunks(plan: Plan) -> list[Result]:
    """10,000 chunks of 80 bytes; and how late the latest of stamped chunks came."""
    work: Drive = lambda path, _: rate(c_load(plan, path, "keep", 1))  # noqa: E731
    figures = beside_c(plan, ipcsrv("chunks"), bare(plan, "chunks", 80, 10_000), work)
    streamed = Result("10,000 chunks of 80 bytes", "streams/s", figures, ratio_to_c(figures))
    with running([ipcsrv("stamped")]) as paths:
        delays = [delay for pauses in (b"0", b"1", b"0 0 0 7") for delay in lateness(paths["ipcsrv"], pauses)]
    delays.sort()
    late = Result("how late a chunk comes", "ms", {"worst": [delays[-1]], "p99.9": [delays[-len(delays) // 1000]]})
    late.values["chunk lateness"] = delays[-1]
    return [streamed, late]


def lateness(path: str, pauses: bytes) -> list[float]:
    """Milliseconds from each chunk's being yielded to its being read here; both clocks are this machine's."""
    delays = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b"%04x%b0000" % (len(pauses) + 4, pauses))
        held = b""
        while True:
            data = connection.recv(65536)
            now = time.monotonic_ns()
            held += data
            while len(held) >= 4 and len(held) >= (size := int(held[:4], 16)):
                if size == 0:
                    return delays
                stamps = held[4:size]
                delays += [(now - int(stamps[at:at + 20])) / 1e6 for at in range(0, len(stamps), 20)]
                held = held[size:]
            if not data:
                raise ConnectionError("the stream ended early")


# -- cores ------------------------------------------------------------------------------------------------------------


def processor_bound(plan: Plan) -> list[Result]:
    """A handler of 5 ms of pure Python, with 1 worker, 2, and as many as there are processors."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({1, 2, available})
    contestants = {n: ipcsrv("spin", n, f"{n} workers") for n in counts}
    with running(list(contestants.values())) as paths:
        jobs = {each.name: lambda n=n, each=each: rate(c_load(plan, paths[each.name], "keep", 2 * n))
                for n, each in contestants.items()}
        figures = rounds(plan.rounds, jobs)
    ratios = {"1 worker": ratio(figures["2 workers"], figures["1 workers"])}
    return [Result("5 ms of pure Python a request", "requests/s", figures, ratios,
                   notes=[f"{available} processors here"])]


def pings_beside_busy(plan: Plan) -> list[Result]:
    """4 workers, 2 of them kept busy by 100 ms handlers; 8 kept connections that ping 200 times a second each."""
    if "load" not in plan.programs:
        return []
    with running([ipcsrv("mixed", 4)]) as paths:
        path = paths["ipcsrv"]
        busy_for = str(plan.rounds * plan.seconds + 1)
        busy = subprocess.Popen([str(plan.programs["load"]), path, "keep", "2", busy_for, "4"], stdout=subprocess.PIPE)
        time.sleep(0.3)
        reports = [c_load(plan, path, "paced", 8, 0, 200) for _ in range(plan.rounds)]
        busy.communicate(timeout=30)
    figures = {name: [report[name] / 1000 for report in reports] for name in ("p50", "p99", "p999")}
    result = Result("pings beside busy workers", "ms", figures)
    result.values["ping p99"] = sorted(figures["p99"])[len(reports) // 2]
    return [result]


def crowd(plan: Plan) -> list[Result]:
    """64 kept connections on 2 workers: the share of the client that got least, and how long a request takes."""
    if "load" not in plan.programs:
        return []
    with running([ipcsrv()]) as paths:
        reports = [c_load(plan, paths["ipcsrv"], "keep", 64) for _ in range(plan.rounds)]
    figures = {name: [report[name] / 1000 for report in reports] for name in ("p50", "p99", "p999")}
    shares = sorted(64 * report["least"] / report["requests"] for report in reports)
    result = Result("64 kept connections, 2 workers", "ms", figures)
    result.values["least share"] = shares[len(shares) // 2]
    return [result]


# -- start, memory -----------------------------------------------------------------------------------------------------


def starting(plan: Plan) -> list[Result]:
    """A cold `ipcsrv call` and `ipcsrv start`, beside an interpreter that does nothing."""
    figures = coldstart.measure(max(5, plan.rounds * 2), plan.folder)
    result = Result("start to end of a process", "ms", figures)
    result.ratios = {name: ratio(figures[name], figures[coldstart.NOTHING])
                     for name in (coldstart.CALL, coldstart.START)}
    return [result]


def memory(plan: Plan) -> list[Result]:
    """Proportional set size of an idle server, by number of workers (Linux)."""
    if not os.path.exists("/proc/self/smaps_rollup"):
        return []
    figures: Figures = {}
    result = Result("PSS of an idle server, zlib:compress", "MiB", figures)
    for count in (1, 2, 4, 8):
        command = (sys.executable, "-m", "ipcsrv", "run", "PATH", "zlib:compress", "--workers", str(count))
        with running([Contestant("ipcsrv", command)]) as paths:
            c_load(plan, paths["ipcsrv"], "connect", 2)
            status = subprocess.run([sys.executable, "-m", "ipcsrv", "status", paths["ipcsrv"], "--json"],
                                    capture_output=True, check=True).stdout
            pids = worker_pids(json.loads(status))
            sizes = [pss(pid) for pid in pids]
        figures[f"{count} workers, each"] = [sum(sizes) / len(sizes)]
        result.values["PSS a worker"] = sum(sizes) / len(sizes)
    return [result]


def worker_pids(status: dict[str, Any]) -> list[int]:
    """The workers' processes, out of what `ipcsrv status --json` says."""
    return [worker["pid"] for worker in status["workers"]]


def pss(pid: int) -> float:
    """MiB; shared pages count by their share (proc_pid_smaps(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise LookupError(pid)


ALL: dict[str, Callable[[Plan], list[Result]]] = {
    "connecting": connecting,
    "methods": start_methods,
    "kept": kept,
    "peers": beside_peers,
    "bulk": bulk,
    "chunks": chunks,
    "processor": processor_bound,
    "pings": pings_beside_busy,
    "crowd": crowd,
    "starting": starting,
    "memory": memory,
}
