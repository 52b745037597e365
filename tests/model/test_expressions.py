"""Expressions: the same answer in Python and in SQL, and a sentence with a place for every mistake."""

from __future__ import annotations

import json
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geres.errors import Invalid
from geres.model.expressions import Field, node_matcher, to_sql

FIELDS = {
    "name": Field("text", "name"),
    "exit_code": Field("number", "exit_code"),
    "number": Field("number", "number"),
    "cpus": Field("millis", "cpus"),
    "wait_seconds": Field("micros", "wait_us"),
    "created_at": Field("time", "created_at"),
    "id": Field("task", "id"),
    "meta": Field("text", "meta", keys=True),
}
JSON_TEXT = "json_extract({column}, '$.\"' || {key} || '\"')"
NODE = {
    "name": "n1",
    "arch": "x86_64",
    "cpus": 4.0,
    "memory_bytes": 2 << 30,
    "gpus": 0,
    "labels": {"zone": "a", "with-dash": "1"},
    "resources": {"disk_io": 4},
}


def matching_rows(text: str, rows: list[dict[str, object]]) -> list[int]:
    condition, parameters = to_sql(text, FIELDS, json_text=JSON_TEXT)
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (place, number, id, name, exit_code, cpus, wait_us, created_at, meta)")
    for number, row in enumerate(rows):
        row = {"place": number, "meta": "{}", **row}
        marks = ", ".join(f":{key}" for key in row)
        connection.execute(f"INSERT INTO t ({', '.join(row)}) VALUES ({marks})", row)
    found = connection.execute(f"SELECT place FROM t WHERE {condition} ORDER BY place", parameters)
    numbers = [number for (number,) in found]
    connection.close()
    return numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ('name == "a"', [0]),
        ('name != "a"', [1, 2]),
        ("exit_code in (1, 2)", [0, 1]),
        ("exit_code != 1", [1]),
        ("1 != exit_code", [1]),
        ("exit_code != None", [0, 1]),
        ("exit_code not in (1,)", [1]),
        ("exit_code not in (1, None)", [1]),
        ('name not in ("a",)', [1, 2]),
        ("cpus != 0.1", [1]),
        ("exit_code == None", [2]),
        ("not exit_code > 1", [0, 2]),
        ("0 < exit_code < 2", [0]),
        ("2 > exit_code", [0]),
        ("cpus >= 0.5", [1]),
        ('wait_seconds > "1m"', [1]),
        ('created_at < "2026-01-01T00:00:00Z"', [0]),
        ('id == "1.7"', [1]),
        ('meta.proj == "x"', [0]),
        ('meta["a b"] == "y"', [1]),
        ('"B" in name', [1]),
        ('name == "a" or meta.proj == None and exit_code', [0, 1]),
        ("True", [0, 1, 2]),
        ("name", [0, 1]),
    ],
)
def test_a_filter_finds_exactly_its_rows(text: str, numbers: list[int]) -> None:
    rows: list[dict[str, object]] = [
        {"name": "a", "exit_code": 1, "cpus": 100, "created_at": 1, "meta": json.dumps({"proj": "x"})},
        {"id": (1 << 32) + 7, "name": "aB", "exit_code": 2, "cpus": 500, "wait_us": 61_000_000},
        {},
    ]
    rows[1]["meta"] = json.dumps({"a b": "y"})

    assert matching_rows(text, rows) == numbers


@given(
    name=st.one_of(st.none(), st.sampled_from(["a", "b"])),
    code=st.one_of(st.none(), st.integers(-1, 1)),
    cpus=st.one_of(st.none(), st.integers(-1, 1)),
    text=st.recursive(
        st.sampled_from(
            [
                'node.arch == "a"',
                'node.arch != "a"',
                "node.gpus < 1",
                "node.gpus >= 0",
                "node.gpus == None",
                "node.gpus in (0, -1)",
                "node.gpus not in (0, -1)",
                "node.gpus != 1",
                "node.gpus != node.cpus",
                'node.arch not in ("b",)',
                'node.arch in ("b", None)',
                '"a" in node.arch',
                "node.arch",
            ]
        ),
        lambda inner: st.one_of(
            inner.map(lambda one: f"not ({one})"),
            st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda three: f"({' '.join(three)})"),
        ),
        max_leaves=6,
    ),
)
def test_sql_and_python_agree(name: str | None, code: int | None, cpus: int | None, text: str) -> None:
    in_python = node_matcher(text)({"arch": name, "gpus": code, "cpus": cpus})

    in_sql = matching_rows(
        text.replace("node.arch", "name").replace("node.gpus", "exit_code").replace("node.cpus", "number"),
        [{"name": name, "exit_code": code, "number": cpus}],
    )

    assert in_python == bool(in_sql)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ('node.arch=="x86_64"', True),
        ('node.arch=="aarch64"', False),
        ('node.memory_bytes >= "2G" and node.cpus == 4', True),
        ('node.memory_bytes > "2G"', False),
        ('node.labels.zone in ("a", "b")', True),
        ('node.labels["with-dash"] == "1"', True),
        ("node.labels.absent", False),
        ('node.labels.absent != "x"', True),
        ("node.resources.disk_io >= 3", True),
        ("node.resources.absent > 0", False),
        ('"n" in node.name', True),
    ],
)
def test_a_node_matches(text: str, matches: bool) -> None:
    assert node_matcher(text)(NODE) is matches


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("colour == 1", 1, "'colour' is no known name; there are cpus"),
        ("  name == 1", 11, "name is text: write '1' in quotes"),
        ('exit_code == "1"', 14, "without quotes"),
        ('name == "ä" and exit_code == "x"', 30, "without quotes"),
        ('id == "1.x"', 7, "no id of a task"),
        ('created_at > "never"', 14, "no time"),
        ("name =", 6, "cannot be read"),
        ('__import__("os")', 1, "a condition is wanted"),
        ('().__class__ == "x"', 1, "a name is wanted"),
        ("exit_code == 2**64", 14, "a number, a text in quotes or None"),
        ("exit_code < 1e999", 13, "never that large"),
        ("name is None", 1, "write == or !="),
        ('"a" == "a"', 1, "one side of a comparison must be a name"),
        ("meta == 1", 1, "meta needs a key"),
        ("name > None", 8, "only be compared with == and !="),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, position: int, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        to_sql(text, FIELDS, json_text=JSON_TEXT, field="filter")

    assert words in str(caught.value)
    assert caught.value.facts == {"field": "filter", "position": position}


@pytest.mark.parametrize(
    "text", ["", "   ", "(" * 500, "x" * 5000, "name and " * 220 + "name", "name == 'a\0'"]
)
def test_what_is_empty_or_huge_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match=r"^filter: "):
        to_sql(text, FIELDS, json_text=JSON_TEXT)


def test_no_literal_reaches_the_sql_text() -> None:
    condition, parameters = to_sql('meta["k"] == "\'; DROP TABLE task; --"', FIELDS, json_text=JSON_TEXT)

    assert "DROP" not in condition
    assert parameters == {"f0": "k", "f1": "'; DROP TABLE task; --"}
