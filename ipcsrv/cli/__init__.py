"""The `ipcsrv` command; `python -m ipcsrv` is the same program.

Scripts run `call`, `is-active` and `ping` often, so their plain forms are parsed by hand (`_light`) and import little.
All else goes through argparse, built for the one command that is named (`_parser`, from the table in `_commands`); each
command is a module with `add_arguments` and `run`. Errors end here as one line on standard error and an exit code
(`messages`).
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: the words after the program's name; those of this process if None.

    Returns:
        The exit code.
    """
    arguments = [*(sys.argv[1:] if argv is None else argv)]  # the name `list` is that command's module here
    try:
        return _run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        from .messages import report

        return report(error)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["warm"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        from .warm import run_program

        return run_program(arguments[1:])
    _check_streams()
    from . import _light

    plain = _light.parse(arguments)
    if plain is not None:
        return _light.run(plain)
    from ._parser import run

    return run(arguments)


def _check_streams() -> None:
    """See to it that everything can be printed, and that no connection gets the number of a closed stream."""
    from .. import standard_streams
    from ..platform.client import is_blocking

    standard_streams.open_closed()
    if standard_streams.opened or not (is_blocking(standard_streams.OUTPUT) and is_blocking(standard_streams.ERRORS)):
        from ._streams import repair

        repair()
