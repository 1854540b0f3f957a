"""The `ipcsrv` command; `python -m ipcsrv` is the same program.

`call` and `is-active` are started once a question, and `start` may be somebody's first question, so their plain forms
are parsed by hand (`_simple.py`, `_simple_start.py`) and import little but what does the work. Everything else goes
through argparse, built for the one command that was named (`_parser.py`, from the table in `_commands.py`). What goes
wrong ends here as one line on standard error and an exit code (`messages.py`).
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (the process's own if `argv` is None) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        from .messages import report

        return report(error)


def _run(arguments: list[str]) -> int:
    from . import _simple

    asked = _simple.parse(arguments)
    if asked is not None:
        return _simple.run(asked)
    if arguments[:1] == ["start"]:
        from . import _simple_start

        plain = _simple_start.parse(arguments[1:])
        if plain is not None:
            from .serving import start

            return start(plain)
    from ._parser import run

    return run(arguments)
