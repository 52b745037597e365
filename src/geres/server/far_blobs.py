"""Blobs that lie in the folders of other servers, where servers share no folder: read from them on demand.

An agent uploads to the server that it is connected to.  All methods block, as those of the folder do.
"""

from __future__ import annotations

import http.client
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from geres import trust
from geres.api.peers import BLOBS_PATH, HEADER, SIZE_HEADER, sign
from geres.blobs.folder import FolderBlobs
from geres.errors import NotFound, StoreUnavailable
from geres.store.servers import Peer

log = logging.getLogger("geres.blobs")

_SECONDS = 10.0
_PIECE_BYTES = 1 << 20
_MOST_PIECES = 16  #: that are kept here


class FarBlobs(FolderBlobs):
    """The own folder, and behind it those of the others."""

    def __init__(self, folder: Path, peers: Callable[[], Sequence[Peer]], clock: Callable[[], int]) -> None:
        """`peers` are the other servers that are there now."""
        super().__init__(folder)
        self._peers, self._clock = peers, clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], tuple[int, bytes]] = OrderedDict()

    def size(self, key: str) -> int:
        """Bytes of a blob.  Raises NotFound, or StoreUnavailable where a server could not be asked."""
        try:
            return super().size(key)
        except NotFound as missing:
            return self._far(key, 0, missing)[0]

    def read(self, key: str, offset: int = 0, most: int = _PIECE_BYTES) -> bytes:
        """At most `most` bytes from `offset`; empty behind the end.  Raises like `size`."""
        try:
            return super().read(key, offset, most)
        except NotFound as missing:
            start = offset - offset % _PIECE_BYTES
            return self._far(key, start, missing)[1][offset - start :][:most]

    def _far(self, key: str, offset: int, missing: NotFound) -> tuple[int, bytes]:
        """(size of the blob, a MiB of it from `offset`)."""
        with self._lock:
            if (found := self._kept.get((key, offset))) is not None:
                self._kept.move_to_end((key, offset))
                return found
        failed = None
        for peer in self._peers():
            try:
                found = self._ask(peer, key, offset)
            except (OSError, http.client.HTTPException) as error:
                log.info("server %d at %s could not be asked for a blob: %s", peer.id, peer.url, error)
                failed = StoreUnavailable(f"server {peer.url}, which may have blob {key}, does not answer")
                continue
            if found is not None:
                with self._lock:
                    self._kept[key, offset] = found
                    while len(self._kept) > _MOST_PIECES:
                        self._kept.popitem(last=False)
                return found
        raise failed or missing

    def _ask(self, peer: Peer, key: str, offset: int) -> tuple[int, bytes] | None:
        url = urlsplit(peer.url)
        connection: http.client.HTTPConnection
        if url.scheme == "https":
            context = trust.context(peer.fingerprint)
            connection = http.client.HTTPSConnection(
                url.hostname or "", url.port, timeout=_SECONDS, context=context
            )
        else:
            connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=_SECONDS)
        target = f"{BLOBS_PATH}?{urlencode({'key': key, 'offset': offset, 'most': _PIECE_BYTES})}"
        try:
            connection.request("GET", target, headers={HEADER: sign(peer.secret, target, self._clock())})
            answer = connection.getresponse()
            content = answer.read(_PIECE_BYTES + 1)
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise http.client.HTTPException(f"it answered {answer.status}")
            return int(answer.headers[SIZE_HEADER]), content
        finally:
            connection.close()
