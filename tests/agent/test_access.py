"""Which server an agent turns to next."""

from __future__ import annotations

from pathlib import Path

import pytest

from geres.agent.access import Access

A, B, C, D = (f"https://{name}.example:4470" for name in "abcd")


def turns(access: Access, number: int) -> list[str]:
    found = []
    for _ in range(number):
        found.append(access.url)
        access.turn()
    return found


def test_given_addresses_take_turns() -> None:
    access = Access(f"{A}, {B}/", "")
    assert turns(access, 5) == [A, B, A, B, A]
    assert (access.count, access.is_given) == (2, True)


def test_what_servers_told_is_tried_between_two_rounds_of_what_was_given() -> None:
    """It may lead nowhere from here, and must not keep the agent from what does."""
    access = Access(A, "")
    access.learn([A, f"{B}/", C, C])
    found = turns(access, 7)
    assert found[::2] == [A] * 4
    assert sorted(found[1:4:2]) == [B, C]
    assert found[1] == found[5]
    assert access.count == 2
    assert not access.is_given
    access.learn([A, D])  # B and C are gone
    access.turn()
    assert set(turns(access, 4)) == {A, D}


def test_it_is_kept_for_the_next_start(tmp_path: Path) -> None:
    Access(A, "", learnt=tmp_path / "servers").learn([A, B])
    assert (tmp_path / "servers").stat().st_mode & 0o077 == 0
    assert turns(Access(A, "", learnt=tmp_path / "servers"), 2) == [A, B]
    assert (
        turns(Access("http://127.0.0.1:4470", "", learnt=tmp_path / "servers"), 2)
        == ["http://127.0.0.1:4470"] * 2
    )


@pytest.mark.parametrize("told", ["http://b.example:4470", "https://", "https://[b", "https://b:x", "b", ""])
def test_only_addresses_whose_server_is_known_by_its_certificate_count(told: str) -> None:
    access = Access(A, "")
    access.learn([told])
    assert turns(access, 3) == [A, A, A]
    plain = Access("http://127.0.0.1:4470", "")
    plain.learn([B])
    assert turns(plain, 2) == ["http://127.0.0.1:4470"] * 2


def test_no_more_are_kept_than_are_of_use() -> None:
    access = Access(A, "")
    access.learn([f"https://n{n}.example" for n in range(1000)])
    assert len(set(turns(access, 1000))) == 65
