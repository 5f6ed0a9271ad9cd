"""Types of the end-to-end tests."""

import subprocess
from collections.abc import Callable

Mtp = Callable[..., "subprocess.CompletedProcess[str]"]
"""`mtp("fit", ..., check=True)`: a command, run in the test's working folder."""
