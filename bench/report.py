"""A measured row, the table of rows, and their JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

OUT = Path(__file__).parent / "out"


@dataclass
class Row:
    """One figure against its bar.  `passed` is None where there is no bar, or nothing was measured."""

    name: str
    bar: str
    figure: float | None = None
    unit: str = ""
    floor: float | None = None
    ratio: float | None = None  #: figure to floor; the median over pairs, not of the medians
    passed: bool | None = None
    store: str = ""
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    """Figure and floor taken in turns, because the machines are noisy."""

    figures: list[float]
    floors: list[float]

    @property
    def figure(self) -> float:
        return median(self.figures)

    @property
    def floor(self) -> float:
        return median(self.floors)

    @property
    def ratio(self) -> float:
        return median(figure / floor for figure, floor in zip(self.figures, self.floors, strict=True))

    @property
    def details(self) -> dict[str, Any]:
        return {
            "figures": [round(one, 1) for one in self.figures],
            "floors": [round(one, 1) for one in self.floors],
        }


def in_turns(figure: Callable[[], float], floor: Callable[[], float], count: int) -> Pairs:
    """Take floor and figure `count` times in turns."""
    figures, floors = [], []
    for _ in range(count):
        floors.append(floor())
        figures.append(figure())
    return Pairs(figures, floors)


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def show(rows: list[Row]) -> str:
    """The rows as a table for people."""
    head = ("what", "store", "bar", "figure", "floor", "ratio", "")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write(rows: list[Row], *, short: bool) -> Path:
    """Write the rows and what they were measured on into bench/out; the path of the file."""
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    content = {
        "measured_at": datetime.now(UTC).isoformat(),
        "short": short,
        "commit": _commit(),
        "machine": {
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _cells(row: Row) -> tuple[str, ...]:
    verdict = {True: "pass", False: "MISS", None: ""}[row.passed]
    return (
        row.name,
        row.store,
        row.bar,
        f"{_number(row.figure)} {row.unit}".strip(),
        _number(row.floor),
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "  ".join(part for part in (verdict, row.note) if part),
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=OUT.parent
    )
    return done.stdout.strip()
