"""Working memory that a process keeps from batch to batch, and that of loading, which it does not."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_memory() -> None:
    """Let glibc keep freed memory: tensors come and go with every batch, and page faults cost more than they do."""
    _set(mmap=2**25, trim=2**30, pad=2**24)


def give_memory_back() -> None:
    """Let glibc give large pieces back once they are freed: weights are copied on their way into a session."""
    _set(mmap=2**20, trim=2**24, pad=2**20)


@contextmanager
def lean() -> Iterator[None]:
    """Have glibc give memory back meanwhile, and keep it from then on."""
    give_memory_back()
    try:
        yield
    finally:
        keep_memory()


def _set(*, mmap: int, trim: int, pad: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, size in ((_M_MMAP_THRESHOLD, mmap), (_M_TRIM_THRESHOLD, trim), (_M_TOP_PAD, pad)):
            mallopt(option, size)
