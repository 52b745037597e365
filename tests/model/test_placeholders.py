"""Placeholders of arrays."""

from __future__ import annotations

import pytest

from geres.model.ids import task_key
from geres.model.placeholders import replace_all


@pytest.mark.parametrize(
    ("text", "item", "result"),
    [
        ("{}", "a b", "a b"),
        ("{}", None, "7"),
        ("x{index}y", "a", "x7y"),
        ("{task}", "a", "12.7"),
        ("{.}.gz", "d.e/a.tar.txt", "d.e/a.tar.gz"),
        ("{.}", "d.e/.profile", "d.e/.profile"),
        ("{/}", "d/a.txt", "a.txt"),
        ("{/}", "d/e/", "e"),
        ("{}{}", "{index}", "{index}{index}"),
        ("${x} {x} {{}}", "a", "${x} {x} {a}"),
        ("plain", "a", "plain"),
    ],
)
def test_a_placeholder_is_replaced_once(text: str, item: str | None, result: str) -> None:
    assert replace_all(text, task_key(12, 7), item) == result
