"""`geres demo`: real work on real files, measured and checked."""

from __future__ import annotations

import click


@click.command()
@click.option("-n", "--tasks", "most", metavar="N", type=click.IntRange(min=1), help="At most so many tasks.")
def demo(most: int | None) -> int:
    """Start a cluster in a temporary folder, run a job of real work on it, check every result.

    It compresses the Python files of this machine, compares the sums with ones computed without geres,
    shows one task that fails on purpose, and stops what it started.
    """
    from geres.cli.demo import run_demo  # loads the screen and the workloads

    return run_demo() if most is None else run_demo(most)
