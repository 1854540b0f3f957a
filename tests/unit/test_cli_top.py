"""The screen of `top` for any size of terminal, and its keys; the terminal itself is in tests/functional."""

from __future__ import annotations

import io
import sys
from collections import deque
from typing import Any

import pytest
from sample_status import STATUS

from ipcsrv.cli import top
from ipcsrv.cli._dashboard import History, Line, screen, sparkline
from ipcsrv.errors import NotListening


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


def status(**changes: Any) -> dict[str, Any]:
    return {**STATUS, **changes}


def history(*requests: int) -> History:
    """A history of so many requests in all, a second apart."""
    found = History()
    for second, count in enumerate(requests):
        found.add(status(totals={**STATUS["totals"], "requests": count}), float(second))
    return found


@pytest.mark.parametrize("width", [10, 40, 80, 200])
@pytest.mark.parametrize("height", [3, 10, 24, 50])
@pytest.mark.parametrize("workers", [0, 2, 100])
def test_screen_fits_the_terminal(width: int, height: int, workers: int) -> None:
    facts = status(workers=[STATUS["workers"][0]] * workers)
    lines = screen(facts, history(*range(0, 60000, 100)), "", width, height)
    assert len(lines) <= height
    assert max(len(line.text) for line in lines) <= width
    assert lines[-1].text[:5] == "r rel"


def test_screen_of_80_by_24_shows_every_figure() -> None:
    text = "\n".join(line.text for line in screen(STATUS, history(0, 100, 300), "", 80, 24))
    for said in ("running", "pid 4242", "4243", "busy 12.3 s", "1.23M", "123 MiB", "req/s", "200", "p99", "▅█",
                 "17 idle, 1,234 stalled (123 MiB buffered), 3 suspended", "2 workers, 1 busy, target 2", "SIGSEGV",
                 "512 waiting, the oldest for 3.50 s; not accepting", "q quit"):  # fmt: skip
        assert said in text, said
    assert "..." not in text.replace("x...", "")  # only the long error is cut


def test_workers_that_do_not_fit_are_counted() -> None:
    lines = screen(status(workers=[STATUS["workers"][0]] * 50), History(), "", 80, 24)
    shown = sum(" 4243 " in line.text for line in lines)
    assert any(f"and {50 - shown} workers more" in line.text for line in lines)


def test_notice_replaces_the_keys() -> None:
    assert screen(STATUS, History(), "reloading ...", 80, 24)[-1] == Line("reloading ...", "warning")


def test_sparkline_shows_the_newest_values_to_scale() -> None:
    assert sparkline(deque([0, 1, 50, 100]), 80) == "▁▂▅█"
    assert sparkline(deque([100, 0, 0]), 2) == "▁▁"
    assert sparkline(deque([1.0, 2.0]), 0) == ""
    assert sparkline(deque(), 10) == ""


def test_bars_are_ascii_without_unicode() -> None:
    lines = screen(status(last_error=None), history(0, 10, 30), "", 80, 24, ascii_only=True)
    assert all(line.text.isascii() for line in lines)


def test_rate_is_that_between_two_updates() -> None:
    assert list(history(100, 150, 350).rates) == [50.0, 200.0]


def test_rate_starts_anew_after_a_restart() -> None:
    found = history(1000, 2000)
    found.add(status(pid=5, totals={**STATUS["totals"], "requests": 10}), 10.0)
    found.add(status(pid=5, totals={**STATUS["totals"], "requests": 30}), 11.0)
    assert list(found.rates) == [1000.0, 20.0]


def test_plain_canvas_restores_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Terminal()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", written)
    with top._PlainCanvas() as canvas:
        canvas.draw([Line("one", "title"), Line("two")])
    text = written.getvalue()
    assert text.startswith("\x1b[?1049h\x1b[?25l")
    assert text.endswith("\x1b[?25h\x1b[?1049l")
    assert "\x1b[H\x1b[1mone\x1b[0m\x1b[K\r\ntwo\x1b[K\x1b[J" in text


def test_no_color_turns_colours_off(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Terminal()
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setenv("NO_COLOR", "1")
    top._PlainCanvas().draw([Line("one", "busy")])
    assert written.getvalue() == "\x1b[Hone\x1b[K\x1b[J"


def test_stopped_server_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from ipcsrv.server import server

    def gone(path: str) -> dict[str, Any]:
        raise NotListening(path)

    monkeypatch.setattr(server, "status", gone)
    view = top.View("./s", STATUS)
    view.look()
    assert view.lines(80, 24)[-1].text.startswith("the server has stopped")
    monkeypatch.setattr(server, "status", lambda path: STATUS)
    view.look()
    assert view.act("")


@pytest.mark.parametrize("key", ["q", "Q", "\x03"])
def test_q_and_ctrl_c_quit(key: str) -> None:
    assert not top.View("./s", STATUS).act(key)


def test_update_between_two_samples_makes_no_rate() -> None:
    found = History(spacing=0.5)
    for now, requests in ((0.0, 0), (1.0, 100), (1.1, 1000), (2.0, 1100)):
        found.add(status(totals={**STATUS["totals"], "requests": requests}), now)
    assert list(found.rates) == [100.0, 1000.0]
