"""Suggestions for a handler's name that leads nowhere.  Runs where a handler is loaded, after the failure."""

from __future__ import annotations

import difflib
import os
import re
import sys
from typing import Any

_FILE = re.compile(r"(?:\./)?(?P<module>[\w./]+?)\.py:+(?P<name>[\w.]+)(?P<call>\(\))?")
_DOTTED = re.compile(r"(?P<module>[\w.]+)\.(?P<name>\w+)(?P<call>\(\))?")
_COLONS = re.compile(r"(?P<module>[\w.]+):+(?P<name>[\w.]+)(?P<call>\(.*\))?")


def well_formed(target: str) -> str | None:
    """Return the MODULE:NAME that `target` (a file and a name, dots, several colons) probably means, or None."""
    for form in (_FILE, _COLONS, _DOTTED):
        match = form.fullmatch(target)
        if match is not None:
            module = match["module"].strip("/").replace("/", ".")
            return f"{module}:{match['name']}{'()' if match['call'] else ''}"
    return None


def existing_name(owner: Any, missing: str, target: str) -> str | None:
    """Return `target` with the name `missing` replaced by the most similar callable of a module or class, or None."""
    names = [name for name in dir(owner) if not name.startswith("_") and callable(getattr(owner, name, None))]
    matches = difflib.get_close_matches(missing, names, 1)
    module, _, name = target.partition(":")
    return f"{module}:{name.replace(missing, matches[0], 1)}" if matches else None


def existing_module(missing: str, target: str) -> str | None:
    """Return `target` with a module of the current folder or the standard library in place of `missing`, or None."""
    if ".py:" in target:
        return well_formed(target)
    try:
        files = [name.removesuffix(".py") for name in os.listdir() if name.endswith(".py")]
    except OSError:  # the current folder was deleted
        files = []
    names = [name for name in (*files, *sys.stdlib_module_names) if not name.startswith("_")]
    matches = difflib.get_close_matches(missing, names, 1, cutoff=0.75)
    return target.replace(missing, matches[0], 1) if matches and "." not in missing else None
