"""Everything at once, for seconds and with a known seed; `tests/soak/hurt.py mixture-of-all` does it for minutes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("signals and descriptors of Unix", allow_module_level=True)

from faults import mixture


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it finds processes in /proc")
def test_any_clients_and_faults_at_once_end_well(sock_dir: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    outcomes = mixture.survive(Path(sock_dir), method, "1", 3.0)
    assert outcomes["answered"] > 0 and outcomes["starts given up"] > 0, outcomes
