"""What setup.cfg cannot say: the compiled fast path and the native client, where there is a compiler and a Unix."""

import os
import runpy
import subprocess
import sys

from setuptools import Command, Extension, setup

# The Limited API of Python 3.11: one build serves every later version.
_COMPILED = [
    Extension(
        f"ipcsrv.{name}",
        [f"ipcsrv/{name.replace('.', '/')}.c"],
        define_macros=[("Py_LIMITED_API", "0x030B0000")],
        extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"],
        py_limited_api=True,
        optional=True,  # without a compiler the Python code does the same
    )
    for name in ("worker._assembly", "worker._fastpath", "master._passing")
]
_WANTED = os.name == "posix" and not os.environ.get("IPCSRV_PURE_PYTHON")



class BuildClient(Command):
    """The command build_scripts: compile `ipcsrvc`; without a compiler the Python command `ipcsrv` does the same."""

    def initialize_options(self):
        self.build_dir = None

    def finalize_options(self):
        self.set_undefined_options("build", ("build_scripts", "build_dir"))

    def get_source_files(self):
        return []  # MANIFEST.in has them

    def run(self):
        folder = os.path.dirname(os.path.abspath(__file__))
        compile_client = runpy.run_path(os.path.join(folder, "ipcsrv", "native", "compile.py"))["compile_client"]
        self.mkpath(self.build_dir)
        try:
            compile_client(os.path.join(self.build_dir, "ipcsrvc"))
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"ipcsrvc is not compiled: {error}; `ipcsrv` does the same", file=sys.stderr)


setup(
    ext_modules=_COMPILED if _WANTED else [],
    cmdclass={"build_scripts": BuildClient},
    scripts=["ipcsrv/native/main.c"] if _WANTED else [],  # what BuildClient compiles is installed as a script
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if _WANTED else {},
)
