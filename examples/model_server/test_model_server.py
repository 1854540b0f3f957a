"""Tests of the model server: `pytest examples/model_server`. They need numpy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numpy", reason="this example needs numpy")

os.environ["MODEL_MB"] = "32"  # before the model is imported, here and in servers
import measure
import model
import numpy as np

import ipcsrv
from ipcsrv.pytest_plugin import ServerFactory

HERE = Path(__file__).parent
VECTOR = np.linspace(-1, 1, model.SIZE, dtype=np.float32)


def test_response_is_that_of_the_model(ipcsrv_server: ServerFactory) -> None:
    server = ipcsrv_server("model:predict", workers=2, may_fail=ValueError)
    expected = VECTOR
    for layer in model.WEIGHTS:
        expected = np.maximum(layer @ expected, 0)
    assert np.array_equal(np.frombuffer(server.call(VECTOR.tobytes()), dtype=np.float32), expected)
    with pytest.raises(ipcsrv.HandlerError, match="1024 numbers are needed, not 2"):
        server.call(bytes(8))
    client = subprocess.run([sys.executable, HERE / "predict.py", server.path],
                            capture_output=True, text=True, check=True, timeout=50)  # fmt: skip
    assert client.stdout.startswith(f"output {expected.argmax()}: {expected.max():.3f}\n")


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="memory is measured by /proc (Linux)")
def test_workers_share_preloaded_weights() -> None:
    shared, separate = measure.measure(2, preload=True), measure.measure(2, preload=False)
    assert separate - shared > 0.8 * 32  # MB: one more copy of the weights
