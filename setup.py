"""What setup.cfg cannot say: the compiled straight path, where there is a compiler and a Unix."""

import os

from setuptools import Extension, setup

# The Limited API of Python 3.11: one build serves every later version.
_FASTPATH = Extension(
    "ipcsrv.worker._fastpath",
    ["ipcsrv/worker/_fastpath.c"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"],
    py_limited_api=True,
    optional=True,  # without a compiler the path is Python's (ipcsrv/worker/fastpath.py)
)
_WANTED = os.name == "posix" and not os.environ.get("IPCSRV_PURE_PYTHON")

setup(
    ext_modules=[_FASTPATH] if _WANTED else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if _WANTED else {},
)
