"""What editors and type checkers see: the settings as keywords, and the docstrings of public functions.

`tox -e type` checks a program that uses every public name (tests/typing).
"""

from __future__ import annotations

import inspect
import re
import types
import typing

import pytest

import ipcsrv
from ipcsrv import aio
from ipcsrv.config import keywords
from ipcsrv.config.settings import BY_NAME, TABLE, Setting

CALLABLES = sorted(name for name in ipcsrv.__all__ if callable(getattr(ipcsrv, name)))


def test_keywords_are_the_settings() -> None:
    assert list(typing.get_type_hints(keywords.SettingsDict)) == [setting.name for setting in TABLE]


@pytest.mark.parametrize("setting", TABLE, ids=lambda setting: setting.name)
def test_keyword_has_the_type_of_its_setting(setting: Setting) -> None:
    hint = typing.get_type_hints(keywords.SettingsDict)[setting.name]
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) else (hint,)
    if setting.choices:
        assert parts == setting.choices
        return
    assert (type(None) in parts) == (setting.nothing is not None)
    kinds = {typing.get_origin(part) or part for part in parts}
    if isinstance(setting.default, bool):
        assert kinds == {bool}
    elif setting.default is not None and not isinstance(setting.default, tuple):
        assert type(setting.default) in kinds


def test_choices_of_on_mismatch_are_those_of_its_type() -> None:
    from ipcsrv.server import ensure

    known = typing.get_args(keywords.OnMismatch)
    assert known == ensure._CHOICES
    assert not [name for name in ensure._NOT_COMPARED if name not in BY_NAME]


def sections(documentation: str) -> dict[str, str]:
    """The sections of a docstring in Google's style, and what is before them under ""."""
    parts = re.split(r"^(Args|Returns|Yields|Raises|Attributes|Example):$", documentation, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def public_functions() -> typing.Iterator[tuple[str, typing.Callable[..., typing.Any]]]:
    """Every public function and method, by its dotted name."""
    for module in (ipcsrv, aio):
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.isfunction(found):
                yield f"{module.__name__}.{name}", found
            elif inspect.isclass(found) and not issubclass(found, Exception):
                for method, function in vars(found).items():
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield f"{module.__name__}.{name}.{method}", function


FUNCTIONS = dict(public_functions())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_names_every_argument_and_result(name: str) -> None:
    function = FUNCTIONS[name]
    found = sections(inspect.getdoc(function) or "")
    first = found[""].splitlines()[0]
    assert len(first) <= 100
    assert first.endswith((".", ")"))
    signature = inspect.signature(function)
    names = [f"{'*' * (2 * (p.kind is p.VAR_KEYWORD))}{p.name}" for p in signature.parameters.values()]
    described = re.findall(r"^    ([*\w]+): ", found.get("Args", ""), re.MULTILINE)
    assert described == [each for each in names if each != "self"]
    returns = signature.return_annotation not in ("None", None, inspect.Signature.empty)
    assert returns == bool({"Returns", "Yields"} & found.keys())


@pytest.mark.parametrize("name", CALLABLES)
def test_help_of_public_names_is_there(name: str) -> None:
    documentation = inspect.getdoc(getattr(ipcsrv, name))
    assert documentation
    assert len(documentation.splitlines()[0]) <= 120
