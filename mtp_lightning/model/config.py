"""What a model is: the backbone's dimensions and its prediction heads. Plain frozen dataclasses, checked when made."""

from dataclasses import dataclass
from typing import Literal

from mtp_lightning.errors import InputError

CHECKPOINT_KEY = "mtp_lightning"
"""Entry of a checkpoint that describes its model: the two dataclasses below as plain dicts."""
CHECKPOINT_FORMAT = 1


@dataclass(frozen=True)
class BackboneConfig:
    """A Llama-style decoder: pre-norm RMSNorm, RoPE, SwiGLU, no biases. Table S14 of the paper lists sizes.

    Raises:
        InputError: a dimension that no model can have; the message names the configuration key.
    """

    vocab_size: int = 256
    dim: int = 256
    n_layers: int = 6
    """Layers of the n_future = 1 model. Under parameter matching, trunk and head layers together."""
    n_heads: int = 4
    """Attention heads. Everywhere else "heads" means prediction heads."""
    n_kv_heads: int | None = None
    """Key/value heads of grouped-query attention; by default as many as `n_heads`."""
    ffn_dim: int | None = None
    """Hidden width of SwiGLU; by default 8/3 `dim`, rounded up to a multiple of 256, as in Llama."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    init_std: float = 0.02
    attend_across_documents: bool = True
    """Whether a packed document sees the ones before it in its window. Targets never cross a border either way."""

    def __post_init__(self) -> None:
        for key in ("vocab_size", "dim", "n_layers", "n_heads"):
            if getattr(self, key) < 1:
                raise InputError(f"model.backbone.{key} is {getattr(self, key)}: it has to be at least 1")
        for key in ("n_kv_heads", "ffn_dim"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise InputError(f"model.backbone.{key} is {getattr(self, key)}: it has to be at least 1, or null")
        if self.dim % (2 * self.n_heads):
            raise InputError(
                f"model.backbone.dim is {self.dim}: it has to be a multiple of 2 * n_heads = {2 * self.n_heads}, "
                "since RoPE rotates pairs of coordinates of each attention head"
            )
        if self.n_heads % self.kv_heads:
            raise InputError(f"model.backbone.n_kv_heads is {self.kv_heads}: it has to divide n_heads = {self.n_heads}")

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def ffn(self) -> int:
        return self.ffn_dim or -(-8 * self.dim // (3 * 256)) * 256


@dataclass(frozen=True)
class HeadsConfig:
    """The prediction heads: head i (1-based) predicts the token i places ahead.

    Raises:
        InputError: `n_future` below 1.
    """

    n_future: int = 1
    """Number of predicted future tokens, which is the number of prediction heads."""
    kind: Literal["parallel"] = "parallel"
    """`parallel`: one transformer layer per head, each on the trunk's output (paper, section 2)."""
    match: Literal["parameters", "none"] = "parameters"
    """`parameters`: every further head takes a layer off the trunk (paper, section 3); `none`: the trunk keeps its
    n_layers - 1 layers, the paper's "+ layers" arm (table S4)."""

    def __post_init__(self) -> None:
        if self.n_future < 1:
            raise InputError(
                f"model.heads.n_future is {self.n_future}: it has to be at least 1 (1 is a plain next-token model)"
            )


def n_trunk_layers(backbone: BackboneConfig, heads: HeadsConfig) -> int:
    """Layers left to the trunk: L - n under parameter matching, L - 1 without.

    Raises:
        InputError: no layer would be left.
    """
    taken = heads.n_future if heads.match == "parameters" else 1
    if taken >= backbone.n_layers:
        raise InputError(
            f"model.heads.n_future is {heads.n_future} and model.backbone.n_layers is {backbone.n_layers}: "
            f"with model.heads.match '{heads.match}' the heads take {taken} layers and leave the trunk none; "
            f"n_future has to be below n_layers, or model.heads.match 'none'"
        )
    return backbone.n_layers - taken
