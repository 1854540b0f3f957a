"""A request that fails, and exceptions in words. In the worker.

The handler's objects are not trusted: an exception may raise when it is printed, a class may lie about its name.
"""

from __future__ import annotations

MOST_TEXT = 1000  # characters of an exception's text


class Failure(Exception):
    """What the client is answered in place of a response: `ERR code message`.

    counter: the word of the scoreboard that counts it.
    """

    def __init__(self, code: str, message: str, counter: int) -> None:
        super().__init__(message)
        self.code, self.message, self.counter = code, message, counter


class Gone(Exception):
    """The client of a stream has closed its end."""


def describe(error: BaseException) -> str:
    """Return type and text of an exception, whatever its `__str__` does."""
    name = type_name(error)
    try:
        text = str(error)[:MOST_TEXT]
    except BaseException as inner:
        return f"{name}: (its text cannot be made: {type_name(inner)})"
    return f"{name}: {text}" if text.strip() else name


def type_name(thing: object) -> str:
    """Return the name of an object's real type; `__class__` may be the user's own property."""
    name = type.__dict__["__name__"].__get__(type(thing))
    return str(name)
