"""Memory that is used again."""

import ctypes


def keep_memory() -> None:
    """Have glibc keep what is freed.

    It hands large arrays back to the kernel and has them faulted in again at the next step, which takes up to half of a
    small network's step or of a clip's features. Other C libraries have no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: the largest that it takes
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
