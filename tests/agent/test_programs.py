"""Finding the program of a command, and saying where it was not."""

from __future__ import annotations

import os

import pytest

from geres.agent.process import Programs, Unstartable


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (2, "in PATH ({0}:{1})"),
        (3, "in PATH ({0}:{1}:{2})"),
        (40, "in PATH ({0}:{1} and 38 more folders)"),
    ],
)
def test_a_program_that_is_nowhere_is_told_without_the_whole_path(tmp_path, count, said):
    folders = [str(tmp_path / str(number)) for number in range(count)]

    with pytest.raises(Unstartable) as refused:
        Programs().find(b"no-such-program", os.fsencode(":".join(folders)), 0.0)

    assert refused.value.message == f"no program no-such-program {said.format(*folders)}"
