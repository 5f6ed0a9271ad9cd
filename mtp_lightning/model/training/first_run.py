"""Whether what runs is the first of two runs under torch's `checkpoint`, of which autograd keeps nothing.

What forms gradients in its forward need not form them then: the second run, in the backward, will.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_FIRST = ContextVar("first_run", default=False)  # the second run may be another thread's, which has the default


@contextmanager
def first_run() -> Iterator[None]:
    """For the first of the two contexts of `checkpoint(..., context_fn=...)`, and for nothing else."""
    token = _FIRST.set(True)
    try:
        yield
    finally:
        _FIRST.reset(token)


def is_first_run() -> bool:
    return _FIRST.get()
