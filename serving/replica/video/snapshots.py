"""What can be read of a snapshot without torch: the header of a safetensors file.

Layout (safetensors format): 8 bytes, little-endian length of the header; the header, JSON, whose ``__metadata__`` maps
strings to strings; the tensors.
"""

from __future__ import annotations

import json
import struct

_MAX_HEADER_BYTES = 1 << 20


def snapshot_step(snapshot: bytes) -> int:
    """Steps that had been done when the snapshot was taken.

    Raises: ValueError: it is no snapshot.
    """
    try:
        (length,) = struct.unpack_from("<Q", snapshot)
        if length > min(_MAX_HEADER_BYTES, len(snapshot) - 8):
            raise ValueError(f"header of {length} bytes in {len(snapshot)}")
        return int(json.loads(snapshot[8 : 8 + length])["__metadata__"]["step"])
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a snapshot of latents: {error}") from None
