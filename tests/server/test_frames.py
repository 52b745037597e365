"""What agents say is taken for what it is."""

from __future__ import annotations

from geres.blobs.folder import output_key
from geres.model.wire import Ended
from geres.server.frames import with_own_blobs


def test_a_report_names_no_blob_but_its_own() -> None:
    own = output_key(4294967297, 1, "stdout")
    stolen = output_key(4294967298, 1, "stderr")

    ended = with_own_blobs(Ended(4294967297, 1, "succeeded", stdout_blob=own, stderr_blob=stolen))

    assert (ended.stdout_blob, ended.stderr_blob) == (own, None)
