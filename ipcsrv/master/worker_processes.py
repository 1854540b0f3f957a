"""The processes of a server: generations, their queues, templates and workers. In the master.

`supervision.supervisor` decides, this acts: it carries out commands and tells the facts. What workers report goes to
the dispatcher (connections) or to the supervisor (their lives).
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from .._version import __version__
from ..config import fingerprint
from ..config.handlers import HandlerSource
from ..config.settings import Settings
from ..errors import HandlerImportError, IpcError, StartError
from ..platform import logs
from ..platform import server as serving
from ..platform.job import Job
from ..platform.server import Channel, Process, QueueReader, QueueWriter, SharedMemory
from ..supervision import commands
from ..supervision import scoreboard as board
from ..supervision.commands import Command
from ..supervision.messages import (
    START_FAILED,
    VERDICTS,
    FormatError,
    Kind,
    parse_fields,
    parse_number,
    parse_returned,
    parse_text,
)
from ..supervision.supervisor import Supervisor
from .spawner import Facts, Spawner, describe, spawner_for

if TYPE_CHECKING:
    from .dispatcher import Dispatcher

log = logs.get("ipcsrv.master")

_FEWEST_SLOTS = 64  # so that a server that begins with one worker can be scaled to 32
REPORT_PATIENCE = 0.5  # seconds for a template to report how a worker ended
_UNCOUNTED = 1 << 20  # messages that may have been taken before `passed` counts them
_STACKS_SIZE = 65536  # bytes for the stacks of a template


class Host(Protocol):
    """What this needs of the master around it."""

    def watch(self, key: int, callback: Callable[[], object]) -> None: ...
    def unwatch(self, key: int) -> None: ...
    def serving_changed(self, target: GenerationProcesses) -> None: ...
    def workers_changed(self) -> None: ...
    def quit_asked(self) -> None: ...
    def workers_gone(self) -> None: ...
    def error_told(self, text: str) -> None: ...
    def expect_overdue(self) -> None: ...
    def set_timer(self, name: str, when: float) -> None: ...
    def ponged(self, nonce: int) -> None: ...


class GenerationProcesses:
    """One generation: its queue, and what starts its workers."""

    def __init__(self, number: int, writer: QueueWriter, reader: QueueReader, spawner: Spawner,
                 stacks: SharedMemory) -> None:
        self.number = number
        self.writer: QueueWriter | None = writer
        self.reader = reader
        self.spawner = spawner
        self.stacks = stacks
        self.passed = self.taken_by_departed = self._most_taken = 0
        self.slots: dict[int, memoryview[int]] = {}  # of its workers, by worker number

    def taken(self) -> int:
        """Return how many messages of the queue its workers have taken."""
        taken = self.taken_by_departed + sum([words[board.TAKEN] for words in self.slots.values()])
        if not self._most_taken <= taken < self.passed + _UNCOUNTED:  # a handler has overwritten a count
            known = max(self._most_taken, self.passed) if taken > self.passed else self._most_taken
            self.taken_by_departed += known - taken  # go on from there
            taken = known
        self._most_taken = taken
        return taken

    def stacks_text(self) -> str | None:
        """Return what the template has written of its stacks, None if it has not."""
        return bytes(self.stacks.buffer[:_STACKS_SIZE]).rstrip(b"\0").decode("utf-8", "replace").strip() or None


class WorkerProcess:
    """A worker: its channel, its process once it is born, and why it is to end, if it is."""

    def __init__(self, number: int, slot: int, generation: int, channel: Channel) -> None:
        self.number, self.slot, self.generation = number, slot, generation
        self.channel: Channel | None = channel
        self.process: Process | None = None
        self.ready = self.exited = self.killed = False
        self.leaving_since: float | None = None
        self.code = "crashed"
        self.reason: str | None = None
        self.traceback_text: str | None = None


class WorkerProcesses:
    """Carries out what the supervisor decides; inherited: descriptors of the library's caller, which children keep."""

    def __init__(self, host: Host, dispatcher: Dispatcher, path: str, settings: Settings, source: HandlerSource,
                 inherited: frozenset[int], make_spawner: Callable[[Job, Facts], Spawner] = spawner_for) -> None:
        assert settings.workers is not None
        self._host, self._dispatcher, self._settings, self._source = host, dispatcher, settings, source
        self._make_spawner, self._inherited, self._path = make_spawner, inherited, path
        self._slots = max(_FEWEST_SLOTS, 4 * settings.workers)
        self._memory = SharedMemory(board.size(self._slots))
        self.scoreboard = board.Scoreboard(self._memory.buffer, self._slots)
        self.supervisor = Supervisor(settings.workers or 1, startup_timeout=settings.startup_timeout,
                                     drain_timeout=settings.drain_timeout, max_slots=self._slots, rng=random.Random())
        self.workers: dict[int, WorkerProcess] = {}
        self._slots_known: list[memoryview[int]] | None = None  # until a worker comes or goes
        self._generations: dict[int, GenerationProcesses] = {}
        self._serving = 0
        self._past: list[GenerationProcesses] = []  # over; their templates may still be ending
        self.slot_restarts: dict[int, int] = {}
        self._code: dict[int, fingerprint.Files] = {}  # by generation
        self._digest: tuple[int, str] = (0, "")  # of the code that serves, with its generation
        self.failure: IpcError | None = None
        self._import_error: HandlerImportError | None = None
        dispatcher.attach(self.scoreboard, self.serving_slots)
        self._do: dict[type, Callable[[Any], None]] = {
            commands.StartGeneration: self._start_generation,
            commands.Spawn: self._spawn,
            commands.RetireOne: self._retire_one,
            commands.EndGeneration: self._end_generation,
            commands.SwitchTo: self._switch_to,
            commands.DumpStacks: self._dump_stacks,
            commands.DumpTemplateStacks: lambda command: self._generations[command.generation].spawner.dump_stacks(),
            commands.Kill: self._kill,
            commands.Report: lambda report: log.log(logs.LEVELS[report.level], "%s", report.text),
            commands.GiveUp: self._give_up,
            commands.Stopped: lambda _: self._host.workers_gone(),
        }
        self._hear_kind: dict[Kind, Callable[[WorkerProcess, bytes, int | None], None]] = {
            Kind.RETURNED: self._returned,
            Kind.ENDED: lambda _, body, __: self._dispatcher.ended(parse_number(body)),
            Kind.HELD: lambda worker, body, _: self._dispatcher.dispatch.held(parse_number(body), worker.number),
            Kind.BUSY: lambda _, __, ___: self._host.expect_overdue(),
            Kind.CODE: lambda worker, body, _: self.code_loaded(worker.generation, parse_fields(body)),
            Kind.READY: self._ready,
            Kind.LEAVING: self._leaving,
            Kind.QUIT: lambda _, __, ___: self._host.quit_asked(),
            Kind.START_FAILED: self._start_failed,
            Kind.HANDLER_ERROR: lambda _, body, __: self._host.error_told(parse_text(body)),
            Kind.EXHAUSTED: lambda _, body, __: self._dispatcher.exhausted(parse_text(body)),
            Kind.PONG: lambda _, body, __: self._host.ponged(parse_number(body)),
        }

    def obey(self, decided: list[Command]) -> None:
        """Carry out commands of the supervisor."""
        for command in decided:
            self._do[type(command)](command)

    def close(self) -> None:
        """Let go of what is left when all have gone; if the master fails, all are ended now."""
        for worker in self.workers.values():
            if worker.process is not None:
                worker.process.kill()
            self._close_channel(worker)
        for generation in self._generations.values():
            if generation.writer is not None:
                generation.writer.close()
            generation.spawner.end()
            generation.reader.close()
        for generation in [*self._generations.values(), *self._past]:
            generation.spawner.close()  # which may forget the generation
            generation.slots.clear()
        self._slots_known = None
        for generation in [*self._generations.values(), *self._past]:
            generation.stacks.close()
        self._generations.clear()
        self._past.clear()
        self.scoreboard.release()
        self._memory.close()

    # -- carrying out -------------------------------------------------------------------------------------------------

    def _start_generation(self, command: commands.StartGeneration) -> None:
        try:
            writer, reader = serving.queue()
            stacks = SharedMemory(_STACKS_SIZE)
        except OSError as error:  # out of descriptors
            self.obey(self.supervisor.generation_failed(command.generation, str(error), None, monotonic()))
            return
        job = Job(command.generation, self._settings, self._source, reader, self._memory, self._slots, self._inherited,
                  self._path, stacks)
        spawner = self._make_spawner(job, self)
        self._generations[command.generation] = GenerationProcesses(command.generation, writer, reader, spawner, stacks)
        spawner.begin()

    def _spawn(self, command: commands.Spawn) -> None:
        generation = self._generations.get(command.generation)
        if generation is None or generation.writer is None:  # ended for what came of the commands before this one
            self.obey(self.supervisor.spawn_failed(command.worker, "its generation has ended", monotonic()))
            return
        try:
            # With the last descriptors in workers, the master could accept no connection, nor a command to have fewer.
            unborn = sum(worker.process is None for worker in self.workers.values())
            if not self._dispatcher.leaves_room(generation.spawner.descriptors + unborn):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            ours, theirs = serving.channel()
        except OSError as error:
            self.obey(self.supervisor.spawn_failed(command.worker, str(error), monotonic()))
            return
        worker = WorkerProcess(command.worker, command.slot, command.generation, ours)
        self.workers[command.worker] = worker
        self.scoreboard.clear(command.slot)
        generation.slots[command.worker] = self.scoreboard.words(command.slot)
        self._slots_known = None
        self._host.watch(ours.fileno(), lambda: self._hear_some(worker))
        generation.spawner.spawn(command.worker, command.slot, theirs)

    def _retire_one(self, command: commands.RetireOne) -> None:
        """Tell a worker to leave: one without a request, if there is one."""
        if not self.supervisor.surplus(command.generation):
            return  # another command of the same list has changed that
        ready = [worker for worker in self.workers.values() if worker.generation == command.generation
                 and worker.ready and worker.leaving_since is None and worker.channel is not None]
        ready.sort(key=lambda worker: (self.scoreboard.words(worker.slot)[board.LENT] != 0, -worker.slot))
        for worker in ready:
            assert worker.channel is not None
            with contextlib.suppress(OSError):
                worker.channel.tell(Kind.LEAVE, wait=False)
                worker.leaving_since = monotonic()
                self.supervisor.told_to_leave(worker.number)
                return

    def _end_generation(self, command: commands.EndGeneration) -> None:
        generation = self._generations.get(command.generation)
        if generation is None:  # it could not even be begun
            return
        if generation.writer is not None:
            generation.writer.close()  # workers take what is left, see the end, and go
            generation.writer = None
        for worker in self.workers.values():
            if worker.generation == command.generation:
                worker.leaving_since = worker.leaving_since or monotonic()
        generation.spawner.end()
        self._forget_generations()

    def _switch_to(self, command: commands.SwitchTo) -> None:
        self._serving = command.generation
        self._code = {number: files for number, files in self._code.items() if number >= command.generation}
        self._host.serving_changed(self._generations[command.generation])
        self._host.workers_changed()  # the lock file names the code that serves, before a reload is reported as done

    def _dump_stacks(self, command: commands.DumpStacks) -> None:
        self.dump_stacks(command.worker)

    def reopen_logs(self) -> None:
        """Have every process open the rotated log file anew, also those that have nothing to log."""
        for generation in self._generations.values():
            generation.spawner.reopen_log()
        for worker in self.workers.values():
            if not worker.ready or worker.channel is None or worker.process is None:
                continue
            if self.scoreboard.words(worker.slot)[board.SINCE_NS]:  # its channel is not read before the request is over
                worker.process.ask_to_reopen_log()
                continue
            with contextlib.suppress(OSError):
                worker.channel.tell(Kind.REOPEN_LOG, wait=False)

    def dump_stacks(self, number: int) -> Process | None:
        """Have a worker's stacks written into the log; returns the process, None if there is no such worker."""
        worker = self.workers.get(number)
        if worker is None or worker.process is None:
            return None
        log.warning("stacks of worker %d (pid %d) follow", number, worker.process.pid)
        worker.process.ask_for_stacks()
        return worker.process

    def _kill(self, command: commands.Kill) -> None:
        worker = self.workers.get(command.worker)
        if worker is not None:
            worker.code = command.code
            worker.reason = worker.reason or f"was killed: {command.reason}"
            worker.killed = True
            if worker.process is None:  # its template does not react, or has not told yet that it was born
                self._generations[worker.generation].spawner.kill()
                return
            log.warning("killing worker %d (pid %d): %s", worker.number, worker.process.pid, command.reason)
            if worker.ready:
                worker.process.kill()
            else:
                worker.process.kill_family()  # what the handler's module has started at its import, too

    def _give_up(self, command: commands.GiveUp) -> None:
        stacks = [found for generation in self._generations.values() if (found := generation.stacks_text())]
        traceback_text = command.traceback or (stacks[0] if stacks else None)
        text = f"giving up: {command.reason}" + (f"\n{traceback_text}" if traceback_text else "")
        if self._import_error is not None and not self._serving:
            self.failure = self._import_error
            # Where the log is standard error, the command that reports the failure writes to the same place.
            (log.debug if self._settings.log_file is None else log.error)("%s", text)
            return
        self.failure = StartError(command.reason, self._settings.log_file, traceback_text)
        log.error("%s", text)

    # -- what workers are doing ---------------------------------------------------------------------------------------

    def serving_slots(self) -> list[memoryview[int]]:
        """Return the slots of all workers."""
        if self._slots_known is None:
            self._slots_known = [words for generation in self._generations.values()
                                 for words in generation.slots.values()]
        return self._slots_known

    def _forget_slot(self, worker: WorkerProcess) -> None:
        """A worker is gone: its slot can be another's."""
        self._generations[worker.generation].slots.pop(worker.number, None)
        self._slots_known = None

    def has_queued(self, worker: WorkerProcess) -> bool:
        """Return whether something waits in the queue that this worker reads."""
        generation = self._generations[worker.generation]
        return worker.ready and generation.passed > generation.taken()

    def anyone_busy(self) -> bool:
        """Return whether a worker has a request."""
        return any(words[board.LENT] or words[board.SUSPENDED] for words in self.serving_slots())

    def last_request(self) -> float:
        """Return when a request ended last (monotonic seconds)."""
        return max([0, *(words[board.LAST_NS] for words in self.serving_slots())]) / 1e9

    def child_pids(self) -> set[int]:
        """Return the processes that are children of this one and will be reaped by their spawner."""
        return {pid for generation in (*self._generations.values(), *self._past) for pid in generation.spawner.pids()}

    def pids(self) -> list[int]:
        """Return the processes of all workers: as they say, or, before they can, as their spawner says."""
        found = [self.scoreboard.words(worker.slot)[board.PID] or (worker.process.pid if worker.process else 0)
                 for worker in self.workers.values()]
        return sorted(pid for pid in found if pid)

    # -- facts from the spawner ---------------------------------------------------------------------------------------

    def watch(self, key: int, callback: Callable[[], None]) -> None:
        """Call back when `key` is ready."""
        self._host.watch(key, callback)

    def unwatch(self, key: int) -> None:
        """Stop that."""
        self._host.unwatch(key)

    def code_loaded(self, generation: int, files: fingerprint.Files) -> None:
        """A part of the files that a generation has imported."""
        self._code.setdefault(generation, {}).update(files)

    def code_facts(self) -> dict[str, Any]:
        """Return the fingerprint of the code that serves, and its files; nothing before there is any."""
        if not self._serving:
            return {}
        files = self._code.get(self._serving, {})
        if self._digest[0] != self._serving:
            self._digest = self._serving, fingerprint.digest(files, self._settings.to_dict(), __version__)
        return {"fingerprint": self._digest[1], "files": files}

    def generation_ready(self, generation: int) -> None:
        """Workers can be spawned."""
        self.obey(self.supervisor.generation_ready(generation, monotonic()))

    def generation_failed(self, generation: int, reason: str, traceback_text: str | None) -> None:
        """The template could not import the handler, or be started."""
        self._host.error_told(reason)
        self._import_failed(generation, reason, traceback_text)

    def _import_failed(self, generation: int, reason: str, traceback_text: str | None) -> None:
        """The handler cannot be imported: a start, or a reload, has failed."""
        plain = reason.removeprefix(f"handler {self._source.target}: ")
        self._import_error = HandlerImportError(self._source.target, traceback_text, plain)
        self.obey(self.supervisor.generation_failed(generation, reason, traceback_text, monotonic()))

    def template_gone(self, generation: int, *, expected: bool) -> None:
        """The template has ended: no process reports any more how its workers end."""
        if not expected:
            self.obey(self.supervisor.generation_lost(generation, "its template process died", monotonic()))
        for worker in list(self.workers.values()):
            if worker.generation == generation and (worker.channel is None or worker.process is None):
                self._end_orphan(worker)
        self._forget_generations()

    def _end_orphan(self, worker: WorkerProcess) -> None:
        """End a worker whose end no template will report; it may have died before it told of the birth.

        A worker looks at its channel after it has written its pid (`worker.main.work`): one of the two is seen.
        """
        self._hear_all(worker)  # what it reported before; the end of its channel leads here too
        if worker.number not in self.workers:
            return
        self._close_channel(worker)
        words = self.scoreboard.words(worker.slot)
        if worker.process is not None:
            worker.process.kill()
        elif serving.is_same_process(words[board.PID], words[board.START_TICKS]):
            serving.kill(words[board.PID])
        self.dead(worker.number, None)

    def born(self, number: int, pid: int) -> None:
        """A worker has a process."""
        worker = self.workers.get(number)
        if worker is None:
            return
        worker.process = Process(pid)
        if worker.killed:
            worker.process.kill()
        if self._generations[worker.generation].spawner.reports_late:
            if worker.process.fileno() < 0:  # it has ended already
                self._exited(worker)
            else:
                self._host.watch(worker.process.fileno(), lambda: self._exited(worker))
        self._host.workers_changed()

    def _exited(self, worker: WorkerProcess) -> None:
        """A worker's process has ended. Its template reports how, unless it was stopped or dies too."""
        assert worker.process is not None
        self._host.unwatch(worker.process.fileno())
        worker.exited = True
        self._host.set_timer("exited", monotonic() + REPORT_PATIENCE)

    def settle_exited(self) -> None:
        """Act for the workers that have ended and of which no template has reported how."""
        for worker in [worker for worker in self.workers.values() if worker.exited]:
            self.dead(worker.number, None)

    def spawn_failed(self, number: int, reason: str) -> None:
        """A worker could not be started now."""
        worker = self.workers.pop(number, None)
        if worker is not None:
            self._close_channel(worker)
            self._forget_slot(worker)
        self.obey(self.supervisor.spawn_failed(number, reason, monotonic()))

    def dead(self, number: int, status: int | None) -> None:
        """A worker has ended: act for it on the connections that it had, and count what it did."""
        worker = self.workers.get(number)
        if worker is None:
            return
        self._hear_all(worker)  # what it reported before it died
        if self.workers.pop(number, None) is None:
            return  # the end of its channel was among that, and is a death where its template is gone too
        self._close_channel(worker)
        words = self.scoreboard.words(worker.slot)
        served = bool(words[board.TAKEN])
        reason = worker.reason or describe(status)
        since = words[board.SINCE_NS]
        age = f", {monotonic() - since / 1e9:.1f} s after the request began" if since else ""
        self._tell_clients(worker, words, status, f"{reason}{age}")
        self._generations[worker.generation].taken_by_departed += words[board.TAKEN]
        self._forget_slot(worker)
        self.scoreboard.fold(worker.slot)
        name = f"worker {number}"
        if worker.process is not None:
            name += f" (pid {worker.process.pid})"
            self._host.unwatch(worker.process.fileno())
            worker.process.close()
        self._note_death(name, status, f"{reason}{age}" if worker.code == "crashed" else reason)
        self.slot_restarts[worker.slot] = self.slot_restarts.get(worker.slot, 0) + 1
        generation = self._generations[worker.generation]
        if generation.writer is not None and generation.reader.has_ended():
            self.obey(self.supervisor.generation_lost(generation.number, "a handler has ended its queue", monotonic()))
        self.obey(self.supervisor.exited(number, status, reason, monotonic(), traceback=worker.traceback_text,
                                         served=served))
        self._forget_generations()
        self._host.workers_changed()

    def _tell_clients(self, worker: WorkerProcess, words: memoryview[int], status: int | None, reason: str) -> None:
        text = VERDICTS.get(worker.code) or reason.removeprefix("was ")
        self._dispatcher.worker_died(worker.number, words, worker.code, text, clean=status == 0)

    def _note_death(self, name: str, status: int | None, reason: str) -> None:
        if status == START_FAILED:
            self._host.error_told(reason)
        elif status != 0:
            log.warning("%s %s", name, reason)
            self._host.error_told(f"{name} {reason}")

    # -- what workers report ------------------------------------------------------------------------------------------

    def hear_all(self) -> None:
        """Read what all workers have reported until now."""
        for worker in list(self.workers.values()):
            self._hear_all(worker)

    def _hear_all(self, worker: WorkerProcess) -> None:
        while worker.channel is not None and self._hear(worker):
            pass

    def _hear_some(self, worker: WorkerProcess) -> None:
        """Read what a worker has reported, but let others have their turn."""
        for _ in range(32):
            if worker.channel is None or not self._hear(worker):
                return

    def _hear(self, worker: WorkerProcess) -> bool:
        """Read one message of a worker; False if there was none."""
        assert worker.channel is not None
        try:
            message = worker.channel.hear(wait=False)
            if message is None:
                self._close_channel(worker)
                if self._generations[worker.generation].spawner.lost:
                    self._end_orphan(worker)
                return False
            kind, body, descriptor = message
            if kind not in self._hear_kind or (descriptor is not None and kind is not Kind.RETURNED):
                if descriptor is not None:
                    os.close(descriptor)
                raise FormatError(f"kind {kind.name}")
            self._hear_kind[kind](worker, body, descriptor)
        except BlockingIOError:
            return False
        except FormatError as error:
            self._distrust(worker, error)
            return False
        return True

    def _distrust(self, worker: WorkerProcess, error: FormatError) -> None:
        """Kill a worker whose messages make no sense: its handler has written to descriptors that are not its own."""
        worker.killed = True
        if worker.process is not None:
            worker.process.kill()  # first: it may be about to take another client's request
        self._close_channel(worker)
        log.error("worker %d broke the message format (%s) and was killed", worker.number, error)

    def _returned(self, _: WorkerProcess, body: bytes, file: int | None) -> None:
        try:
            returned = parse_returned(body)
        except FormatError:
            if file is not None:
                os.close(file)
            raise
        self._dispatcher.returned(returned, file)

    def _ready(self, worker: WorkerProcess, _: bytes, __: int | None) -> None:
        worker.ready = True
        self.obey(self.supervisor.ready(worker.number, monotonic()))
        self._dispatcher.pump()

    def _leaving(self, worker: WorkerProcess, _: bytes, __: int | None) -> None:
        worker.leaving_since = worker.leaving_since or monotonic()
        self.obey(self.supervisor.leaving(worker.number, monotonic()))
        self._dispatcher.kick()

    def _start_failed(self, worker: WorkerProcess, body: bytes, _: int | None) -> None:
        """A worker reports why it cannot start; its exit follows."""
        fields = parse_fields(body)
        worker.reason, worker.traceback_text = str(fields.get("reason")), fields.get("traceback")
        if fields.get("importing"):  # no other worker would fare better
            self._import_failed(worker.generation, worker.reason, worker.traceback_text)

    def _close_channel(self, worker: WorkerProcess) -> None:
        if worker.channel is not None:
            self._host.unwatch(worker.channel.fileno())
            worker.channel.close()
            worker.channel = None

    # -- what is over -------------------------------------------------------------------------------------------------

    def _forget_generations(self) -> None:
        """Close the queues of generations that are over; what their workers left in them goes to the next one."""
        inhabited = {worker.generation for worker in self.workers.values()}
        for number, generation in list(self._generations.items()):
            if generation.writer is None and number not in inhabited:
                del self._generations[number]
                self._past.append(generation)
                self._dispatcher.take_over(generation)
                generation.reader.close()
        for generation in [generation for generation in self._past if generation.spawner.lost]:
            self._past.remove(generation)
            generation.stacks.close()
