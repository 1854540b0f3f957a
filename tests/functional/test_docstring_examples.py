"""The example in the docstring of each public function is there, and runs."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import inspect
import types
from pathlib import Path
from typing import Any

import pytest

import ipcsrv
from ipcsrv import aio

FIRST, LAST = "ensure_running", "stop"  # the server of all others is there between these
BLOCKING = ["serve", "Server"]  # these run until the server is stopped: compiled only


def source_of(documented: Any) -> str:
    parsed = doctest.DocTestParser().get_examples(inspect.getdoc(documented) or "")
    return "".join(example.source for example in parsed)


def examples() -> dict[str, str]:
    """The source of each example of a docstring, by the public name, in the order in which they can run."""
    found = {f"{prefix}{name}": source_of(getattr(module, name))
             for module, prefix in ((ipcsrv, ""), (aio, "aio.")) for name in module.__all__
             if callable(getattr(module, name))}  # fmt: skip
    return dict(sorted(((name, source) for name, source in found.items() if source),
                       key=lambda item: (item[0] == LAST, item[0] != FIRST)))  # fmt: skip


EXAMPLES = examples()


def compiled(name: str) -> types.CodeType:
    return compile(EXAMPLES[name], name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


async def run(name: str, names: dict[str, Any]) -> None:
    result = types.FunctionType(compiled(name), names)()
    if inspect.isawaitable(result):
        await result


def test_public_functions_have_an_example() -> None:
    functions = [f"{prefix}{name}" for module, prefix in ((ipcsrv, ""), (aio, "aio.")) for name in module.__all__
                 if inspect.isfunction(getattr(module, name))]  # fmt: skip
    assert [name for name in [*functions, "Pool", "Request", "Server", "aio.Pool"] if name not in EXAMPLES] == []


def test_examples_run_as_they_stand(sock_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sock_dir)
    monkeypatch.setenv("XDG_RUNTIME_DIR", sock_dir)
    monkeypatch.syspath_prepend(sock_dir)
    Path("add.py").write_text(f"import ipcsrv\n{EXAMPLES['json_handler']}")
    ipcsrv.ensure_running("./add.sock", "add:add", workers=1)
    try:
        for name in EXAMPLES:
            if name in BLOCKING:
                compiled(name)
            else:
                asyncio.run(run(name, {"ipcsrv": ipcsrv}))
        assert ipcsrv.active_state("./z.sock") is not ipcsrv.State.LISTENING
    finally:
        for path in ("./add.sock", "./z.sock"):
            with contextlib.suppress(ipcsrv.NotListening):
                ipcsrv.stop(path)
