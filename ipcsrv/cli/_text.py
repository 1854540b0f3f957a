"""Figures for people: short, with a unit, never wider than their column. No I/O."""

from __future__ import annotations

from ..errors import one_line

NOTHING = "-"


def duration(seconds: float | None) -> str:
    """At most 7 characters: 0 s, 870 ns, 1.24 ms, 12.3 s, 5m 20s, 3h 12m, 41d 3h."""
    if seconds is None:
        return NOTHING
    if not seconds:
        return "0 s"
    for unit, scale in (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if seconds < 999.5 * scale and (unit != "s" or seconds < 59.95):
            return f"{_three_digits(seconds / scale)} {unit}"
    return _long_duration(round(seconds))


def _long_duration(seconds: int) -> str:
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days >= 1000:
        return f"{days}d"
    if days:
        return f"{days}d {hours % 24}h"
    return f"{hours}h {minutes % 60}m" if hours else f"{minutes}m {seconds % 60}s"


def size(octets: float | None) -> str:
    """At most 8 characters: 0 B, 512 B, 1.50 KiB, 23.4 MiB."""
    if octets is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if octets < 999.5:
            return f"{octets:.0f} B" if unit == "B" else f"{_three_digits(octets)} {unit}"
        octets /= 1024
    return f"{_three_digits(octets)} TiB"


def count(number: float) -> str:
    """A whole number with commas; from a million on, three digits and M, G or T."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= scale:
            return f"{_three_digits(number / scale)}{unit}"
    return f"{number:,.0f}"


def plural(number: int, noun: str) -> str:
    """`1 worker`, `2 workers`, `1,234 workers`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def counted(number: int, noun: str) -> str:
    """Return a number of things, shortened as `count` does."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def rate(per_second: float | None) -> str:
    """Per second: a decimal below a hundred."""
    if per_second is None:
        return NOTHING
    return f"{per_second:.1f}" if per_second < 100 else count(per_second)


def _three_digits(number: float) -> str:
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f}" if number else "0"


def wrapped(head: str, items: list[str], width: int) -> list[str]:
    """Return the items after `head`, with commas between, on as many lines of at most `width` as they need."""
    lines = [head + items[0]]
    for item in items[1:]:
        if len(lines[-1]) + len(item) + 3 > width:
            lines[-1] += ","
            lines.append(" " * len(head) + item)
        else:
            lines[-1] += f", {item}"
    return lines


def cut(text: str, width: int) -> str:
    """Return one printable line of at most `width` characters; line ends become spaces, other controls escapes."""
    line = one_line(text)
    return line if len(line) <= width else line[: width - 3] + "..."


def home(path: str) -> str:
    """Return a path with the user's home folder as ~."""
    import os

    folder = os.path.expanduser("~")
    return "~" + path[len(folder) :] if len(folder) > 1 and path.startswith(folder + os.sep) else path
