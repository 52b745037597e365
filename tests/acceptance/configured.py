"""Clusters of a user who has settings in a file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import Cluster


@contextlib.contextmanager
def cluster_with(settings: str) -> Iterator[Cluster]:
    """A started cluster; `settings` is what the user's geres.toml says."""
    with tempfile.TemporaryDirectory(prefix="geres-test-") as folder:
        cluster = Cluster(Path(folder))
        place = Path(cluster.env["XDG_CONFIG_HOME"]) / "geres"
        place.mkdir(parents=True)
        (place / "geres.toml").write_text(settings)
        with cluster:
            yield cluster
