"""Large results without a copy: a worker writes them into anonymous memory, and passes the memory itself.

The worker has met a hostile file and may be a hostile process by now. So before a byte is read the memory is sealed: it
can neither shrink under the reader nor change after it was looked at. The kernel refuses the seal while anybody can
still write, and whatever is no such memory.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import weakref

from serving.domain import Pixels

_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap = _libc.mmap, _libc.munmap
"""Not ``mmap.mmap``: before Python 3.13 it keeps a descriptor open per mapping, and a cache would hold hundreds."""
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def share(pixels: Pixels) -> int:
    """Copy pixels into new anonymous memory; the caller closes the descriptor.

    Raises:
        OSError: no memory for it.
    """
    fd = os.memfd_create("vireo-pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = pixels.data.cast("B")
        while left:
            left = left[os.write(fd, left) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_shared(fd: int, num_bytes: int) -> memoryview:
    """Seal and map what a worker passed; read-only. The caller closes the descriptor; the view keeps the memory.

    Raises:
        OSError: it cannot be sealed (not anonymous memory, or still writable for somebody), or not be mapped.
        ValueError: it does not have ``num_bytes``, or has none.
    """
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    if os.fstat(fd).st_size != num_bytes or num_bytes < 1:
        raise ValueError(f"shared memory has {os.fstat(fd).st_size} bytes, expected {num_bytes}")
    # Private, because kernels before 6.7 refuse shared mappings of sealed memory; nothing is ever written either way.
    address = _mmap(None, num_bytes, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0)
    if address in (None, _MAP_FAILED):
        raise OSError(ctypes.get_errno(), "mmap failed")
    mapping = (ctypes.c_ubyte * num_bytes).from_address(address)
    weakref.finalize(mapping, _munmap, address, num_bytes).atexit = False
    return memoryview(mapping).toreadonly()
