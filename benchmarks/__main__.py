"""`python -m benchmarks`: build, drive, report. See the package's docstring for the method."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from . import chart, report, workloads
from .build import build


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="ipcsrv beside its peers and bare C.")
    parser.add_argument("workload", nargs="*", choices=[[], *workloads.ALL], help="only these (default: all)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one short round of each")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="interleaved rounds (default 7)")
    parser.add_argument("--seconds", type=float, default=0.5, metavar="S", help="of load in each (default 0.5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the comparison there")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.quick:
        options.rounds, options.seconds = 1, 0.2
    results: list[workloads.Result] = []
    with tempfile.TemporaryDirectory(prefix="bench") as folder:
        plan = workloads.Plan(options.rounds, options.seconds, build(Path(folder)), Path(folder))
        for name in options.workload or workloads.ALL:
            for result in workloads.ALL[name](plan):
                results.append(result)
                print(report.block(result), flush=True)
    print("\n" + report.verdicts(results))
    text = report.to_json(results)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    if options.svg:
        options.svg.write_text(chart.svg(json.loads(text)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
