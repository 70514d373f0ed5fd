"""Keeps glibc from mapping and unmapping large temporaries at every step. Client processes call it at their start.

Per-row gradients are large and short-lived. By default glibc maps each anew, and the page faults cost more than
the arithmetic; with higher thresholds freed memory stays in the process and is reused.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 1 << 20


def keep_freed_memory() -> bool:
    """Raises glibc's mmap threshold to 32 MiB, its largest, and stops trimming. For the whole process.

    Returns:
        Whether it took effect: False, without harm, where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    settings = [(_M_MMAP_THRESHOLD, 32 * _MIB), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * _MIB)]
    return all(mallopt(option, value) == 1 for option, value in settings)
