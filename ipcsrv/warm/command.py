"""The command `ipcsrv warm`: decide how a program is run, and manage its servers.  In the client."""

from __future__ import annotations

import os
import sys

from ..errors import InvalidPath, IpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

if sys.platform == "win32":

    def run_program(words: list[str], say: Callable[[str], None], options: dict[str, str] | None = None) -> int:
        """Refuse: a program is run by a forked process."""
        raise IpcError("warm: it needs processes that can be forked, which Windows has not; call PROGRAM itself")

    def manage(action: str, name: str | None, argument: str, options: dict[str, str]) -> int:
        """Refuse likewise."""
        raise IpcError("warm: there are no such servers on Windows")

else:
    from . import client, program, starting

    def run_program(words: list[str], say: Callable[[str], None], options: dict[str, str] | None = None) -> int:
        """Run a program, warm if that is possible; does not return but for a failure.

        Args:
            words: the program, `--` or not, and its arguments.
            say: called with the reason, if the program is run cold.
            options: of a server that is started, such as `{"idle-exit": "1h"}`.

        Raises:
            IpcError: there is no such program.
        """
        arguments = words[2:] if words[1:2] == ["--"] else words[1:]
        try:
            found = program.find(words[0])
        except program.NotPython as error:
            say(f"{error}; running it cold")
            os.execv(error.path, [error.path, *arguments])
        if found.by_launcher:
            arguments = words[1:]
        place = _place(found, arguments, say)
        try:
            client.run(found, place, arguments)
        except client.Cold as reason:
            failed = starting.failure(place)
            say(f"{reason}; running it cold" + (f"; the last start failed: {failed}" if failed else ""))
            if isinstance(reason, client.Busy):
                starting.run_cold(found, arguments)
            starting.run_cold_and_start(found, place, arguments, options or {})

    def _place(found: program.Program, arguments: list[str], say: Callable[[str], None]) -> program.Place:
        """Return where the server is; runs the program cold where there can be none for this run."""
        try:
            if os.environ.get("IPCSRV_WARM") == "off":
                raise client.Cold("IPCSRV_WARM=off")
            client.check_run(arguments)
            place = program.Place(found)
            place.make_folder()
        except (client.Cold, InvalidPath, OSError) as reason:
            say(f"{reason}; running it cold")
            starting.run_cold(found, arguments)
        return place

    def manage(action: str, name: str | None, argument: str, options: dict[str, str]) -> int:
        """List, stop or restart servers, remember modules to import, or write a launcher; returns the exit code."""
        from . import management

        if action == "list":
            return management.show_servers()
        if action == "stop":
            return management.stop(name)
        assert name is not None
        if action == "restart":
            return management.restart(name, options)
        if action == "preload":
            return management.remember_preload(name, argument)
        return management.install(name, argument)
