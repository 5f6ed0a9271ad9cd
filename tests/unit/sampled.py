"""Long lists of cases of one kind: a share of them in the quick tests, all of them in the slow ones."""

from collections.abc import Iterable
from typing import Any

import pytest


def one_in(step: int, cases: Iterable[Any]) -> list[Any]:
    """The cases, all but each `step`-th of them marked slow."""
    marked = []
    for i, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        marked.append(pytest.param(*values, marks=pytest.mark.slow) if i % step else case)
    return marked
