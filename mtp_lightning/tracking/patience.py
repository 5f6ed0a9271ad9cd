"""Calls on a store that is busy or away, made again: how often, for how long, and what is reported in the end."""

import errno
import time
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from mtp_lightning.secrets import mask

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

PATIENCE = 60.0
"""Seconds that a server may be away where nothing can go on without it: at the start and at the end of a run."""
TRIES = 8
FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0
_DISK_TROUBLE = {
    "database or disk is full": errno.ENOSPC,
    "disk I/O error": errno.EIO,
    "readonly database": errno.EROFS,
    "unable to open database file": errno.EACCES,
}
"""What SQLite says -> the operating system's error that causes it."""

T = TypeVar("T")


class StoreAwayError(OSError):
    """A server that did not answer, or a database that others held, for as long as it was waited for."""

    def __init__(self, uri: str, seconds: float, reason: Exception) -> None:
        waited = f" within {seconds:.0f} s" if seconds > 1 else ""
        super().__init__(errno.ECONNREFUSED, f"MLflow does not answer{waited} ({mask(_last_line(reason))})", mask(uri))


def with_patience(call: Callable[[], T], uri: str, away: float = PATIENCE) -> T:
    """Run a call on the store again while other processes hold its SQLite database, about half a minute in all beside
    the 20 s that SQLite itself waits each time, and while its server is away, for `away` seconds. A write that did
    arrive is not doubled: MLflow knows a point by its time.

    Raises:
        StoreAwayError: the server did not come back, or the database is still locked after the last try.
        OSError: the disk is full, or the file cannot be written; names it.
        MlflowException: anything else that MLflow refuses.
        requests.HTTPError: a file that is refused.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

    deadline = time.monotonic() + away
    for attempt in count():
        wait = FIRST_WAIT * 2**attempt
        try:
            return call()
        except (MlflowException, OperationalError, RequestException) as error:
            for words, number in _DISK_TROUBLE.items():
                if words in str(error):
                    file = uri.partition(":///")[2]
                    raise OSError(number, f"MLflow cannot write ({words})", file) from error
            if _is_away(error, uri):
                wait = min(wait, LONGEST_WAIT)
                if time.monotonic() + wait > deadline:
                    raise StoreAwayError(uri, away, error) from error
            elif "database is locked" not in str(error):
                raise
            elif attempt == TRIES - 1:
                raise StoreAwayError(uri, 0.0, error) from error
        time.sleep(wait)
    raise AssertionError("unreachable")


def _is_away(error: "MlflowException | OperationalError | RequestException", uri: str) -> bool:
    """No connection, no answer in time, or one that says try later. MLflow gives all of these the status 500 and above
    or 429; what it refuses for good is in the 400s. Files go by requests of their own."""
    if uri.startswith("sqlite"):
        return False
    answer = getattr(error, "response", None)
    status = getattr(error, "get_http_status_code", lambda: 503 if answer is None else answer.status_code)()
    return status >= 500 or status == 429


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][-200:]
