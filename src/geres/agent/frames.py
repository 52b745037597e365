"""Frames between the agent and its supervisor: a length and a marshalled value.

The socket lies in a folder of the owner's alone, and both ends are of one installation or neighbouring
ones: values are tuples, lists, dicts, numbers, strings and bytes, and a tuple only ever grows at its end.
"""

from __future__ import annotations

import marshal

_LENGTH_BYTES = 4
_MARSHAL_VERSION = 2  #: without references: the same bytes for equal values
MOST_FRAME_BYTES = 256 << 20

Value = object


def pack(value: Value) -> bytes:
    body = marshal.dumps(value, _MARSHAL_VERSION)  # type: ignore[arg-type]
    return len(body).to_bytes(_LENGTH_BYTES, "little") + body


class Unpacker:
    """Cuts a stream of bytes into values."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list:  # type: ignore[type-arg]
        """The values that `data` completes, oldest first.  Raises ValueError for what is no frame."""
        buffer = self._buffer
        buffer += data
        values = []
        at = 0
        end = len(buffer)
        while end - at >= _LENGTH_BYTES:
            length = int.from_bytes(buffer[at : at + _LENGTH_BYTES], "little")
            if length > MOST_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes is no frame")
            if end - at < _LENGTH_BYTES + length:
                break
            with memoryview(buffer) as view:
                values.append(marshal.loads(view[at + _LENGTH_BYTES : at + _LENGTH_BYTES + length]))
            at += _LENGTH_BYTES + length
        if at:
            del buffer[:at]
        return values
