"""Plain data with named fields: what a frozen `@dataclass` is, without what it costs to import.

`dataclasses` imports `inspect`, which imports half of a compiler, and then writes and compiles the methods of every
class anew each time that its module is imported.  A start of a server would pay for that as much as for Python itself.
Here the fields are read from the class's annotations, and one set of methods serves all classes.  Runs in any process.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, TypeVar, dataclass_transform

    _R = TypeVar("_R", bound="Record")
else:

    def dataclass_transform(**_: object) -> object:
        """For the type checker alone: its own would be one more import."""
        return lambda kind: kind


@dataclass_transform(frozen_default=True)
class Record:
    """The base of such a class; its annotations are the fields, in their order, and what they are set to the defaults.

    Compared, hashed, printed, matched and iterated by its fields; cannot be changed, but see `replace`.
    """

    _fields: tuple[str, ...]
    _defaults: dict[str, Any]

    def __init_subclass__(cls) -> None:
        cls._fields = tuple(cls.__annotations__)
        cls.__match_args__ = cls._fields  # type: ignore[attr-defined, misc]  # mypy has one of its own
        cls._defaults = {name: vars(cls)[name] for name in cls._fields if name in vars(cls)}

    def __init__(self, *values: Any, **named: Any) -> None:
        placed = dict(zip(self._fields, values))
        given = {**self._defaults, **placed, **named}
        if len(values) > len(placed) or placed.keys() & named.keys() or given.keys() != set(self._fields):
            raise TypeError(f"{type(self).__name__} takes {', '.join(self._fields)}")
        vars(self).update(given)

    def __iter__(self) -> Iterator[Any]:
        return (vars(self)[name] for name in self._fields)

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), *self))

    def __repr__(self) -> str:
        fields = (f"{name}={value!r}" for name, value in zip(self._fields, self))
        return f"{type(self).__name__}({', '.join(fields)})"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be removed")


def replace(record: _R, **changes: Any) -> _R:
    """A record like this one but for `changes`, by field."""
    return type(record)(**{**vars(record), **changes})
