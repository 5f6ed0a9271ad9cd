"""Tests of decoding by compiled layers want a compiler."""

import pytest

from mtp_lightning.decoding.compiled import compiler


def _has_compiler() -> bool:
    try:
        return bool(compiler._compiler())
    except FileNotFoundError:
        return False


needs_compiler = pytest.mark.skipif(not _has_compiler(), reason="needs a C++ compiler")
EITHER = [False, pytest.param(True, marks=[needs_compiler, pytest.mark.slow])]
"""For property tests: torch's layers, and, slow, compiled ones."""
