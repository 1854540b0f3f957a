"""Records are what frozen dataclasses are, as far as this package uses them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from ipcsrv._record import Record, replace


class Point(Record):
    x: int
    y: int = 7


class Other(Record):
    x: int
    y: int = 7


def test_fields_are_given_in_their_order_or_by_name_and_may_have_defaults() -> None:
    point = Point(1)
    assert (point.x, point.y) == (1, 7)
    assert Point(1, 2) == Point(y=2, x=1)


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1}), ((), {"y": 1})]
)
def test_a_field_too_many_or_too_few_is_refused(values: tuple[int, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Point takes x, y"):
        Point(*values, **named)


def test_it_is_equal_to_one_of_its_kind_with_the_same_fields_and_to_nothing_else() -> None:
    assert Point(1) == Point(1)
    assert Point(1) != Point(2)
    assert Point(1) != Other(1)
    assert len({Point(1), Point(1), Other(1)}) == 2


def test_it_cannot_be_changed() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match=r"Point\.x cannot be changed"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match=r"Point\.x cannot be removed"):
        del point.x
    assert point.x == 1


def test_another_is_made_with_some_fields_changed() -> None:
    point = Point(1)
    assert (replace(point, y=0), point) == (Point(1, 0), Point(1, 7))


def test_it_prints_as_it_is_written() -> None:
    assert repr(Point(y=2, x=1)) == "Point(x=1, y=2)"


def test_it_can_be_matched_by_the_order_of_its_fields() -> None:
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)


def test_its_values_can_be_iterated_in_that_order() -> None:
    assert list(Point(y=2, x=1)) == [1, 2]


def test_it_survives_pickle() -> None:
    assert pickle.loads(pickle.dumps(Point(1, 2))) == Point(1, 2)
