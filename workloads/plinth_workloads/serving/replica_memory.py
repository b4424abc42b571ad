"""A replica's memory: what a step frees stays for the next one, and what a version leaves behind is given back.

Python's collector now and then goes through all that has lived for long: half a million objects of torch, transformers
and the model, a third of a second in which no thread makes a token. Nearly all of it lives as long as the process.

glibc hands freed memory back to the system as soon as it is 128 KiB, and the next step asks for it again, page by page:
hundreds of times a step where the weights were mapped from their files. (Where they were not, their own release has
raised that size already, see M_MMAP_THRESHOLD.)
"""

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""As `malloc.h` numbers them, see mallopt(3)."""

_KEPT_BYTES = 2**30
"""Of each of glibc's arenas, at its end."""

_MAPPED_BYTES = 2**25
"""From here on memory goes back to the system by itself: the most that glibc takes."""


def tidy_memory() -> None:
    """Where a version has come or gone: give back what nobody holds, and keep what is freed from now on.

    Cycles and what was frozen before are given back too; what is left is passed over by the collector, see
    https://docs.python.org/3/library/gc.html#gc.freeze.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        libc.malloc_trim(0)
