"""Exceptions as text, whatever their classes do. In any process that runs code of the user's.

The user's classes are not trusted: an exception may raise when it is printed or when any attribute of it is read, and
its class may lie about its name. So what is read here is read past the class (`BaseException.__dict__`), or guarded.
"""

from __future__ import annotations

import signal
import traceback
from types import FrameType, TracebackType
from typing import Any

MOST_TEXT = 1000  # characters of an exception's text

_TRACEBACK: Any = BaseException.__dict__["__traceback__"]
_NAME: Any = type.__dict__["__name__"]


def describe(error: BaseException) -> str:
    """Return type and text of an exception, whatever its `__str__` does; the type alone if there is no text."""
    name = type_name(error)
    try:
        text = str.__str__(str(error))[:MOST_TEXT]  # a subclass of `str` may have methods of its own
    except BaseException as inner:
        return f"{name}: (its text cannot be made: {type_name(inner)})"
    return f"{name}: {text}" if text.strip() else name


def type_name(thing: object) -> str:
    """Return the name of an object's real type; `__class__` may be the user's own property."""
    return str.__str__(_NAME.__get__(type(thing)))


def trace_of(error: BaseException) -> TracebackType | None:
    """Return `error.__traceback__`; the class may have a property of that name."""
    trace: TracebackType | None = _TRACEBACK.__get__(error)
    return trace


def module_of(frame: FrameType) -> str:
    """Return the name of the module that a frame is of; "" if its globals hold none."""
    name = dict.get(frame.f_globals, "__name__")
    return name if type(name) is str else ""


def trace_without(error: BaseException, leading: str | tuple[str, ...]) -> TracebackType | None:
    """Return the traceback from the first frame on whose module's name does not begin so; all of it if none is left."""
    trace = whole = trace_of(error)
    while trace is not None and module_of(trace.tb_frame).startswith(leading):
        trace = trace.tb_next
    return trace or whole


def traceback_text(error: BaseException, trace: TracebackType | None, limit: int | None = None) -> str:
    """Return the exception as Python prints it, with the traceback `trace`; as much of that as can be made."""
    try:
        return "".join(traceback.format_exception(type(error), error, trace, limit=limit)).rstrip()
    except BaseException:
        described = describe(error)
    try:
        return "".join(["Traceback (most recent call last):\n", *traceback.format_tb(trace, limit), described])
    except BaseException:
        return described


def is_interrupt(error: BaseException) -> bool:
    """Return whether Ctrl-C may have raised the exception.

    In a worker and a template SIGINT raises nothing: there a `KeyboardInterrupt` is the user's own code's. A signal
    handler in Python that raises it is the innermost frame.
    """
    if not issubclass(type(error), KeyboardInterrupt):
        return False
    handler = signal.getsignal(signal.SIGINT)
    trace = trace_of(error)
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    by_handler = trace is not None and trace.tb_frame.f_code is getattr(handler, "__code__", None)
    return by_handler or handler is signal.default_int_handler
