"""docs/operations.md says what is so."""

from __future__ import annotations

import re

import support

from ipcsrv import errors
from ipcsrv.master.master import _SIGNALS

PAGE = (support.ROOT / "docs" / "operations.md").read_text()


def test_every_signal_of_the_master_is_in_the_table() -> None:
    table = PAGE.partition("| signal |")[2].partition("\n\n")[0]
    first_column = " ".join(line.split("|")[1] for line in table.splitlines()[1:] if line.startswith("| SIG"))
    assert set(re.findall(r"SIG[A-Z0-9]+", first_column)) == set(_SIGNALS) | {"SIGKILL"}


def test_every_exit_status_of_a_server_is_in_the_table() -> None:
    table = PAGE.partition("## Exit statuses")[2].partition("\n\nThose")[0]
    said = set(map(int, re.findall(r"^\| (\d) \|", table, re.M)))
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.IpcError)]
    assert said == {0} | {kind.exit_code for kind in kinds} - {3, 4, 5}


def test_every_outcome_of_the_access_log_is_named() -> None:
    from ipcsrv.platform.access_log import OUTCOMES

    assert [outcome for outcome in OUTCOMES if f"`{outcome}`" not in PAGE] == []

