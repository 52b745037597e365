"""What agents say is taken for what it is."""

from __future__ import annotations

from geres.blobs.folder import output_key
from geres.model.wire import Ended, Frame
from geres.server.frames import only_attempts, with_own_blobs


def test_a_report_names_no_blob_but_its_own() -> None:
    own = output_key(4294967297, 1, "stdout")
    stolen = output_key(4294967298, 1, "stderr")

    ended = with_own_blobs(Ended(4294967297, 1, "succeeded", stdout_blob=own, stderr_blob=stolen))

    assert (ended.stdout_blob, ended.stderr_blob) == (own, None)


def test_attempts_that_there_cannot_be_are_passed_over() -> None:
    good, bad = Ended(1 << 32, 1, "succeeded"), Ended((1 << 64) - 1, 1, "succeeded")

    frame = only_attempts(
        Frame(ended=[bad, good, Ended(1, -1, "failed")], started=[(1 << 63, 1, 0)], asked=[(1, 1 << 31, "x")])
    )

    assert (frame.ended, frame.started, frame.asked) == ([good], [], [])
