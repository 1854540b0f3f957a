"""docs/settings.md, written from the table of settings: `python -m ipcsrv.config.settings > docs/settings.md`.

Runs when a developer has changed a setting; a test fails while the page and the table differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from .settings import TABLE, Setting

_HEAD = """\
# Settings

<!-- Written by `python -m ipcsrv.config.settings > docs/settings.md`; edit ipcsrv/config/settings.py instead. -->

A setting has one name everywhere. `max_rss`, for example, is

- the keyword of the library: `ipcsrv.Server(path, handler, max_rss="1GiB")`,
- the flag of the commands that start a server: `--max-rss 1GiB`,
- the environment variable `IPCSRV_MAX_RSS=1GiB`,
- the key `max_rss = "1GiB"` in a TOML file: the one that `--config FILE` names, or, for `ipcsrv run` and
  `ipcsrv start` without `PATH` and `MODULE:HANDLER`, `ipcsrv.toml` of the current folder.

The first of these that sets a value wins, in that order. `ipcsrv run --print-settings` shows every value and where it
came from. An unknown name, or a value that does not fit, is an error that names the place and the nearest valid name.

A configuration file can name code that runs (hooks). So `ipcsrv.toml` is read only if it and its folder belong to you
or root and nobody else can write them; no other file of the current folder is read (`pyproject.toml` is not), and the
library reads no file at all.

Sizes are bytes, or have a unit: `4096`, `64MiB`, `1G` (K, M, G and T are powers of 1024). Times are seconds, or have
a unit: `30`, `250ms`, `5m`, `1h`. Switches are `on` or `off`, in TOML and Python true and false, and as flags
`--preload` and `--no-preload`. `none` is the value of a setting that is not set, where that is allowed.
"""


def page() -> str:
    """The whole page as Markdown."""
    return "".join(_lines())


def _lines() -> Iterator[str]:
    yield _HEAD
    for group, settings in groupby(TABLE, key=lambda setting: setting.group):
        yield f"\n## {group}\n"
        for setting in settings:
            yield from _entry(setting)


def _entry(setting: Setting) -> Iterator[str]:
    yield f"\n### `{setting.name}`\n\n{setting.help}\n\n"
    yield f"- Default: {default(setting)}\n"
    if accepted := _accepted(setting):
        yield f"- Accepts: {accepted}\n"
    yield f"- Also: `{setting.flag}`, `{setting.variable}`\n"


def default(setting: Setting) -> str:
    """The default in words, with what none means."""
    if setting.default is None:
        return f"none ({setting.nothing})"
    return f"`{setting.show(setting.default)}`" if setting.default != () else "nobody"


def _accepted(setting: Setting) -> str:
    """What values there are, with the unit and the range."""
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    bounds = [
        f"{word} {setting.show(bound)}"
        for word, bound in (("at least", setting.minimum), ("at most", setting.maximum))
        if bound is not None
    ]
    kind = f"`{setting.kind.metavar}`" + (f" in {setting.kind.unit}" if setting.kind.unit else "")
    return ", ".join([kind, *bounds, *(["or `none`"] if setting.nothing else [])])
