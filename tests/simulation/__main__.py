"""`python -m tests.simulation`: run schedules, `SEED=n` one of them, or `SCHEDULES=n` from `SEED` on."""

from __future__ import annotations

import os
import sys
import time

from tests.simulation.places import databases
from tests.simulation.simulation import Failed, Simulation


def main() -> int:
    seed = os.environ.get("SEED")
    count = int(os.environ.get("SCHEDULES", "1" if seed else "1000"))
    stores = os.environ.get("STORE", "sqlite postgres").split()
    for store in stores:
        begun = time.monotonic()
        with databases(store) as (db, folder):
            for number in range(int(seed or 0), int(seed or 0) + count):
                try:
                    Simulation(db, number, folder).run()
                except Failed as failed:
                    print(failed)
                    return 1
        print(f"{count} schedules on {store} in {time.monotonic() - begun:.1f} s: all promises kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
