"""A model and its handler: numpy weights, loaded once when the module is imported.

A request is a vector of `SIZE` numbers (float32, as bytes), the response one of the same kind.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is imported: the workers are the parallelism

import numpy as np

SIZE = 1024
LAYERS = max(1, int(os.environ.get("MODEL_MB", "200")) // 4)  # a layer has 4 MB


def load() -> np.ndarray:
    """Return the weights; a real model would read them from a file."""
    weights = np.random.default_rng(1).standard_normal((LAYERS, SIZE, SIZE), dtype=np.float32)
    weights /= np.sqrt(SIZE / 2)
    weights.flags.writeable = False  # a write would give the worker a copy of its own
    return weights


WEIGHTS = load()


def predict(request: bytes) -> bytes:
    """Run the model; raises ValueError for a vector of another size."""
    vector = np.frombuffer(request, dtype=np.float32)
    if vector.shape != (SIZE,):
        raise ValueError(f"{SIZE} numbers are needed, not {vector.size}")
    for layer in WEIGHTS:
        vector = np.maximum(layer @ vector, 0)
    return vector.tobytes()
