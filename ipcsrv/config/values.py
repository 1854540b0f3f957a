"""The kinds of value a setting can have: text or a Python value in, a checked value out, and back to text.

A setting is given as a keyword (`max_rss=1 << 30`), a TOML value (`mode = 0o660`), or text (`--drain-timeout 5m`,
`IPCSRV_WORKERS=4`). A `Kind` takes them all, so that the four ways cannot differ, and `show` writes what `parse`
reads. Pure; runs in whichever process reads settings, and in the command line for its own times.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

# Compiled when they are first used: few starts use them all.
_NUMBER_AND_UNIT = r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*"
_SIZE_UNITS = {"": 1, "b": 1} | {
    unit: 1024**power for power, letter in enumerate("kmgt", 1) for unit in (letter, f"{letter}b", f"{letter}ib")
}
_TIME_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SWITCH_WORDS = {word: True for word in ("1", "true", "yes", "on")} | {
    word: False for word in ("0", "false", "no", "off")
}
_ALLOW = r"(uid|gid):[0-9]+|(user|group):[^\s:,]+|S-1-[0-9-]+"
_ENGINE = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[!-~]+"
_TARGET = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*"


@dataclass(frozen=True)
class Kind:
    """How one kind of value is read and written; `parse` raises ValueError with the reason as a sentence's end."""

    metavar: str
    parse: Callable[[Any], Any]
    show: Callable[[Any], str]
    unit: str = ""


def _scaled(value: object, units: dict[str, Any], expected: str) -> float:
    """A number of base units from `value`, a number or text with a unit."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number, unit = float(value), ""
        except OverflowError:  # of a whole number with hundreds of digits
            raise ValueError(f"is not {expected}") from None
    elif isinstance(value, str) and (match := re.fullmatch(_NUMBER_AND_UNIT, value, re.ASCII)):
        number, unit = float(match[1]), match[2].lower()
    else:
        raise ValueError(f"is not {expected}")
    if unit not in units or not math.isfinite(number):
        raise ValueError(f"is not {expected}")
    return number * float(units[unit])


def parse_size(value: object) -> int:
    """Bytes, from a whole number or text such as 64MiB, 1G, 4096."""
    return round(_scaled(value, _SIZE_UNITS, "a size such as 4096, 64MiB or 1G"))


def show_size(size: int) -> str:
    """Return text that `parse_size` reads."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size and size % scale == 0:
            return f"{size // scale}{unit}"
    return str(size)


def parse_seconds(value: object) -> float:
    """Seconds, from a number or text such as 30, 30s, 250ms, 5m, 1h."""
    return _scaled(value, _TIME_UNITS, "a time such as 30, 30s, 250ms, 5m or 1h")


def show_seconds(seconds: float) -> str:
    """Return text that `parse_seconds` reads."""
    for unit, scale in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % scale == 0:
            return f"{int(seconds // scale)}{unit}"
    return f"{seconds:.15g}s"


def parse_count(value: object) -> int:
    """Return a whole number, from a number or text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]+\s*", value, re.ASCII):
        return int(value)
    raise ValueError("is not a whole number")


def parse_switch(value: object) -> bool:
    """Return True or False, from a bool or words such as on, off, yes, no."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _SWITCH_WORDS:
        return _SWITCH_WORDS[value.strip().lower()]
    raise ValueError("is neither on nor off")


def show_switch(value: bool) -> str:
    """Return on or off."""
    return "on" if value else "off"


def parse_text(value: object) -> str:
    """Return text that is not empty."""
    if isinstance(value, str) and value and "\0" not in value:
        return value
    raise ValueError("is not text")


def parse_file(value: object) -> str:
    """A file's name: text or a path object."""
    return parse_text(value.__fspath__() if hasattr(value, "__fspath__") else value)


LOG_STREAMS = {"/dev/stderr": 2, "/dev/stdout": 1}  # log files that are standard streams, with their descriptors
NO_STREAMS = "a server in the background has no standard streams; name a file"  # said of such a log file
_STREAM_NAMES = {"-": "/dev/stderr"} | {
    f"{folder}/{number}": name for name, number in LOG_STREAMS.items() for folder in ("/dev/fd", "/proc/self/fd")
}


def parse_log_file(value: object) -> str:
    """A file's name, or a standard stream by any of its names; `-` is standard error."""
    name = parse_file(value)
    return _STREAM_NAMES.get(name, name)


def parse_mode(value: object) -> int:
    """Permission bits: 0o660 as a number, or octal digits as text."""
    if isinstance(value, str) and re.fullmatch(r"\s*(0o)?[0-7]{1,4}\s*", value, re.ASCII):
        value = int(value.strip().removeprefix("0o"), 8)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0o777:
        return value
    raise ValueError("is not a mode in octal such as 0600 or 0o660, at most 0777")


def show_mode(mode: int) -> str:
    """Return four octal digits."""
    return f"{mode:04o}"


def parse_allow(value: object) -> tuple[str, ...]:
    """Who else may connect: entries `uid:N`, `gid:N`, `user:NAME`, `group:NAME` or a Windows SID.

    A bare number is a uid and a bare name a user; text holds several with commas between.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise ValueError("is not a list of users or groups")
    entries = [part.strip() for entry in map(_entry_text, value) for part in entry.split(",")]
    return tuple(_allow_entry(entry) for entry in entries if entry)


def _entry_text(entry: object) -> str:
    if isinstance(entry, str) or (isinstance(entry, int) and not isinstance(entry, bool)):
        return str(entry)
    raise ValueError("is not a list of users or groups")


def _allow_entry(entry: str) -> str:
    if ":" not in entry and not entry.startswith("S-1-"):
        entry = f"uid:{entry}" if entry.isdecimal() else f"user:{entry}"
    if not re.fullmatch(_ALLOW, entry, re.ASCII):
        raise ValueError("is not a list of uid:N, gid:N, user:NAME, group:NAME or Windows SIDs")
    return entry


def parse_hook(value: object) -> object:
    """A callable, or the text MODULE:CALLABLE that leads to one."""
    if callable(value) or (isinstance(value, str) and re.fullmatch(_TARGET, value)):
        return value
    raise ValueError("is neither MODULE:CALLABLE nor a callable")


def parse_executor(value: object) -> str:
    """The text ENGINE:ADDRESS; an engine is a module."""
    if isinstance(value, str) and re.fullmatch(_ENGINE, value):
        return value
    raise ValueError("is not ENGINE:ADDRESS, such as dask:tcp://HOST:8786")


def show_hook(value: object) -> str:
    """MODULE:CALLABLE of a hook, or what tells people of one that has no such name."""
    return value if isinstance(value, str) else name_of(value)


def name_of(function: object) -> str:
    """MODULE:CALLABLE of a callable, by which another process can import it.

    An object that is found under no such name gets one that cannot be taken for it.
    """
    module = str(getattr(function, "__module__", "?"))
    if module == "__mp_main__":  # which multiprocessing calls it in its processes
        module = "__main__"
    qualified = getattr(function, "__qualname__", type(function).__qualname__)
    found: object = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    same = found is function or (isinstance(found, MethodType) and found == function)  # of a class
    return f"{module}:{qualified}" if same or "<" in qualified else f"{module}:{qualified} (an object)"


COUNT = Kind("N", parse_count, str)
SIZE = Kind("SIZE", parse_size, show_size, "bytes")
SECONDS = Kind("TIME", parse_seconds, show_seconds, "seconds")
SWITCH = Kind("on|off", parse_switch, show_switch)
TEXT = Kind("TEXT", parse_text, str)
FOLDER = Kind("FOLDER", parse_file, str)
LOG_FILE = Kind("FILE", parse_log_file, str)
MODE = Kind("MODE", parse_mode, show_mode, "octal")
ALLOW = Kind("WHO,...", parse_allow, ",".join)
EXECUTOR = Kind("ENGINE:ADDRESS", parse_executor, str)
HOOK = Kind("MODULE:CALLABLE", parse_hook, show_hook)
