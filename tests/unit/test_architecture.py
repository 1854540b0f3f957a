"""The rules of the house, asserted on its own source: imports point down, one place names the system, nothing grows.

The floors are those of docs/architecture.md. A module that is on none of them fails the test: put it somewhere.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "ipcsrv"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

FLOORS = {
    "_version": 0, "_deadline": 0, "_record": 0, "errors": 0, "peer": 0, "state": 0,
    "settings": 0, "_toml": 0, "_values": 0, "_settings_page": 0,
    "pktline": 1, "exchange": 1, "commands": 1, "pool": 1, "roster": 1, "scoreboard": 1, "complexity": 1,
    "_platform": 2,
    "client": 3, "aio": 3, "paths": 3, "_exchanging": 3,
    "request": 3, "handlers": 3, "streaming": 3, "conversation": 3, "worker": 3, "spawner": 3, "logs": 3,
    "keeping": 3, "limbo": 3, "straight": 3, "limits": 3, "complaints": 3, "tally": 3, "intake": 3, "doorway": 3,
    "headroom": 3, "vigil": 3, "systemd": 3, "access": 3,
    "life": 3, "hooks": 3, "relief": 3, "inline": 3,
    "crew": 3, "status": 3, "control": 3, "controller": 3, "master": 3,
    "background": 4, "server": 4,
    "cli": 5, "__main__": 5,
}  # fmt: skip

PURE = {name for name, floor in FLOORS.items() if floor == 1}
CLIENT_SIDE = {"client", "aio", "paths", "_exchanging", "request", "control"}
SERVER_SIDE = {name for name, floor in FLOORS.items() if floor in {3, 4}} - CLIENT_SIDE
HEAVY = {"logging", "multiprocessing", "asyncio", "argparse", "filelock", "dataclasses", "typing", "subprocess"}
IMPURE = {"socket", "_socket", "selectors", "select", "subprocess", "multiprocessing", "threading", "signal"}

LONGEST_FUNCTION = 60
LONGEST_MODULE = 500


def room(path: Path) -> str:
    """The module's place in the table: its first name under the package, "" for the package itself."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def dotted(path: Path) -> str:
    """The module's full name."""
    parts = ("ipcsrv", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


def parse(path: Path) -> ast.Module:
    """The file as a tree."""
    return ast.parse(path.read_bytes(), str(path))


def imports(path: Path, tree: ast.AST) -> Iterator[str]:
    """Absolute dotted names of all that the tree imports, `from x import y` as `x.y`."""
    package = dotted(path).split(".") if path.name == "__init__.py" else dotted(path).split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def rooms_imported(path: Path, tree: ast.AST) -> set[str]:
    """Rooms of this package that the tree imports."""
    names = (name.split(".") for name in imports(path, tree))
    found = {name[1] if len(name) > 1 else "" for name in names if name[0] == "ipcsrv"}
    return {name if name in FLOORS else "" for name in found}


def without_type_checking(tree: ast.Module) -> ast.Module:
    """The tree without what no import runs: `if TYPE_CHECKING:` and `if __name__ == "__main__":`."""

    class Cut(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST:
            names = {part.id for part in ast.walk(node.test) if isinstance(part, ast.Name)}
            return ast.Pass() if names & {"TYPE_CHECKING", "__name__"} else self.generic_visit(node)

    return Cut().visit(tree)


def at_import_time(tree: ast.Module) -> ast.Module:
    """What of the tree runs when the module is imported, as far as imports go: no function bodies."""

    class Cut(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            return ast.Pass()

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
            return ast.Pass()

    return Cut().visit(without_type_checking(tree))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of the tree."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    documentation = ast.get_docstring(node, clean=False)
    return (node.end_lineno or 0) - node.lineno + 1 - (documentation.count("\n") + 1 if documentation else 0)


every_module = pytest.mark.parametrize("path", MODULES, ids=[dotted(path) for path in MODULES])


@every_module
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    if here == "":
        return  # the public face loads each attribute from its module on first use
    assert here in FLOORS, f"{here} is on no floor"
    too_high = {name for name in rooms_imported(path, parse(path)) if FLOORS.get(name, 5) > FLOORS[here]}
    # Only the commands use the public face itself, as any program would.
    assert not too_high


def test_modules_of_one_floor_do_not_import_in_circles() -> None:
    edges: dict[str, set[str]] = {}
    for path in MODULES:
        inside = {dotted(other) for other in MODULES} - {dotted(path), "ipcsrv"}
        names = set(imports(path, at_import_time(parse(path))))
        parents = {name.rpartition(".")[0] for name in names}
        edges[dotted(path)] = (names | parents) & inside
    while edges:
        leaves = {name for name, targets in edges.items() if not targets & edges.keys()}
        assert leaves, f"a circle among {sorted(edges)}"
        edges = {name: targets for name, targets in edges.items() if name not in leaves}


def loaded_with(name: str, cut: Callable[[ast.Module], ast.Module]) -> set[str]:
    """Every module, of this package or another, that importing this one loads, as far as its own source says."""
    paths = {dotted(path): path for path in MODULES}
    loaded, pending = set(), [name]
    while pending:
        here = pending.pop()
        if here not in loaded:
            loaded.add(here)
            names = set(imports(paths[here], cut(parse(paths[here])))) if here in paths else set()
            pending += names | {name.rpartition(".")[0] for name in names}
    return loaded


@pytest.mark.parametrize("name", ["ipcsrv.client", "ipcsrv.paths"])
def test_the_client_side_never_imports_the_server_side(name: str) -> None:
    loaded = loaded_with(name, without_type_checking)
    assert not {name.split(".")[1] for name in loaded if name.startswith("ipcsrv.")} & SERVER_SIDE
    assert not {name for name in loaded if name.startswith("ipcsrv._platform") and "serving" in name}


@pytest.mark.parametrize("name", ["ipcsrv", "ipcsrv.client"])
def test_the_client_side_imports_nothing_heavy(name: str) -> None:
    assert not loaded_with(name, at_import_time) & HEAVY


@every_module
def test_the_pure_core_does_no_input_or_output_and_reads_no_clock(path: Path) -> None:
    if room(path) in PURE:
        tree = parse(path)
        names = {name.split(".")[0] for name in imports(path, without_type_checking(tree))}
        assert not names & (IMPURE | {"os", "time"})
        assert "open" not in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


@every_module
def test_the_system_is_named_on_the_platform_floor_alone(path: Path) -> None:
    if room(path) == "_platform":
        return
    named = [
        node.lineno
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("sys", "platform"), ("os", "name"), ("platform", "system")}
    ]
    assert named == []


@every_module
def test_no_function_and_no_module_is_too_long_to_take_in(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LONGEST_MODULE
    too_long = {node.name: length(node) for node in functions(parse(path)) if length(node) > LONGEST_FUNCTION}
    assert too_long == {}


def test_most_functions_are_short() -> None:
    lengths = sorted(length(node) for path in MODULES for node in functions(parse(path)))
    assert lengths[len(lengths) // 2] <= 8
    assert sum(lines <= 25 for lines in lengths) / len(lengths) >= 0.85


@every_module
def test_everything_public_says_what_it_is(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree), "the module has no docstring"
    if not any(part.startswith("_") for part in dotted(path).split(".")):
        assert sorted(_undocumented(tree.body)) == []


def _undocumented(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):
            yield from _undocumented(node.body + node.orelse, prefix)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if not ast.get_docstring(node) and not _repeats_a_documented_one(node):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from _undocumented(node.body, f"{node.name}.")


def _repeats_a_documented_one(node: ast.stmt) -> bool:
    """An overload, the setter of a property whose getter has the docstring, or a stub that its name and types tell."""
    if [ast.unparse(statement) for statement in getattr(node, "body", ())] == ["..."]:
        return True
    decorators = {part.attr if isinstance(part, ast.Attribute) else part.id
                  for decorator in getattr(node, "decorator_list", ())
                  for part in ast.walk(decorator) if isinstance(part, (ast.Attribute, ast.Name))}  # fmt: skip
    return bool(decorators & {"overload", "setter"})


@pytest.mark.parametrize("path", TESTS, ids=[str(path.relative_to(ROOT)) for path in TESTS])
def test_tests_wait_for_events_and_never_sleep_for_luck(path: Path) -> None:
    if path.name.startswith("handlers") or "soak" in path.parts:  # handlers are slow on purpose
        return
    lines = path.read_text("utf-8").splitlines()
    # A named time is the test's point (a pause, a process that hangs); else a comment says why there is no event.
    sleeps = [
        node.lineno
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "sleep"}
        if not isinstance(node.args[0], ast.Name)
        if "#" not in lines[node.lineno - 1]
    ]
    assert sleeps == []


def test_importing_the_package_loads_nothing_of_it() -> None:
    import support

    source = (
        "import sys; before = set(sys.modules); import ipcsrv; "
        "print(*sorted(name for name in set(sys.modules) - before if name.startswith('ipcsrv')))"
    )
    loaded = support.run_python(source).split()
    assert set(loaded) <= {"ipcsrv", "ipcsrv._version"}


def test_the_call_function_loads_nothing_heavy() -> None:
    import support

    source = "import sys; import ipcsrv; ipcsrv.call; ipcsrv.connect; ipcsrv.active_state; print(*sys.modules)"
    loaded = set(support.run_python(source, options=["-S", "-E"] if sys.flags.no_site else []).split())
    assert not loaded & {"logging", "multiprocessing", "asyncio", "argparse", "filelock"}
