"""The import rules of docs/architecture.md, asserted on the source."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "ipcsrv"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

#: A module imports only from its own package and from entries above it; packages of one line never import each other.
LEVELS = (
    ("_version", "errors", "exception_text", "buffers", "deadline", "cpus", "folders", "peer", "standard_streams",
     "state", "request"),
    ("protocol",),
    ("config",),
    ("supervision",),
    ("platform",),
    ("client", "master", "worker"),
    ("server",),
    ("warm",),
    ("cli", "aio", "codecs", "pytest_plugin", "native"),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
BASIC = set(LEVELS[0])

PURE = {"protocol", "supervision"}
SERVER_SIDE = {"master", "worker", "server", "warm"}
HEAVY = {"logging", "multiprocessing", "asyncio", "argparse", "filelock", "dataclasses", "typing", "subprocess"}
IMPURE = {"socket", "_socket", "selectors", "select", "subprocess", "multiprocessing", "threading", "signal"}

LONGEST_FUNCTION = 60
LONGEST_MODULE = 800
MOST_LEVELS = 10


def package_of(path: Path) -> str:
    """Return the first name under the package; "" for the package itself."""
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


def packages_imported(path: Path, tree: ast.AST) -> set[str]:
    """Return the packages of this project that the tree imports; "" for the public names."""
    names = (name.split(".") for name in imports(path, tree))
    found = {name[1] if len(name) > 1 else "" for name in names if name[0] == "ipcsrv"}
    return {name if name in LEVEL else "" for name in found}


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


def offenders(rule: Callable[[Path], object], paths: list[Path] = MODULES) -> dict[str, object]:
    """What a rule finds wrong, by the file in which it does."""
    return {str(path.relative_to(ROOT)): wrong for path in paths if (wrong := rule(path))}


def test_modules_import_only_from_levels_above() -> None:
    def forbidden(path: Path) -> set[str]:
        here = package_of(path)
        if here == "":
            return set()  # the public names are loaded from their modules on first use
        assert here in LEVEL, f"{here} is not in the list of docs/architecture.md"
        allowed = {name for name in LEVEL if LEVEL[name] < LEVEL[here]} | {here} | (BASIC if here in BASIC else set())
        if here in LEVELS[-2] + ("warm",):
            allowed |= {""}  # commands use the public names, as any program does
        return packages_imported(path, parse(path)) - allowed

    assert offenders(forbidden) == {}


def import_graph(cut: Callable[[ast.Module], ast.Module]) -> dict[str, set[str]]:
    """For each module of the package those that it imports, but for the packages that it is in."""
    modules = {dotted(path): path for path in MODULES}
    edges: dict[str, set[str]] = {}
    for here, path in modules.items():
        names = set(imports(path, cut(parse(path))))
        found = (names | {name.rpartition(".")[0] for name in names}) & modules.keys()
        edges[here] = {name for name in found - {here, "ipcsrv"} if not here.startswith(name + ".")}
    return edges


def test_modules_have_no_import_cycles() -> None:
    try:
        graphlib.TopologicalSorter(import_graph(without_type_checking)).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_import_graph_has_few_levels() -> None:
    edges = import_graph(at_import_time)
    level: dict[str, int] = {}
    for name in graphlib.TopologicalSorter(edges).static_order():
        level[name] = 1 + max((level[imported] for imported in edges[name]), default=0)
    assert {name: height for name, height in level.items() if height > MOST_LEVELS} == {}


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


@pytest.mark.parametrize("name", ["ipcsrv.client.sync", "ipcsrv.client.paths"])
def test_client_never_imports_server_side(name: str) -> None:
    loaded = loaded_with(name, without_type_checking)
    assert not {name.split(".")[1] for name in loaded if name.startswith("ipcsrv.")} & SERVER_SIDE
    assert "ipcsrv.platform.server" not in loaded


@pytest.mark.parametrize("name", ["ipcsrv", "ipcsrv.client.sync"])
def test_client_imports_nothing_heavy(name: str) -> None:
    assert not loaded_with(name, at_import_time) & HEAVY


def test_pure_code_does_no_io_and_reads_no_clock() -> None:
    def impure(path: Path) -> set[str]:
        tree = parse(path)
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        imported = {name.split(".")[0] for name in imports(path, without_type_checking(tree))}
        return imported & (IMPURE | {"os", "time"}) | names & {"open"}

    assert offenders(impure, [path for path in MODULES if package_of(path) in PURE]) == {}


def test_system_is_named_in_platform_alone() -> None:
    def named(path: Path) -> list[int]:
        return [
            node.lineno
            for node in ast.walk(parse(path))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in {("sys", "platform"), ("os", "name"), ("platform", "system")}
        ]

    excepted = ("platform", "warm")  # the latter exists on Unix alone, and asserts it
    assert offenders(named, [path for path in MODULES if package_of(path) not in excepted]) == {}


def test_functions_and_modules_are_short_enough() -> None:
    def too_long(path: Path) -> dict[str, int]:
        lengths = {node.name: length(node) for node in functions(parse(path)) if length(node) > LONGEST_FUNCTION}
        lines = len(path.read_text("utf-8").splitlines())
        return {**lengths, "module": lines} if lines > LONGEST_MODULE else lengths

    assert offenders(too_long) == {}


def test_public_names_have_docstrings() -> None:
    def undocumented(path: Path) -> list[str]:
        tree = parse(path)
        if not ast.get_docstring(tree):
            return ["the module"]
        private = any(part.startswith("_") for part in dotted(path).split("."))
        return [] if private else sorted(_undocumented(tree.body))

    assert offenders(undocumented) == {}


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


def test_tests_never_sleep_without_a_reason() -> None:
    def sleeps(path: Path) -> list[int]:
        # A named time is the test's point (a pause, a process that hangs); else a comment says why there is no event.
        lines = path.read_text("utf-8").splitlines()
        return [
            node.lineno
            for node in ast.walk(parse(path))
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "sleep"}
            if not isinstance(node.args[0], ast.Name)
            if "#" not in lines[node.lineno - 1]
        ]

    slow_on_purpose = [path for path in TESTS if path.name.startswith("handlers") or "soak" in path.parts]
    assert offenders(sleeps, [path for path in TESTS if path not in slow_on_purpose]) == {}


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
