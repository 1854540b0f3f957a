"""The results as text and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from typing import Any

from .targets import TABLE, reached
from .workloads import Result


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    return {"system": platform.platform(), "python": sys.version.split()[0], "processors": os.cpu_count(),
            "load average": [round(each, 2) for each in load]}


def block(result: Result) -> str:
    """One workload: every contestant's median, the ratios with their spread."""
    lines = [f"{result.title}" + (f"  ({', '.join(result.notes)})" if result.notes else "")]
    ordered = sorted(result.figures.items(), key=lambda item: -statistics.median(item[1]))
    for name, figures in ordered:
        beside = f"   ipcsrv is {result.ratios[name]} x" if name in result.ratios else ""
        lines.append(f"    {name:28}{number(statistics.median(figures)):>12} {result.unit}{beside}")
    lines += [f"    {'against ' + name:28}{ratio!s:>12}" for name, ratio in result.ratios.items()
              if name not in result.figures or result.unit == "ms"]
    return "\n".join(lines)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def verdicts(results: list[Result]) -> str:
    """The table of targets: reached or missed."""
    lines = [f"{'':58}{'wanted':>14}   measured"]
    for target in TABLE:
        outcome = reached(target, results)
        if outcome is None:
            word, figure = "not measured", ""
        else:
            word, figure = ("reached" if outcome[1] else "MISSED"), _text(outcome[0], target.unit)
        wanted = f"{target.kind.value} {target.goal:g} {target.unit}"
        lines.append(f"{target.work:54}{wanted:>18}   {figure:26} {word}")
    return "\n".join(lines)


def _text(figure: Any, unit: str) -> str:
    return f"{figure:.2f} {unit}" if isinstance(figure, float) else f"{figure} {unit}"


def to_json(results: list[Result]) -> str:
    """Everything, for a later look and for the chart."""
    document = {
        "machine": machine(),
        "results": [{"title": each.title, "unit": each.unit, "figures": each.figures, "values": each.values,
                     "ratios": {name: [r.median, r.low, r.high] for name, r in each.ratios.items()}}
                    for each in results],
        "targets": [{"work": target.work, "goal": target.goal, "reached": (reached(target, results) or (0, None))[1]}
                    for target in TABLE],
    }
    return json.dumps(document, indent=1)
