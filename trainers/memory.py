"""Memory that a step frees stays with the process, for the next step to take. No result changes by a bit.

A step frees what it took and takes as much again. By default glibc hands large blocks back to the system, which clears
them page by page when they are asked for anew.
"""

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Of malloc.h."""
LARGEST = 2**31 - 1
"""mallopt takes an int [bytes]."""
AHEAD_BYTES = 64 * 2**20
"""Asked of the system at once."""


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed, and return whether it does: only glibc's can. For mains only.

    Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: LARGEST, M_TOP_PAD: AHEAD_BYTES}
    return 0 not in [mallopt(name, value) for name, value in settings.items()]
