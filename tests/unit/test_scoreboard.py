"""The scoreboard: its layout, its histograms, what is kept of the departed, and the last minute."""

from __future__ import annotations

import math
import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipcsrv.supervision import scoreboard
from ipcsrv.supervision.scoreboard import (
    BYTES_IN,
    HANDLER,
    HISTOGRAM_BUCKETS,
    OK,
    PID,
    QUEUE_WAIT,
    REQUESTS,
    SINCE_NS,
    WATCHED,
    WHOLE,
    Phase,
    Recent,
    Scoreboard,
    SlotFacts,
    Totals,
    bucket,
    lower_bound,
    percentile,
)

HOUR_NS = 3_600_000_000_000


@pytest.fixture
def board() -> Scoreboard:
    return Scoreboard(bytearray(scoreboard.size(3)), 3)


def histogram(*durations_ns: int) -> list[int]:
    counts = [0] * HISTOGRAM_BUCKETS
    for nanoseconds in durations_ns:
        counts[bucket(nanoseconds)] += 1
    return counts


# -- layout -----------------------------------------------------------------------------------------------------


def test_words_have_the_names_of_facts_in_order() -> None:
    gauges = [getattr(scoreboard, name.upper()) for name in SlotFacts._fields[:-1]]
    counters = [getattr(scoreboard, name.upper()) for name in Totals._fields[:-3]]
    assert gauges + counters == list(range(scoreboard.FIRST_HISTOGRAM))
    assert [getattr(scoreboard, name.upper()) for name in Totals._fields[-3:]] == [QUEUE_WAIT, HANDLER, WHOLE]


def test_two_slots_share_no_cache_line() -> None:
    assert scoreboard.SLOT_BYTES % 64 == 0
    assert scoreboard.SLOT_BYTES >= (WHOLE + HISTOGRAM_BUCKETS) * 8
    assert scoreboard.size(5) - scoreboard.size(0) == 5 * scoreboard.SLOT_BYTES


def test_what_a_worker_writes_is_read_in_its_slot_alone(board: Scoreboard) -> None:
    words = board.words(1)
    words[PID], words[SINCE_NS], words[WATCHED] = 42, 7, 2**40
    words[REQUESTS] += 3
    words[WHOLE + bucket(5000)] += 1
    facts = board.facts(1)
    assert (facts.pid, facts.since_ns, facts.watched, facts.totals.requests) == (42, 7, 2**40, 3)
    assert (sum(facts.totals.whole), sum(facts.totals.handler), sum(facts.totals.queue_wait)) == (1, 0, 0)
    assert board.facts(0) == board.facts(2)
    assert board.facts(0).pid == 0


def test_two_views_of_one_mapping_see_each_other() -> None:
    with mmap.mmap(-1, scoreboard.size(2)) as mapping:
        writer, reader = Scoreboard(mapping, 2), Scoreboard(mapping, 2)
        writer.words(1)[PID] = 42
        writer.words(1)[OK] += 1
        assert reader.totals().ok == 1
        writer.release()
        reader.release()


def test_a_released_scoreboard_lets_its_mapping_be_closed() -> None:
    mapping = mmap.mmap(-1, scoreboard.size(2))
    board = Scoreboard(mapping, 2)
    with pytest.raises(BufferError):
        mapping.close()
    board.release()
    mapping.close()


def test_a_buffer_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        Scoreboard(bytearray(scoreboard.size(2) - 1), 2)


# -- totals -----------------------------------------------------------------------------------------------------


def test_totals_are_the_sums_over_all_slots(board: Scoreboard) -> None:
    for slot in range(3):
        board.words(slot)[PID] = 42
        board.words(slot)[BYTES_IN] = 10**slot
        board.words(slot)[HANDLER + bucket(2000)] = 1
    assert board.totals().bytes_in == 111
    assert board.totals().handler[bucket(2000)] == 3


def test_totals_do_not_change_when_a_slot_is_folded(board: Scoreboard) -> None:
    board.words(0)[PID] = board.words(2)[PID] = 42
    board.words(0)[REQUESTS] = 5
    board.words(2)[QUEUE_WAIT] = 2
    before = board.totals()
    board.fold(0)
    board.fold(2)
    assert board.totals() == before
    assert board.facts(0).totals.requests == 0


def test_a_folded_slot_counts_from_zero_and_keeps_no_gauge(board: Scoreboard) -> None:
    board.words(0)[PID] = 42
    board.words(0)[REQUESTS] = 5
    board.fold(0)
    assert board.facts(0).pid == 0
    board.words(0)[PID] = 43
    board.words(0)[REQUESTS] += 1
    assert board.facts(0).totals.requests == 1
    assert board.totals().requests == 6


def test_a_cleared_slot_is_forgotten(board: Scoreboard) -> None:
    board.words(0)[PID] = 42
    board.words(0)[REQUESTS] = 5
    board.clear(0)
    assert board.totals().requests == 0


def test_impossible_counters_of_a_gone_worker_are_not_kept(board: Scoreboard) -> None:
    board.words(0)[OK], board.words(0)[REQUESTS] = 3, 2**61
    board.fold(0)
    assert (board.totals().ok, board.totals().requests) == (0, 0)


def test_what_the_master_counts_is_in_the_totals(board: Scoreboard) -> None:
    board.count(OK)
    board.count(OK, 4)
    assert board.totals().ok == 5


def test_lent_word_keeps_number_and_phase() -> None:
    assert scoreboard.parse_lent(scoreboard.lent(9, Phase.WRITING)) == (9, Phase.WRITING)
    assert scoreboard.parse_lent(9 << 3 | 7) == (9, Phase.BETWEEN)  # a phase that no worker writes


def test_ring_gives_each_number_once_and_refuses_more_than_fit(board: Scoreboard) -> None:
    words = board.words(0)
    assert scoreboard.take_ended(words) == []
    for start in (0, 100):  # the second time it goes round
        assert all(scoreboard.push_ended(words, start + at) for at in range(scoreboard.RING_SIZE))
        assert not scoreboard.push_ended(words, 1)
        assert scoreboard.take_ended(words) == list(range(start, start + scoreboard.RING_SIZE))
    assert scoreboard.take_ended(words) == []


def test_ring_head_that_cannot_be_gives_nothing(board: Scoreboard) -> None:
    board.words(0)[scoreboard.RING_HEAD] = 2**63
    assert scoreboard.take_ended(board.words(0)) == []


# -- histograms -------------------------------------------------------------------------------------------------


def test_buckets_cover_a_microsecond_to_an_hour() -> None:
    assert [bucket(0), bucket(999), bucket(1024), bucket(1280)] == [0, 0, 0, 1]
    assert bucket(HOUR_NS) < HISTOGRAM_BUCKETS - 1
    assert bucket(2**42) == bucket(2**80) == HISTOGRAM_BUCKETS - 1


@given(st.integers(min_value=1024, max_value=2**42 - 1))
def test_a_duration_lies_within_the_bounds_of_its_bucket(nanoseconds: int) -> None:
    index = bucket(nanoseconds)
    assert lower_bound(index) <= nanoseconds / 1e9 < lower_bound(index + 1)


@pytest.mark.parametrize("index", range(HISTOGRAM_BUCKETS))
def test_each_bucket_begins_where_its_lower_bound_says(index: int) -> None:
    start = round(lower_bound(index) * 1e9)
    assert bucket(start) == index
    assert bucket(start - 1) == max(0, index - 1)
    assert lower_bound(index + 1) / lower_bound(index) <= 1.25


def test_nothing_counted_has_the_percentile_zero() -> None:
    assert percentile([0] * HISTOGRAM_BUCKETS, 0.5) == 0.0


@given(
    st.lists(st.integers(min_value=1024, max_value=HOUR_NS), min_size=1), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0])
)
def test_a_percentile_lies_in_the_bucket_of_the_exact_one(durations: list[int], q: float) -> None:
    exact = sorted(durations)[max(0, math.ceil(q * len(durations)) - 1)]
    index = bucket(exact)
    assert lower_bound(index) <= percentile(histogram(*durations), q) <= lower_bound(index + 1)


def test_percentiles_grow_with_their_rank() -> None:
    counts = histogram(*range(1000, 10_000_000, 10_000))
    values = [percentile(counts, q / 100) for q in range(101)]
    assert values == sorted(values)
    assert percentile(counts, 0.5) == pytest.approx(0.005, rel=0.05)


# -- the last minute --------------------------------------------------------------------------------------------


def totals(requests: int) -> Totals:
    board = Scoreboard(bytearray(scoreboard.size(1)), 1)
    board.words(0)[PID] = 42
    board.words(0)[REQUESTS] = requests
    board.words(0)[HANDLER + bucket(1_000_000)] = requests
    return board.totals()


def test_without_a_snapshot_nothing_is_recent() -> None:
    window = Recent().window(10.0, totals(5))
    assert window.seconds == 0.0
    assert window.rate("requests") == 0.0
    assert sum(window.totals.handler) == 0


def test_a_window_counts_what_came_since_its_snapshot() -> None:
    recent = Recent()
    recent.push(0.0, totals(100))
    window = recent.window(20.0, totals(140))
    assert window.seconds == 20.0
    assert window.rate("requests") == 2.0
    assert sum(window.totals.handler) == 40


def test_window_begins_at_the_last_snapshot_before_the_minute() -> None:
    recent = Recent(60.0)
    for second in range(0, 200, 10):
        recent.push(float(second), totals(second))
    window = recent.window(195.0, totals(195))
    assert window.seconds == 65.0
    assert window.totals.requests == 65


def test_window_says_its_length_after_a_long_silence() -> None:
    recent = Recent(60.0)
    recent.push(0.0, totals(1))
    recent.push(5.0, totals(2))
    window = recent.window(1000.0, totals(3))
    assert (window.seconds, window.totals.requests) == (995.0, 1)


def test_snapshots_in_quick_succession_are_taken_once() -> None:
    recent = Recent(spacing=1.0)
    recent.push(0.0, totals(0))
    recent.push(0.5, totals(50))
    assert recent.window(1.0, totals(60)).totals.requests == 60
