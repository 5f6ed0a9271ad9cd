"""The size of model that unit tests use, and a logger that remembers."""

from typing import Any, get_args

from lightning.pytorch.loggers.logger import Logger
from typing_extensions import override

from mtp_lightning.model.config import BackboneConfig, HeadKind, HeadsConfig


def tiny_backbone(**changes: object) -> BackboneConfig:
    """16 symbols, width 32, two layers: enough for every property, and quick."""
    settings = {"vocab_size": 16, "dim": 32, "n_layers": 2, "n_heads": 2, "ffn_dim": 48} | changes
    return BackboneConfig(**settings)  # type: ignore[arg-type]


KINDS: tuple[HeadKind, ...] = get_args(HeadKind)
VARIANTS = {kind: HeadsConfig(n_future=3, kind=kind) for kind in KINDS} | {
    "replicated": HeadsConfig(n_future=3, replicate_unembedding=True),
    "replicated sequential": HeadsConfig(n_future=3, kind="sequential", replicate_unembedding=True),
    "two layers a head": HeadsConfig(n_future=2, layers=2),
    "normed sequential": HeadsConfig(n_future=3, kind="sequential", norms="own"),
    "leap": HeadsConfig(n_future=3, offsets=(1, 3, 4)),
    "leaping sequential": HeadsConfig(n_future=3, kind="sequential", offsets=(1, 3, 5)),
    "leaping none": HeadsConfig(n_future=2, kind="none", offsets=(1, 3)),
    "one": HeadsConfig(n_future=1, kind="recurrent"),
}
"""Every kind of heads, and every setting that changes what they compute."""


class Recorder(Logger):
    """Keeps every call."""

    name, version = "recorder", "0"  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int | None, dict[str, float]]] = []

    @override
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        self.calls.append((step, dict(metrics)))

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        return

    def steps(self, key: str) -> list[int | None]:
        return [step for step, metrics in self.calls if key in metrics]

    def last_by_step(self, prefix: str) -> dict[int | None, dict[str, float]]:
        """step -> the metrics with names that begin so."""
        found: dict[int | None, dict[str, float]] = {}
        for step, metrics in self.calls:
            mine = {key: value for key, value in metrics.items() if key.startswith(prefix)}
            if mine:
                found.setdefault(step, {}).update(mine)
        return found

    @property
    def last(self) -> dict[str, float]:
        return {key: value for _, metrics in self.calls for key, value in metrics.items()}
