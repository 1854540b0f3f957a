"""The processes of a server: generations, their queues and their workers.  Runs in the master.

`pool.Pool` decides, this does: it carries out the pool's commands and tells it the facts.  It also has, in trust,
copies of the silent connections in each worker's hands (`worker`, "If it dies").  When the worker dies they are taken
back, all but the one that it was reading or answering.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from ..config.handlers import HandlerSource, fingerprint
from ..config.settings import Settings
from ..errors import HandlerImportError, IpcError, StartError
from ..platform import logs
from ..platform import server as serving
from ..platform.job import Job
from ..platform.server import Channel, Listener, Process, QueueReader, QueueWriter, SharedMemory
from ..supervision import commands
from ..supervision import scoreboard as board
from ..supervision.commands import Command
from ..supervision.messages import START_FAILED
from ..supervision.supervisor import Pool
from .spawner import Facts, Spawner, describe, spawner_for

log = logs.get("ipcsrv.master")

INSURED = 600.0  # seconds after a worker's death for which the others insure whom they have just answered (`limbo`)
_FEWEST_SLOTS = 64  # so that a server that begins with one worker can be scaled to 32


class Office(Protocol):
    """What the crew needs of the master around it."""

    def watch(self, key: int, callback: Callable[[], object]) -> None: ...
    def unwatch(self, key: int) -> None: ...
    def park(self, raw: int, *, served: bool) -> None: ...
    def requeue(self, raw: int) -> None: ...
    def serving_changed(self, queue: QueueWriter) -> None: ...
    def roster_changed(self) -> None: ...
    def quit_asked(self) -> None: ...
    def crew_gone(self) -> None: ...
    def error_told(self, text: str) -> None: ...
    def expect_overdue(self) -> None: ...
    def exhausted(self, reason: str) -> None: ...
    def take_stock(self) -> None: ...


class Generation:
    """One generation's processes: where connections go in, where workers take them, who starts workers."""

    def __init__(self, number: int, writer: QueueWriter, reader: QueueReader, spawner: Spawner) -> None:
        self.number = number
        self.writer: QueueWriter | None = writer
        self.reader = reader
        self.spawner = spawner
        self.retire_pending = 0


class Hand:
    """A worker: its channel, its process once it is born, and the kept connections that it holds, by number."""

    def __init__(self, number: int, slot: int, generation: int, channel: Channel) -> None:
        self.number, self.slot, self.generation = number, slot, generation
        self.channel: Channel | None = channel
        self.process: Process | None = None
        self.kept: dict[bytes, int] = {}
        self.buoy: int | None = None  # the end of its lifebuoy from which we rescue
        self.ready = self.open = False
        self.heard = True
        self.relieved = 0
        self.reason: str | None = None
        self.traceback_text: str | None = None


class Crew:
    """Carries out what the pool decides (see above).

    inherited: descriptors that were open before the server began, which its children keep.
    """

    def __init__(self, office: Office, path: str, settings: Settings, source: HandlerSource, inherited: frozenset[int],
                 spawner_for: Callable[[Job, Facts], Spawner] = spawner_for) -> None:
        assert settings.workers is not None
        self._spawner_for = spawner_for
        self._office, self._settings, self._source, self._inherited = office, settings, source, inherited
        self._path = path
        self._slots = max(_FEWEST_SLOTS, 4 * settings.workers)
        self._memory = SharedMemory(board.size(self._slots))
        self.scoreboard = board.Scoreboard(self._memory.buffer, self._slots)
        self.pool = Pool(settings.workers or 1, startup_timeout=settings.startup_timeout,
                         drain_timeout=settings.drain_timeout, max_slots=self._slots, rng=random.Random())
        self.listener: Listener | None = None  # the one from which workers accept themselves; before the first start
        self.hands: dict[int, Hand] = {}
        self._generations: dict[int, Generation] = {}
        self._serving = 0
        self._past: list[Spawner] = []  # of generations that are over; their templates may still be on their way out
        self._insured_until = 0  # monotonic ns
        self.slot_restarts: dict[int, int] = {}
        self.fingerprint = ""
        self.failure: IpcError | None = None
        self._import_error: HandlerImportError | None = None
        self._do: dict[type, Callable[[Any], None]] = {
            commands.StartGeneration: self._start_generation,
            commands.Spawn: self._spawn,
            commands.RetireOne: self._retire_one,
            commands.EndGeneration: self._end_generation,
            commands.SwitchTo: self._switch_to,
            commands.DumpStacks: self._dump_stacks,
            commands.TimeOut: self._time_out,
            commands.Kill: self._kill,
            commands.Report: lambda report: log.log(logs.LEVELS[report.level], "%s", report.text),
            commands.GiveUp: self._give_up,
            commands.Stopped: lambda _: self._office.crew_gone(),
        }

    def obey(self, decided: list[Command]) -> None:
        """Carry out commands of the pool's."""
        for command in decided:
            self._do[type(command)](command)

    def close(self) -> None:
        """Let go of what is left, when everybody has gone; if the master fails, everybody goes now."""
        for hand in self.hands.values():
            if hand.process is not None:
                hand.process.kill()
            self._close_channel(hand)
        for generation in self._generations.values():
            if generation.writer is not None:
                generation.writer.close()
            generation.spawner.end()
            generation.spawner.close()
            generation.reader.close()
        for spawner in self._past:
            spawner.close()
        self._generations.clear()
        self.scoreboard.release()
        self._memory.close()

    # -- carrying out -------------------------------------------------------------------------------------------------

    def _start_generation(self, command: commands.StartGeneration) -> None:
        writer, reader = serving.queue()
        job = Job(command.generation, self._settings, self._source, reader, self.listener, self._memory, self._slots,
                  self._inherited, self._path)
        spawner = self._spawner_for(job, self)
        self.fingerprint = fingerprint(self._source.target)
        self._generations[command.generation] = Generation(command.generation, writer, reader, spawner)
        spawner.begin()

    def _spawn(self, command: commands.Spawn) -> None:
        ours, theirs = serving.channel()
        hand = Hand(command.worker, command.slot, command.generation, ours)
        self.hands[command.worker] = hand
        self.scoreboard.clear(command.slot)
        self.scoreboard.words(command.slot)[board.INSURED_NS] = self._insured_until
        self._office.watch(ours.fileno(), lambda: self._hear(hand))
        self._generations[command.generation].spawner.spawn(command.worker, command.slot, theirs)

    def _retire_one(self, command: commands.RetireOne) -> None:
        self._generations[command.generation].retire_pending += 1
        self.send_retirements()

    def send_retirements(self) -> None:
        """Put the messages that make workers leave into the queues, as far as these have room."""
        for generation in self._generations.values():
            while generation.retire_pending and generation.writer is not None:
                try:
                    generation.writer.retire()
                except BlockingIOError:
                    break
                generation.retire_pending -= 1

    def _end_generation(self, command: commands.EndGeneration) -> None:
        generation = self._generations[command.generation]
        if generation.writer is not None:
            generation.writer.close()  # the drain: workers empty the queue, see its end, and go
            generation.writer = None
        self._open_doors(command.generation)  # those who wait for that must see the end
        generation.spawner.end()
        self._forget_generations()

    def _switch_to(self, command: commands.SwitchTo) -> None:
        writer = self._generations[command.generation].writer
        assert writer is not None
        self._serving = command.generation
        self._office.serving_changed(writer)
        self._open_doors(command.generation)

    def _open_doors(self, generation: int) -> None:
        """Tell the workers of a generation that they may accept."""
        for hand in self.hands.values():
            if hand.generation == generation and hand.ready and not hand.open:
                self._open(hand)

    def _open(self, hand: Hand) -> None:
        hand.open = True
        if self.listener is not None and hand.channel is not None:
            with contextlib.suppress(OSError):  # it has just died
                hand.channel.tell("open")

    def _dump_stacks(self, command: commands.DumpStacks) -> None:
        self.dump_stacks(command.worker)

    def reopen_logs(self) -> None:
        """The log file was rotated: have everybody see it, also who has nothing to log and keeps the old one open."""
        for generation in self._generations.values():
            generation.spawner.reopen_log()
        for hand in self.hands.values():
            if hand.ready and hand.process is not None:
                hand.process.ask_to_reopen_log()

    def dump_stacks(self, number: int) -> Process | None:
        """Have a worker's stacks written into the log; returns the process, None if there is no such worker."""
        hand = self.hands.get(number)
        if hand is None or hand.process is None:
            return None
        log.warning("stacks of worker %d (pid %d) follow", number, hand.process.pid)
        hand.process.ask_for_stacks()
        return hand.process

    def announce_stop(self) -> None:
        """Let the workers know that what they hold cannot be given back any more: there is nobody to serve it then."""
        for hand in self.hands.values():
            self.scoreboard.words(hand.slot)[board.VERDICT] = board.STOPPING

    def _time_out(self, command: commands.TimeOut) -> None:
        hand = self.hands[command.worker]
        self.scoreboard.words(hand.slot)[board.VERDICT] = board.VERDICTS.index(command.code)
        if hand.process is not None:
            hand.process.ask_for_last_words()

    def _kill(self, command: commands.Kill) -> None:
        hand = self.hands[command.worker]
        if hand.process is not None:
            log.warning("killing worker %d (pid %d): %s", hand.number, hand.process.pid, command.reason)
            hand.process.kill()

    def _give_up(self, command: commands.GiveUp) -> None:
        text = f"giving up: {command.reason}" + (f"\n{command.traceback}" if command.traceback else "")
        if self._import_error is not None and not self._serving:
            self.failure = self._import_error
            # Where the log is standard error, the command that reports the failure writes to the same place.
            (log.debug if self._settings.log_file is None else log.error)("%s", text)
            return
        self.failure = StartError(command.reason, self._settings.log_file, command.traceback)
        log.error("%s", text)

    def set_short(self, short: bool) -> None:
        """Have the workers accept no more connections for now, or again."""
        for hand in self.hands.values():
            self.scoreboard.words(hand.slot)[board.SHORT] = short

    def listen_to_workers(self, listen: bool) -> None:
        """Take what workers give back, or leave it where it is: with no descriptor left it would be lost (unix(7))."""
        for hand in self.hands.values():
            if hand.channel is not None and hand.ready and listen != hand.heard:
                hand.heard = listen
                key = hand.channel.fileno()
                self._office.watch(key, functools.partial(self._hear, hand)) if listen else self._office.unwatch(key)

    def hear_what_brings_nobody(self) -> None:
        """Of what `listen_to_workers` leaves unread, hear all up to the next message with a connection in it.

        Among it is that a connection of which we have a copy is ours now, and its client may be speaking.
        """
        for hand in list(self.hands.values()):
            while hand.channel is not None and hand.channel.brings_connection() is False and self._hear(hand):
                pass

    def hear_one(self) -> None:
        """Hear one message that brings a connection, of whichever worker has one."""
        for hand in list(self.hands.values()):
            if hand.channel is not None and hand.channel.brings_connection() and self._hear(hand):
                return

    # -- what workers are doing ---------------------------------------------------------------------------------------

    def anyone_busy(self) -> bool:
        """Whether a worker has a request or a connection."""
        slots = [self.scoreboard.words(hand.slot) for hand in self.hands.values()]
        return any(words[board.SINCE_NS] or words[board.HELD] for words in slots)

    def last_request(self) -> float:
        """When a request ended last (monotonic seconds)."""
        return max([0, *(self.scoreboard.words(hand.slot)[board.LAST_NS] for hand in self.hands.values())]) / 1e9

    # -- facts from the spawner ---------------------------------------------------------------------------------------

    def watch(self, key: int, callback: Callable[[], None]) -> None:
        """Call back when `key` is ready."""
        self._office.watch(key, callback)

    def unwatch(self, key: int) -> None:
        """Stop that."""
        self._office.unwatch(key)

    def generation_ready(self, generation: int) -> None:
        """Workers can be spawned."""
        self.obey(self.pool.generation_ready(generation, monotonic()))

    def generation_failed(self, generation: int, reason: str, traceback_text: str | None) -> None:
        """The template could not import the handler, or be started."""
        self._office.error_told(reason)
        plain = _without_target(reason, self._source)
        self._import_error = HandlerImportError(self._source.target, traceback_text, plain)
        self.obey(self.pool.generation_failed(generation, reason, traceback_text, monotonic()))

    def generation_lost(self, generation: int) -> None:
        """The template has died: nobody can tell us any more how its workers end."""
        self.obey(self.pool.generation_lost(generation, "its template process died", monotonic()))
        for hand in [hand for hand in self.hands.values() if hand.generation == generation and hand.channel is None]:
            self.dead(hand.number, None)

    def born(self, number: int, pid: int) -> None:
        """A worker has a process."""
        hand = self.hands.get(number)
        if hand is not None:
            hand.process = Process(pid)
            self._office.roster_changed()

    def pids(self) -> list[int]:
        """The processes of all workers: as they say themselves, or, before they can, as their spawner says."""
        found = [self.scoreboard.words(hand.slot)[board.PID] or (hand.process.pid if hand.process is not None else 0)
                 for hand in self.hands.values()]
        return sorted(pid for pid in found if pid)

    def spawn_failed(self, number: int, reason: str) -> None:
        """A worker could not be started now."""
        hand = self.hands.pop(number, None)
        if hand is not None:
            self._close_channel(hand)
        self.obey(self.pool.spawn_failed(number, reason, monotonic()))

    def dead(self, number: int, status: int | None) -> None:
        """A worker has been reaped: take back what it held, and count what it did."""
        hand = self.hands.get(number)
        if hand is None:
            return
        while hand.channel is not None and self._hear(hand):
            pass  # what it said before it died
        self._close_channel(hand)
        del self.hands[number]
        served = self._settle_estate(hand)
        if hand.process is not None:
            hand.process.close()
        reason = hand.reason or describe(status)
        self._note_death(hand, status, reason)
        self.slot_restarts[hand.slot] = self.slot_restarts.get(hand.slot, 0) + 1
        self.obey(self.pool.exited(number, status, reason, monotonic(), traceback=hand.traceback_text, served=served))
        self._forget_generations()
        self._office.roster_changed()

    def _note_death(self, hand: Hand, status: int | None, reason: str) -> None:
        if status == START_FAILED:
            self._office.error_told(reason)
        elif status != 0:
            self._insure()
            log.warning("worker %d (slot %d) %s", hand.number, hand.slot, reason)
            self._office.error_told(f"worker {hand.number} (slot {hand.slot}) {reason}")

    def _insure(self) -> None:
        """Workers are known to die: for some time the others take more care of whom they have just answered."""
        self._insured_until = int((monotonic() + INSURED) * 1e9)
        for hand in self.hands.values():
            self.scoreboard.words(hand.slot)[board.INSURED_NS] = self._insured_until

    def _settle_estate(self, hand: Hand) -> bool:
        """Close the connection that a dead worker had in hand, take the others back; whether it had served anyone."""
        words = self.scoreboard.words(hand.slot)
        if words[board.SINCE_NS]:
            words[board.REQUESTS] += 1
            words[board.TIMEOUTS if board.VERDICTS[words[board.VERDICT]] == "timeout" else board.LOST] += 1
        if hand.buoy is not None:
            for raw in serving.rescue(hand.buoy, hand.kept.values()):
                self._office.park(raw, served=True)
            hand.buoy = None
        in_hand = b"%d" % words[board.CURRENT]
        for number, raw in hand.kept.items():
            if number == in_hand:
                serving.close_raw(raw)  # the last copy: its client learns of it now
            else:
                self._office.park(raw, served=False)  # or nobody knows
        hand.kept.clear()
        served = bool(words[board.CONNECTIONS] or words[board.QUEUED])
        self.scoreboard.fold(hand.slot)
        return served

    # -- what workers say ---------------------------------------------------------------------------------------------

    def hear_all(self) -> None:
        """Read what all workers have said until now."""
        for hand in list(self.hands.values()):
            while hand.channel is not None and self._hear(hand):
                pass

    def _hear(self, hand: Hand) -> bool:
        """Read one message of a worker's; False if there was none."""
        assert hand.channel is not None
        try:
            message = hand.channel.hear(wait=False)
        except BlockingIOError:
            return False
        if message is None:
            self._close_channel(hand)
            if self._generations[hand.generation].spawner.lost:
                self.dead(hand.number, None)
            return False
        kind, body, raw = message
        self._heard(hand, kind, body, raw)
        return True

    def _heard(self, hand: Hand, kind: str, body: bytes, raw: int | None) -> None:
        if kind == "keep" and raw is not None:
            hand.kept[body] = raw
            self._office.take_stock()
        elif kind == "drop" and body in hand.kept:
            serving.close_raw(hand.kept.pop(body))
        elif kind in ("kept", "new"):  # back with the connection, or with the number of our copy
            raw = raw if raw is not None else hand.kept.pop(body, None)
            if raw is not None:
                self._office.park(raw, served=kind == "kept")
        elif kind == "buoy":
            hand.buoy = raw
        elif kind == "rdy":
            hand.ready = True
            self.obey(self.pool.ready(hand.number, monotonic()))
            over = self._generations[hand.generation].writer is None
            if not hand.open and (hand.generation == self._serving or over):
                self._open(hand)
        elif kind == "bye":
            self.obey(self.pool.leaving(hand.number, monotonic()))
        elif kind == "quit":
            self._office.quit_asked()
        elif kind == "fail":
            self._start_failed(hand, body)
        elif kind == "err":
            self._office.error_told(body.decode("utf-8", "replace"))
        elif kind == "busy":
            self._office.expect_overdue()
        elif kind == "full":
            self._office.exhausted(body.decode())

    def _start_failed(self, hand: Hand, body: bytes) -> None:
        """A worker says why it cannot start; its exit follows."""
        import json

        content = json.loads(body)
        hand.reason, hand.traceback_text = content["reason"], content["traceback"]
        if content.get("importing"):
            reason = _without_target(content["reason"], self._source)
            self._import_error = HandlerImportError(self._source.target, content["traceback"], reason)
            # No other worker would fare better: a start, or a reload, has failed.
            self.obey(self.pool.generation_failed(hand.generation, hand.reason, hand.traceback_text, monotonic()))

    def _close_channel(self, hand: Hand) -> None:
        if hand.channel is not None:
            self._office.unwatch(hand.channel.fileno())
            hand.channel.close()
            hand.channel = None

    # -- leftovers ----------------------------------------------------------------------------------------------------

    def _forget_generations(self) -> None:
        """Close the queues of generations that are over; what their workers left in them goes to the next one."""
        inhabited = {hand.generation for hand in self.hands.values()}
        for number, generation in list(self._generations.items()):
            if generation.writer is None and number not in inhabited:
                del self._generations[number]
                self._past.append(generation.spawner)
                for raw in leftovers(generation.reader):
                    self._office.requeue(raw)
                generation.reader.close()


def leftovers(reader: QueueReader) -> list[int]:
    """The connections in a queue that nobody else reads any more."""
    found: list[int] = []
    while True:
        try:
            item = reader.get(serving.DONTWAIT)
        except BlockingIOError:
            return found
        if item == serving.END:
            return found
        if isinstance(item, tuple):
            found.append(item[0])


def _without_target(reason: str, source: HandlerSource) -> str:
    return reason.removeprefix(f"handler {source.target}: ")
