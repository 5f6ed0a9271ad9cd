"""The size of model that unit tests use, and a logger that remembers."""

from typing import Any

from lightning.pytorch.loggers.logger import Logger
from typing_extensions import override

from mtp_lightning.model.config import BackboneConfig


def tiny_backbone(**changes: object) -> BackboneConfig:
    """16 symbols, width 32, two layers: enough for every property, and quick."""
    settings = {"vocab_size": 16, "dim": 32, "n_layers": 2, "n_heads": 2, "ffn_dim": 48} | changes
    return BackboneConfig(**settings)  # type: ignore[arg-type]


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

    @property
    def last(self) -> dict[str, float]:
        return {key: value for _, metrics in self.calls for key, value in metrics.items()}
