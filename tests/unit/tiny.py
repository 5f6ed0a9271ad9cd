"""The size of model that unit tests use."""

from mtp_lightning.model.config import BackboneConfig


def tiny_backbone(**changes: object) -> BackboneConfig:
    """16 symbols, width 32, two layers: enough for every property, and quick."""
    settings = {"vocab_size": 16, "dim": 32, "n_layers": 2, "n_heads": 2, "ffn_dim": 48} | changes
    return BackboneConfig(**settings)  # type: ignore[arg-type]
