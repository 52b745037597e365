"""What is proposed for a word that is not known."""

from __future__ import annotations

import pytest

from geres.model.nearest import nearest

KNOWN = [
    "failed",
    "queued",
    "memory",
    "memory_bytes",
    "time_limit",
    "node.os",
    "node.cpus",
    "usage.wall_seconds",
]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("faild", "failed"),
        ("FAILED", "failed"),
        ("mem", "memory"),
        ("tme_limit", "time_limit"),
        ("node.x", None),
        ("node.cpu", "node.cpus"),
        ("usage.wall", "usage.wall_seconds"),
        ("x.memory", "memory"),
        ("fo", None),
        ("", None),
        ("done", None),
    ],
)
def test_only_what_is_near_is_proposed(word, meant):
    assert nearest(word, KNOWN) == meant


def test_the_nearest_is_given_as_it_is_written():
    assert nearest("ann", ["Anna", "Bob"]) == "Anna"
