"""`python -m bench [NAME...]`: measure, print a table, write JSON."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator

from bench import fleet, latency, recovery, throughput, volume
from bench.place import STORES, Place
from bench.report import Row, show, write

BENCHES: dict[str, Callable[[Place], Iterator[Row]]] = {
    "commands": throughput.commands,
    "calls": throughput.calls,
    "roundtrip": latency.roundtrip,
    "submit": volume.submit,
    "array": volume.array,
    "backlog": throughput.backlog,
    "cli": latency.cli,
    "memory": volume.memory,
    "restart": recovery.restart,
    "fleet": fleet.fleet,
}


def main() -> int:
    """Exit status 0 where all was measured, be it above or below its bar; 1 where a bench broke."""
    options = _options()
    place = Place(
        short=options.short,
        stores=tuple(options.store or STORES),
        pairs=options.pairs or (1 if options.short else 5),
        nodes=options.nodes,
        tasks=options.tasks,
        snapshot_seconds=options.snapshot,
    )
    rows: list[Row] = []
    broken = 0
    for name in options.names or BENCHES:
        begun = time.monotonic()
        try:
            for row in BENCHES[name](place):
                rows.append(row)
                print(show([row]).splitlines()[1], flush=True)
        except Exception:
            broken += 1
            traceback.print_exc()
            rows.append(Row(name=name, bar="", passed=False, note="broke"))
        print(f"  ({name}: {time.monotonic() - begun:.0f} s)", file=sys.stderr)
    print(f"\n{show(rows)}\n")
    passed, missed = (sum(row.passed is verdict for row in rows) for verdict in (True, False))
    print(f"{passed} bars passed, {missed} missed; {write(rows, short=options.short)}")
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure geres against its bars.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHES)}; all by default")
    parser.add_argument("--short", action="store_true", help="small counts and one pair: shows that it works")
    parser.add_argument("--store", action="append", choices=STORES, help="only on this store")
    parser.add_argument("--pairs", type=int, help="how many pairs of floor and figure (default 5, short 1)")
    parser.add_argument("--nodes", type=int, help="simulated agents of `fleet` (10,000, short 200)")
    parser.add_argument("--tasks", type=int, help="tasks that they run (500,000, short 5,000)")
    parser.add_argument(
        "--snapshot", type=float, default=0.0, metavar="SECONDS", help="beside a PostgreSQL snapshot so old"
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHES):
        parser.error(f"no bench {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
