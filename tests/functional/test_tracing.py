"""The hooks around each request, and the recipe of docs/tracing.md that is made of them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import support
from conftest import ServerFactory

import ipcsrv

HOOKS = ("--on-request-start", "handlers_with_hooks:starts", "--on-request-end", "handlers_with_hooks:ends")


class Hooked:
    """A server with hooks, and what they have noted."""

    def __init__(self, server: ServerFactory, folder: Path) -> None:
        self._notes = folder / "notes"
        environment = {"HANDLERS_WITH_HOOKS_NOTES": str(self._notes)}
        self.running = server("handlers_with_hooks:handle", "--workers", "1", *HOOKS, env=environment)
        self.call = self.running.call

    def notes(self, last: str) -> list[str]:
        """All notes, once the last is there: an end is noted after the response may have gone."""
        support.wait_until(lambda: self._notes.exists() and last in self._notes.read_text().splitlines(), last)
        return self._notes.read_text().splitlines()


@pytest.fixture
def hooked(server: ServerFactory, tmp_path: Path) -> Hooked:
    return Hooked(server, tmp_path)


def test_request_hooks_get_the_same_request(hooked: Hooked) -> None:
    assert hooked.call(b"one") == b"one"
    assert hooked.notes("end one NoneType") == ["start one True", "handle one", "end one NoneType"]


def test_the_end_is_told_what_the_handler_raised(hooked: Hooked) -> None:
    with pytest.raises(ipcsrv.HandlerError, match="ValueError: no"):
        hooked.call(b"raise")
    assert hooked.notes("end raise ValueError")[-1] == "end raise ValueError"


def test_a_stream_has_its_end_when_it_has_ended(hooked: Hooked) -> None:
    assert hooked.call(b"stream") == b"chunk"
    assert hooked.notes("end stream NoneType")[-2:] == ["between chunks", "end stream NoneType"]
    with pytest.raises(ipcsrv.IpcError):
        hooked.call(b"break")
    assert "end break OSError" in hooked.notes("end break OSError")


def test_stream_without_its_client_ends_with_generator_exit(hooked: Hooked) -> None:
    with ipcsrv.connect(hooked.running.path, timeout=support.TIMEOUT) as connection:
        assert next(connection.stream(b"endless")) == b"chunk"
    assert hooked.notes("end endless GeneratorExit")


def test_start_hook_that_raises_fails_the_request(hooked: Hooked) -> None:
    with pytest.raises(ipcsrv.HandlerError, match="PermissionError: not you"):
        hooked.call(b"forbidden")
    assert hooked.call(b"hook") == b"hook"
    assert "handle forbidden" not in hooked.notes("end hook NoneType")
    hooked.running.output.wait_for("on_request_end failed")
    hooked.running.output.wait_for("RuntimeError: the hook itself")


def test_failures_of_the_end_hook_are_counted_beyond_a_limit(hooked: Hooked) -> None:
    until = time.monotonic() + 1.2  # seconds: longer than the interval in which they are counted
    with ipcsrv.connect(hooked.running.path) as connection:
        while time.monotonic() < until:
            connection.call(b"hook")
    hooked.running.output.wait_for("more not logged: failures of on_request_end")


def test_without_hooks_the_handler_is_called_directly() -> None:
    from ipcsrv.config.settings import make
    from ipcsrv.worker.hooks import between_hooks

    assert between_hooks(len, make()) is len


def test_the_opentelemetry_recipe_makes_a_span_of_each_request(server: ServerFactory) -> None:
    pytest.importorskip("opentelemetry.sdk")
    paths = os.pathsep.join([str(support.ROOT / "examples" / "tracing"), support.environment()["PYTHONPATH"]])
    running = server(
        "handlers_for_tests:crash_if_asked", "--workers", "1",
        "--on-worker-start", "tracing:begin", "--on-worker-stop", "tracing:end",
        "--on-request-start", "tracing:request_begins", "--on-request-end", "tracing:request_ends",
        env={"PYTHONPATH": paths, "PYTHONWARNINGS": ""},
    )  # fmt: skip
    for size in (3, 5):
        running.call(b"x" * size)
    assert running.stop() == 0
    spans = read_spans(running.output.rest())
    assert [span["attributes"]["ipc.request.size"] for span in spans] == [3, 5]
    assert {(span["name"], span["kind"]) for span in spans} == {("ipc request", "SpanKind.SERVER")}
    assert {span["attributes"]["ipc.peer.pid"] for span in spans} == {os.getpid()}
    assert all(span["start_time"] < span["end_time"] for span in spans)


def read_spans(text: str) -> list[dict[str, dict[str, int]]]:
    """The JSON objects that the console exporter has printed between the log's lines."""
    spans, decoder = [], json.JSONDecoder()
    while (at := text.find("\n{")) >= 0:
        span, end = decoder.raw_decode(text[at + 1 :])
        spans.append(span)
        text = text[at + 1 + end :]
    return spans
