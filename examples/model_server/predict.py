"""A client: `python predict.py PATH` sends a vector to the server at PATH and prints the largest outputs."""

from __future__ import annotations

import sys

import numpy as np

import ipcsrv

SIZE = 1024

vector = np.linspace(-1, 1, SIZE, dtype=np.float32)
output = np.frombuffer(ipcsrv.call(sys.argv[1], vector.tobytes(), timeout=30), dtype=np.float32)
for index in np.argsort(output)[: -4:-1]:
    print(f"output {index}: {output[index]:.3f}")
