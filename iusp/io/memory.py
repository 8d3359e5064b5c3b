"""Memory allocation settings."""

import ctypes


def keep_memory() -> None:
    """Make glibc keep freed memory for reuse.

    By default, glibc returns large arrays to the kernel. The page faults of the next allocation then take up to half of
    the time of a small network's training step or of a clip's features. Other C libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: the largest allowed value
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
