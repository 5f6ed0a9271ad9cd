"""Writes one MLflow run: metrics in batches, each step of a metric once; what cannot be sent waits, and is not lost."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mtp_lightning.secrets import mask
from mtp_lightning.tracking.journal import Unsent, read_journal, write_journal
from mtp_lightning.tracking.params import checked_name
from mtp_lightning.tracking.patience import PATIENCE, StoreAwayError, with_patience

METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
"""What MLflow takes in one call."""
ENOUGH = 900
"""Points that are written without waiting for the clock: with those of one step more they are still one call."""
TOO_MANY = 100_000
"""Points that may wait in memory, some 30 MB."""
BRIEFLY = 1.0
"""Seconds that training waits for a server that is away."""
LATER = 10.0
"""Seconds until it is tried again, and ten times as long as the last try took: a server that takes each request and
never answers costs a tenth of the time."""


class RunWriter:
    """A call on SQLite costs 5 to 7 ms and 0.06 ms a point, so points wait in memory.

    While a server is away, training goes on and points wait on. `keep` puts them into a file, from which an attempt
    that is started later sends them first; `flush` insists.

    Args:
        client: an `mlflow.MlflowClient`.
        recorded: metric -> its last step in the store, for a run that is continued: points up to it are left out.
        journal: the file of what could not be sent.
    """

    def __init__(
        self,
        client: Any,
        run_id: str,
        uri: str,
        flush_every_seconds: float,
        recorded: Mapping[str, int] | None = None,
        journal: Path | None = None,
    ) -> None:
        self.client, self.run_id, self.uri, self.journal = client, run_id, uri, journal
        self.flush_every_seconds = flush_every_seconds
        self.recorded = dict(recorded or {})
        self._waiting = Unsent()
        self._flushed_at = time.monotonic()
        self._ask_again_at = 0.0
        self._latest: dict[str, int] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Queue the values of one step; those that are taken. The first value of a metric at a step is the one kept.

        Raises:
            ValueError: a name MLflow does not take.
            StoreAwayError: more wait than memory should hold.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        taken: dict[str, float] = {}
        for name, value in metrics.items():
            checked_name("metric", name)
            if step <= self.recorded.get(name, -1) or step == self._latest.get(name):
                continue
            self._latest[name] = step
            taken[name] = float(value)
            self._waiting.points.append(Metric(name, taken[name], now, step))
        if len(self._waiting) >= TOO_MANY:
            self.flush()
        elif len(self._waiting) >= ENOUGH or time.monotonic() - self._flushed_at > self.flush_every_seconds:
            self.offer()
        return taken

    def log_batch(self, run_id: str, metrics: Iterable[Any]) -> None:
        """Queue points that another thread measured."""
        assert run_id == self.run_id
        self._waiting.points.extend(metrics)  # in one step: `flush` may be at the front of the list meanwhile

    def log_file(self, path: Path, folder: str | None) -> None:
        """Send a file that stays where it is, now or when the store is back."""
        self._waiting.files.append((str(path), folder))
        self.offer()

    def offer(self) -> None:
        """Write what waits, unless the server is away: then it waits on."""
        asked_at = time.monotonic()
        if asked_at < self._ask_again_at:
            return
        was_away = self._ask_again_at > 0
        try:
            self._send(BRIEFLY)
        except StoreAwayError as error:
            now = time.monotonic()
            self._ask_again_at = now + max(LATER, 10 * (now - asked_at))
            if not was_away:
                _say(f"{error.strerror}: {self.uri}; training goes on, and what it measures waits")
            return
        self._ask_again_at = 0.0
        if was_away:
            _say(f"MLflow answers again: {self.uri}; nothing waits any more")

    def keep(self) -> None:
        """Make sure that nothing is lost if the process dies now: write what waits, to the store or to the journal."""
        self.offer()
        if len(self._waiting) and self.journal is not None:
            write_journal(self.journal, self._waiting)

    def flush(self, away: float = PATIENCE) -> None:
        """Write what waits; a server that is away is waited for.

        Raises:
            StoreAwayError: in vain. What waits is in the journal.
        """
        try:
            self._send(away)
        except StoreAwayError as error:
            if self.journal is None:
                raise
            write_journal(self.journal, self._waiting)
            error.strerror = f"{error.strerror}; {len(self._waiting)} values wait in {self.journal}"
            raise

    def resend(self) -> bool:
        """Send what an earlier attempt left in the journal; whether there was anything."""
        if self.journal is None or not self.journal.exists():
            return False
        self._waiting = read_journal(self.journal)
        self.flush()
        return True

    def _send(self, away: float) -> None:
        """What was sent leaves the queue after a call that succeeded."""
        points, files = self._waiting.points, self._waiting.files
        while points:
            batch = points[:METRICS_PER_CALL]
            self._call(self.client.log_batch, self.run_id, metrics=batch, away=away)
            del points[: len(batch)]
        while files:
            self._send_file(*files[0], away)
            del files[0]
        self._flushed_at = time.monotonic()
        if self.journal is not None:
            self.journal.unlink(missing_ok=True)

    def _send_file(self, path: str, folder: str | None, away: float) -> None:
        """A picture that is refused (too large for a proxy) or gone is reported, and stops nothing else."""
        from mlflow.exceptions import MlflowException
        from requests import RequestException

        try:
            self._call(self.client.log_artifact, self.run_id, path, folder, away=away)
        except (MlflowException, RequestException, FileNotFoundError) as error:
            _say(f"{path} is not recorded: {error}")

    def log_params(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        for batch in _batches([Param(key, mask(value)) for key, value in params.items()], PARAMS_PER_CALL):
            self._call(self.client.log_batch, self.run_id, params=batch)

    def log_text(self, text: str, name: str) -> None:
        self._call(self.client.log_text, self.run_id, mask(text), name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for batch in _batches([RunTag(key, mask(value)) for key, value in tags.items()], PARAMS_PER_CALL):
            self._call(self.client.log_batch, self.run_id, tags=batch)

    def set_status(self, status: str, away: float = PATIENCE) -> None:
        """RUNNING, or one of the ends: FINISHED, FAILED, KILLED."""
        if status == "RUNNING":
            self._call(self.client.update_run, self.run_id, status=status, away=away)
        else:
            self._call(self.client.set_terminated, self.run_id, status, away=away)

    def _call(self, method: Callable[..., object], *args: Any, away: float = PATIENCE, **content: Any) -> None:
        with_patience(lambda: method(*args, **content), self.uri, away)


def _batches(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _say(text: str) -> None:
    print(mask(f"warning: {text}"), file=sys.stderr, flush=True)
