"""The unit files and the Dockerfile in examples/ are understood by systemd, by Docker's grammar and by ipcsrv."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import page_runner
import pytest
import support

from ipcsrv.config.settings import make
from ipcsrv.master.systemd import NAME

UNITS = support.ROOT / "examples" / "systemd"
DOCKERFILE = (support.ROOT / "examples" / "docker" / "Dockerfile").read_text("utf-8")
INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "ENV", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def section(name: str, of: str) -> configparser.SectionProxy:
    """A section of a unit file; keys keep their case."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser[of]


@pytest.mark.parametrize("folder", ["", "user/"])
def test_unit_files_fit_each_other_and_the_command(folder: str) -> None:
    serve, listen = section(f"{folder}words.service", "Service"), section(f"{folder}words.socket", "Socket")
    program, *arguments = shlex.split(serve["ExecStart"])
    assert program.endswith("/bin/ipcsrv")
    assert arguments[:3] == ["run", listen["ListenStream"], "words:count"]
    page_runner.check_command(arguments)
    page_runner.check_command(shlex.split(serve["ExecReload"])[1:])
    assert serve["Type"] == "notify"  # notify-reload came with systemd 253
    assert listen["FileDescriptorName"] == NAME
    assert float(serve["TimeoutStopSec"]) > make().drain_timeout
    assert serve["RestartPreventExitStatus"].split() == ["2", "6", "7"]
    assert "RuntimeDirectory" not in serve  # systemd would remove it, with the socket, at each stop


@pytest.mark.parametrize("folder", ["systemd", "systemd/user", "fsmonitor/systemd"])
def test_unit_files_are_understood_by_systemd(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    files = sorted(map(str, (UNITS.parent / folder).glob("*.s*")))
    scope = [] if folder == "systemd" else ["--user"]
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # without it --user looks at nothing
    done = subprocess.run(["systemd-analyze", "verify", *scope, *files], capture_output=True, text=True)
    names = tuple(f"{name}." for name in ("words", "fsmonitor@", "fsmonitor@i"))
    complaints = [line for line in done.stderr.splitlines()
                  if line.startswith("Failed") or any(name in line for name in names)]
    assert all("is not executable" in line for line in complaints)
    assert complaints  # the paths of the examples: systemd has looked at the files


def dockerfile() -> dict[str, str]:
    """The last use of each instruction."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
    return {name: rest for name, _, rest in (line.partition(" ") for line in lines if line)}


def test_dockerfile_runs_the_master_as_first_process() -> None:
    assert set(dockerfile()) <= INSTRUCTIONS
    entry, command = json.loads(dockerfile()["ENTRYPOINT"]), json.loads(dockerfile()["CMD"])
    assert entry == ["ipcsrv"]
    page_runner.check_command(command)
    assert command[:1] == ["run"]


def test_dockerfile_checks_the_path_that_is_served() -> None:
    check = json.loads(dockerfile()["HEALTHCHECK"].partition(" CMD ")[2])
    assert check[0] == "ipcsrv"
    page_runner.check_command(check[1:])
    served = json.loads(dockerfile()["CMD"])[1]
    assert served in check
    assert served.startswith(dockerfile()["VOLUME"])


def test_dockerfile_copies_files_of_the_repository() -> None:
    copies = [line.split()[1:] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")
              and "--from=" not in line]
    assert len(copies) >= 2
    assert "FROM python:3.13 AS build\n" in DOCKERFILE  # the slim image has no compiler for the C parts
    assert [name for *sources, _ in copies for name in sources if not (support.ROOT / name).exists()] == []
