"""The pages are complete and current: links, tables of contents, parts from the code, the library reference."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import ipcsrv

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
REFERENCE = "\n".join(path.read_text("utf-8") for path in (DOCS / "reference").glob("*.md"))


@pytest.fixture(scope="module")
def pages_from_code() -> ModuleType:
    """docs/pages_from_code.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("pages_from_code", DOCS / "pages_from_code.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings.md", "exit-codes.md"])
def test_page_is_current(pages_from_code: ModuleType, name: str) -> None:
    assert name in pages_from_code.WRITTEN
    written = (DOCS / name).read_text("utf-8")
    assert pages_from_code.filled(written) == written, "run: python docs/pages_from_code.py"


def test_settings_page_names_every_setting() -> None:
    from ipcsrv.config.settings import TABLE

    page = (DOCS / "settings.md").read_text("utf-8")
    for setting in TABLE:
        assert f"### `{setting.name}`\n\n{setting.help}\n" in page
        assert f"`{setting.flag}`, `{setting.variable}`" in page


def test_exit_code_page_has_the_code_of_every_error(pages_from_code: ModuleType) -> None:
    rows = dict(re.findall(r"^\| (\d+) \|.*\| (.*) \|$", (DOCS / "exit-codes.md").read_text("utf-8"), re.MULTILINE))
    for kind in pages_from_code.error_types():
        if kind is not ipcsrv.IpcError:
            assert f"`{kind.__name__}`" in rows[str(kind.exit_code)]


def test_commands_page_has_every_command_and_option(pages_from_code: ModuleType) -> None:
    page = pages_from_code.filled((DOCS / "commands.md").read_text("utf-8"))
    for command in pages_from_code.command_table().values():
        assert f"### ipcsrv {command.name}\n" in page
        for action in pages_from_code.build(command)._actions:
            assert all(f"`{option}" in page for option in action.option_strings if option not in ("-h", "--help"))


def test_reference_has_every_public_name(pages_from_code: ModuleType) -> None:
    reference = pages_from_code.filled(REFERENCE)
    names = {name for name in ipcsrv.__all__ if not name.startswith("__")} - {"aio"}
    assert {name for name in names if f"ipcsrv.{name}\n" not in reference} == set()


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / f"{name}.md").resolve() for name in names}
    assert {page.resolve() for page in PAGES} == {page.resolve() for page in listed}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file.read_text("utf-8")), target


def anchors(page: str) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_code_is_in_fenced_blocks(page: Path) -> None:
    """An indented block has no language, so no test would run it."""
    outside = re.sub(r"^( *)(`{3,}).*?^\1\2$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert [text for text in outside.split("\n\n") if text.startswith("    ")] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_named_on_a_page_exist(page: Path) -> None:
    named = re.findall(r"`((?:docs|tests|examples|benchmarks)/[\w./-]+)`", page.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


PEER = ipcsrv.Peer(1, 1000, 1000)
MESSAGES = [
    ipcsrv.AddressInUse("s"),
    ipcsrv.CallTimeout("s", 1.0),
    ipcsrv.ConnectionLost("s"),
    ipcsrv.Denied("uid 1000"),
    ipcsrv.HandlerCrashed("signal SIGSEGV"),
    ipcsrv.HandlerError("ValueError: no"),
    ipcsrv.HandlerImportError("m:h", reason="there is no module 'm'"),
    ipcsrv.HandlerTimeout("2 s"),
    ipcsrv.Malformed("no packet"),
    ipcsrv.NotListening("s"),
    ipcsrv.PathNotFound("s"),
    ipcsrv.ServerBusy(""),
    ipcsrv.ServerStopping(""),
    ipcsrv.SocketStolen("s"),
    ipcsrv.StartError("no"),
    ipcsrv.StartTimeout(3.0),
    ipcsrv.TooLarge("5 bytes"),
    ipcsrv.Untrusted("s", PEER),
]


@pytest.mark.parametrize("error", MESSAGES, ids=lambda error: type(error).__name__)
def test_message_is_explained(error: ipcsrv.IpcError) -> None:
    page = (DOCS / "troubleshooting.md").read_text("utf-8").partition("## Observations")[0]
    for heading in re.findall(r"^### (.+)$", page, re.MULTILINE):
        parts = re.split(r"\.\.\.|\(.*?\)", heading)
        if re.search(".*".join(re.escape(part.strip()) for part in parts), str(error)):
            return
    pytest.fail(f"docs/troubleshooting.md does not explain: {error}")


def test_every_error_is_explained_or_explains_itself(pages_from_code: ModuleType) -> None:
    by_reason = {"IpcError", "InvalidPath", "LocalProtocolError", "ProtocolError", "ServerError", "SettingsError"}
    explained = {type(error).__name__ for error in MESSAGES}
    assert explained | by_reason == {kind.__name__ for kind in pages_from_code.error_types()}


def test_examples_of_bytes_are_right() -> None:
    """The messages on the page about the protocol are what the encoder makes, or what the decoder reads."""
    from ipcsrv.protocol.pktline import MAX_DATA, Decoder, encode

    page = (DOCS / "protocol.md").read_text("utf-8")
    for name, packets in re.findall(r"^\| `(\w+)`(?: in two packets)? \| `(\w+)` \|", page, re.MULTILINE):
        decoder = Decoder()
        decoder.feed(packets.encode())
        assert decoder.next_message() == name.encode()
    assert [len(b"".join(encode(bytes(size)))) for size in (MAX_DATA, MAX_DATA + 1)] == [65524, 65529]
    assert "65,516 bytes" in page and "65,524 bytes" in page and "65,529 bytes" in page
    (reply,) = re.findall(r"^([0-9a-f]{4})(ERR .*?)  +and then", page, re.MULTILINE)
    assert int(reply[0], 16) == 4 + len(reply[1])


def test_figure_has_every_state_of_a_connection() -> None:
    from ipcsrv.supervision.dispatch import ConnectionState

    figure = (DOCS / "figures" / "states.svg").read_text("utf-8")
    table = (DOCS / "architecture.md").read_text("utf-8")
    for state in ConnectionState:
        assert f">{state.name}<" in figure
        assert f"\n| {state.name} |" in table
