"""Where a request comes together: one routine, run on the class in Python and, where it was compiled, on that in C."""

from __future__ import annotations

import gc
import pickle
import random
import sys
import tracemalloc
from collections.abc import Callable

import pytest

from ipcsrv.protocol.pktline import MAX_DATA, Assembly
from ipcsrv.request import Request
from ipcsrv.worker.assembly import compiled_assembly

Make = Callable[[], Assembly]
COMPILED = compiled_assembly()
KINDS: dict[str, Make] = {"python": Assembly}
if COMPILED is not None:
    KINDS["compiled"] = lambda: COMPILED(Request)

needs_compiled = pytest.mark.skipif(COMPILED is None, reason="not compiled here")


@pytest.fixture(params=KINDS)
def assembly(request: pytest.FixtureRequest) -> Assembly:
    return KINDS[request.param]()


def request_of(assembly: Assembly) -> Request:
    """As the worker does it."""
    payload = assembly.join()
    return payload if isinstance(payload, Request) else Request(payload)


def fill(assembly: Assembly, data: bytes, choose: random.Random) -> None:
    at = 0
    while at < len(data):
        size = choose.choice((1, 2047, 30_000, MAX_DATA))
        piece = data[at : at + size]
        assembly.append(choose.choice((piece, memoryview(piece))))
        at += size


SIZES = [0, 1, 7, 8, 9, 100, MAX_DATA, 100_000, 10, 3 << 20, 3 << 20, 3_000_000, 5, 2_700_000, 6 << 20, 0, 70_000]


@pytest.mark.parametrize("seed", range(3))
def test_requests_of_all_sizes_one_after_the_other(assembly: Assembly, seed: int):
    choose = random.Random(seed)
    for size in choose.sample(SIZES, len(SIZES)):
        data = choose.randbytes(size)
        fill(assembly, data, choose)
        assert assembly.size == size
        request = request_of(assembly)
        assert assembly.size == 0
        assert type(request) is Request
        assert (request, hash(request), len(request)) == (data, hash(data), size)
        assert request + b"x" == data + b"x"
        assert {request: 1}[data] == 1


def test_a_request_is_as_one_that_was_made_from_bytes(assembly: Assembly):
    for size in (0, 5, 8, 100_000):
        data = bytes(size)
        if data:
            assembly.append(data)
        request, made = request_of(assembly), Request(data)
        assert request._context is None
        assert not vars(request)
        assert sys.getsizeof(request) == sys.getsizeof(made)
        assert gc.is_tracked(request) == gc.is_tracked(made)
        request._context = made._context = (None, 1, 2.0)  # type: ignore[assignment]
        assert request.deadline == made.deadline
        assert vars(request) == vars(made)
        assert type(pickle.loads(pickle.dumps(request))) is bytes


def test_an_empty_piece_adds_nothing(assembly: Assembly):
    assembly.append(b"")
    assembly.append(b"a")
    assembly.append(memoryview(b""))
    assert request_of(assembly) == b"a"


@pytest.mark.parametrize("piece", ["text", 3, None, memoryview(b"abcd")[::2]])
def test_what_is_no_run_of_bytes_is_refused(assembly: Assembly, piece: object):
    assembly.append(b"ab")
    with pytest.raises((TypeError, BufferError)):
        assembly.append(piece)  # type: ignore[arg-type]
    assembly.append(b"c")
    assert request_of(assembly) == b"abc"


def test_requests_in_a_cycle_are_collected(assembly: Assembly):
    def alive() -> int:
        return sum(type(found) is Request for found in gc.get_objects())

    gc.collect()
    before = alive()
    for _ in range(10):
        assembly.append(b"abc")
        request = request_of(assembly)
        request._context = (request, 0, None)  # type: ignore[assignment]
        del request
    gc.collect()
    assert alive() == before


@needs_compiled
def test_what_was_begun_is_freed_with_its_assembly():
    types = sys.getrefcount(Request)
    for _ in range(100):
        assembly = COMPILED(Request)
        assembly.append(bytes(100_000))
    del assembly
    assert sys.getrefcount(Request) == types


@needs_compiled
def test_a_request_does_not_keep_much_more_memory_than_it_has_bytes():
    assembly = COMPILED(Request)
    assembly.append(bytes(8 << 20))
    assembly.join()  # so much room is made for the next one
    tracemalloc.start()
    try:
        assembly.append(bytes(2 << 20))
        request = assembly.join()
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(request) == 2 << 20
    assert kept < (2 << 20) * 9 // 8 + 10_000


@needs_compiled
@pytest.mark.parametrize("kind", [bytes, bytearray, object, type("Small", (bytes,), {"__slots__": ()}), int])
def test_a_type_of_another_layout_is_refused(kind: type):
    with pytest.raises(TypeError):
        COMPILED(kind)


@needs_compiled
def test_it_is_set_up_once():
    assembly = COMPILED(Request)
    with pytest.raises(TypeError):
        assembly.__init__(Request)
