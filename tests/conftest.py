"""Tests record where they say, whatever the environment they are started in says, and nothing at the user's."""

import os
import tempfile
from collections.abc import Iterator

import pytest

os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session", autouse=True)
def own_cache() -> Iterator[None]:
    """Resolved configurations are remembered in a folder of the session, also by the commands it starts."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        yield
