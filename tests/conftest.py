"""Tests record where they say, whatever the environment they are started in says, and nothing at the user's."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shape_checks
from absl import logging as absl_logging
from hypothesis import HealthCheck, settings

os.environ.pop("MLFLOW_TRACKING_URI", None)
shape_checks.install()
# A shell's background job ignores SIGINT, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes says more about the machine than about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
# absl (rouge_score uses it) keeps what was sys.stderr when it was imported, here pytest's own file, and closes it when
# another package configures logging, which submitit does when it is imported.
absl_logging.get_absl_handler().python_handler.setStream(sys.__stderr__)


@pytest.fixture(scope="session", autouse=True)
def own_cache() -> Iterator[None]:
    """Resolved configurations are remembered in a folder of the session, also by the commands it starts."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        yield


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container's user whom its list of users does not have."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", unknown)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`-n 2`: a file's tests run in one process, in their order, since they share what the file builds; so do all
    tests on Slurm, which share a cluster. Files begin in their order, too: the long ones of tests/e2e are first."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "slurm" if file.startswith("tests/e2e/test_slurm") else file

    config.option.loadscopereorder = False
    return ByFile(config, log)
