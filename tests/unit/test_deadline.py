"""The time budget of a call, on a clock that the test turns."""

from __future__ import annotations

import time

import pytest

from ipcsrv.deadline import Deadline


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_steps_share_one_budget():
    clock = Clock()
    deadline = Deadline(3.0, clock)
    assert (deadline.remaining(), deadline.expired) == (3.0, False)
    clock.now += 2
    assert (deadline.remaining(), deadline.expired) == (1.0, False)
    clock.now += 1
    assert (deadline.remaining(), deadline.expired) == (0.0, True)


def test_what_remains_is_never_negative():
    clock = Clock()
    deadline = Deadline(1.0, clock)
    clock.now += 50
    assert deadline.remaining() == 0.0
    assert deadline.expired


def test_no_time_at_all_is_expired_at_once():
    deadline = Deadline(0, Clock())
    assert deadline.expired
    assert deadline.remaining() == 0.0


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("-inf")])
def test_deadline_is_refused_when_it_is_no_time(timeout):
    with pytest.raises(ValueError, match="a timeout must be a number of seconds"):
        Deadline(timeout)


@pytest.mark.parametrize("timeout", [float("inf"), 1e12])
def test_timeout_beyond_what_poll_takes_is_no_limit(timeout):
    assert Deadline(timeout).remaining() is None


def test_none_never_expires():
    clock = Clock()
    deadline = Deadline(None, clock)
    clock.now += 1e9
    assert deadline.remaining() is None
    assert not deadline.expired


def test_the_timeout_asked_for_is_kept_to_be_reported():
    assert Deadline(2.5).timeout == 2.5
    assert Deadline(None).timeout is None


def test_the_clock_is_monotonic_time_unless_given():
    before = time.monotonic()
    remaining = Deadline(10).remaining()
    assert 10 - (time.monotonic() - before) <= remaining <= 10
