"""The archive of a node's logs: which lines are in it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from geres.agent import node_logs

NOON_US = int(datetime(2026, 1, 2, 12, tzinfo=UTC).timestamp() * 1e6)


def text(folder: Path, since_us: int) -> str:
    return b"".join(node_logs.archive(folder, since_us)).decode()


def test_lines_before_the_time_are_left_out_with_what_follows_them(tmp_path: Path) -> None:
    (tmp_path / "agent.log").write_text(
        '{"at":"2026-01-02T11:59:59.999999Z","text":"early"}\n'
        "  its traceback\n"
        '{"at":"2026-01-02T12:00:00.000000Z","text":"late"}\n'
        "  its own\n"
    )
    found = text(tmp_path, NOON_US)
    assert found.splitlines()[1:] == ['{"at":"2026-01-02T12:00:00.000000Z","text":"late"}', "  its own"]
    assert "early" in text(tmp_path, 0)


def test_a_file_without_times_is_taken_whole_where_it_was_written_since(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.log"
    path.write_text("something\n")
    os.utime(path, ns=(NOON_US * 1000, NOON_US * 1000))
    assert "something" in text(tmp_path, NOON_US)
    assert "something" not in text(tmp_path, NOON_US + 1)


def test_only_the_last_part_of_a_large_file_is_sent(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(node_logs, "MOST_BYTES", 1000)
    (tmp_path / "agent.log").write_text("".join(f"line {number}\n" for number in range(1000)))
    found = text(tmp_path, 0)
    assert len(found) < 1200
    assert found.endswith("line 999\n")
    assert "only the last" in found
    assert all(line.startswith(("line ", "==>", "[geres")) for line in found.splitlines())


def test_a_file_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert text(tmp_path, 0) == ""
