"""What a process tells its C library about memory."""

import ctypes


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed for the next allocation; False where the C library is another.

    By default large tensors are mapped afresh and returned to the system every step, and each of their pages faults
    anew: 10 % of a training step's processor time at d = 256, 20 % with four heads and a small vocabulary. The peak
    stays as it is; the process then holds it to its end.
    """
    trim_threshold, mmap_threshold, most = -1, -3, 2**31 - 1  # malloc.h; mallopt takes ints
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(mmap_threshold, most) and mallopt(trim_threshold, most))
