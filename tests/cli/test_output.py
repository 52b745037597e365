"""Data on stdout: tables, own formats, JSON, CSV; nothing drives the terminal."""

from __future__ import annotations

import json

import pytest

from geres.cli.output import (
    Column,
    Formatter,
    Style,
    check_names,
    colour,
    escape,
    named_fields,
    pick,
    plain,
    print_list,
    show_number,
    show_time,
    table_lines,
)
from geres.errors import Invalid
from geres.model.tasks import Task, Usage

ROW = {"id": "12.7", "state": "running", "exit_code": None, "usage": {"max_rss_bytes": 5}, "meta": {"a": "b"}}
COLUMNS = [Column("id", "ID"), Column("state", "STATE"), Column("usage.max_rss_bytes", "PEAK", right=True)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{id:>8} {state}", "    12.7 running"),
        ("{id} {usage.max_rss_bytes}", "12.7 5"),
        ("{usage.max_rss_bytes:>6,}|", "     5|"),
        ("[{exit_code}]", "[-]"),
        ("[{exit_code:>4d}]", "[   -]"),
        ("{usage.wall_seconds}|", "-|"),
        ("{meta}", '{"a":"b"}'),
        (r"{id}\t{meta.a}", "12.7\tb"),
        ("{id}{{x}}", "12.7{x}"),
    ],
)
def test_own_formats_take_dotted_names_and_pythons_format_language(text, line):
    assert Formatter(text)(ROW) == line


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{id", "format"), ("no field", "names no field"), ("{state:~~}", "does not fit state")],
)
def test_a_format_that_cannot_work_is_refused(text, problem):
    with pytest.raises(Invalid, match=problem):
        Formatter(text)({**ROW, "state": "x"})


def test_a_field_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(Invalid, match=r"no field 'stat'; did you mean state\?$"):
        Formatter("{stat}")(ROW)


@pytest.mark.parametrize(
    ("style", "problem"),
    [
        (Style(format="{id} {usage.wall}"), r"format: .*'usage.wall'; did you mean usage\.[a-z_]+\?"),
        (Style(format="{state.x}"), "format: there is no field 'state.x'; did you mean state\\?"),
        (Style(select=("id", "colour")), "'colour'; there are .*, meta, .*, usage, .* and more below them"),
    ],
)
def test_names_are_checked_before_anything_is_asked_for(style, problem):
    with pytest.raises(Invalid, match=problem):
        check_names(style, Task)


def test_names_of_maps_lists_and_inner_objects_are_known():
    check_names(Style(format="{meta.proj} {usage.wall_seconds} {command.0} {command}"), Task)
    assert named_fields(Style(format="{meta.a}{id}{usage.x}"), COLUMNS) == ["meta", "id", "usage"]
    assert named_fields(Style(), COLUMNS) == ["id", "state", "usage"]
    assert named_fields(Style(quiet=True), COLUMNS) == ["id"]


def test_control_characters_are_shown_and_not_sent_to_the_terminal():
    assert escape("a\x1b[31mb\nc\x07é") == "a\\x1b[31mb\\nc\\x07é"
    assert Formatter("{id}")({"id": "\x1b]0;x\x07"}) == "\\x1b]0;x\\x07"


def test_tables_are_aligned_and_cut_to_the_terminal():
    lines = list(
        table_lines(
            ["ID", "N", "COMMAND"], [["1.1", "7", "x" * 50], ["12.34", "10", "y"]], [False, True, False], 30
        )
    )
    assert lines[0] == "ID      N  COMMAND"
    assert lines[1] == "1.1     7  " + "x" * 18 + "…"
    assert lines[2] == "12.34  10  y"


def test_an_empty_table_prints_nothing():
    assert list(table_lines(["ID"], [], [False], 80)) == []


@pytest.mark.parametrize(
    ("style", "out"),
    [
        (Style(csv=True), "id,state,usage.max_rss_bytes\n12.7,running,5\n"),
        (Style(quiet=True), "12.7\n"),
        (Style(select=("state", "meta.a"), csv=True), "state,meta.a\nrunning,b\n"),
        (Style(format="{state}"), "running\n"),
        (Style(), "ID    STATE    PEAK\n12.7  running     5\n"),
    ],
)
def test_lists_come_in_each_style(capsys, style, out):
    assert print_list(style, [ROW], COLUMNS) == 1
    assert capsys.readouterr().out == out


@pytest.mark.parametrize("count", [0, 1, 3])
def test_json_is_one_array_and_jsonl_one_object_a_line(capsys, count):
    print_list(Style(json=True), [ROW] * count, COLUMNS)
    assert json.loads(capsys.readouterr().out) == [ROW] * count
    print_list(Style(jsonl=True), [ROW] * count, COLUMNS)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [ROW] * count


def test_values_of_structs_are_found_by_dotted_names():
    assert pick({"usage": {"wall_seconds": 1.5}, "list": [{"a": 1}]}, "usage.wall_seconds") == 1.5
    assert pick({"list": [{"a": 1}]}, "list.0.a") == 1
    assert pick({"usage": None}, "usage.wall_seconds") is None
    assert pick(plain(Usage(max_rss_bytes=7)), "max_rss_bytes") == 7


def test_large_numbers_are_shown_whole(capsys):
    assert [show_number(value) for value in (None, 0.5, 2.0, 1_000_000)] == ["", "0.5", "2", "1000000"]
    print_list(Style(), [{"id": "a", "value": 7_776_000.0}], [Column("value", "VALUE")])
    assert capsys.readouterr().out.split() == ["VALUE", "7776000"]


def test_times_are_local_or_utc(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "Etc/GMT-2")
    time.tzset()
    try:
        assert show_time("2026-03-01T23:30:00.000000Z") == "2026-03-02 01:30"
        assert show_time("2026-03-01T23:30:00.000000Z", utc=True) == "2026-03-01 23:30:00Z"
        assert show_time(None) == ""
    finally:
        monkeypatch.undo()
        time.tzset()


def test_no_colour_where_nothing_is_a_terminal():
    assert colour("failed") == "failed"


@pytest.mark.parametrize("words", [["--json", "--csv"], ["--quiet", "--format", "{id}"]])
def test_two_styles_at_once_are_refused(geres, words):
    done = geres("tasks", *words)
    assert done.status == 2
    assert "do not go together" in done.err
