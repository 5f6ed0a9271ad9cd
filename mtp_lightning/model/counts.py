"""Parameters and FLOPs of a configuration, by formula: no weight is allocated (table S14 of the paper)."""

from typing import NamedTuple

from mtp_lightning.model.config import BackboneConfig, HeadsConfig, n_trunk_layers


class ModelCounts(NamedTuple):
    """Parameter counts. `total` counts a tied embedding once; `non_embedding` is what the paper's M-sizes name."""

    non_embedding: int
    embedding: int
    total: int


def count_layers(backbone: BackboneConfig, heads: HeadsConfig) -> int:
    """Transformer layers of trunk and heads together: n_layers for every n under parameter matching."""
    return n_trunk_layers(backbone, heads) + heads.n_future


def layer_matmul_parameters(backbone: BackboneConfig) -> int:
    """Weights of one layer that take part in a matrix product: 2 d^2 + 2 d d_kv + 3 d d_ffn."""
    d, kv = backbone.dim, backbone.kv_heads * backbone.head_dim
    return 2 * d * d + 2 * d * kv + 3 * d * backbone.ffn


def count_parameters(backbone: BackboneConfig, heads: HeadsConfig) -> ModelCounts:
    """Exact counts of `MTPModel(backbone, heads)`."""
    layers = count_layers(backbone, heads) * (layer_matmul_parameters(backbone) + 2 * backbone.dim)
    non_embedding = layers + backbone.dim
    matrices = 1 if backbone.tie_embeddings else 2
    embedding = matrices * backbone.vocab_size * backbone.dim
    return ModelCounts(non_embedding, embedding, non_embedding + embedding)


def flops_per_token(backbone: BackboneConfig, heads: HeadsConfig, context: int) -> int:
    """Training FLOPs per input token: 6 per weight of a matrix product, the unembedding counted once per head,
    plus causal attention's 6 T d per layer (forward 2 T d, half of the 4 T d of full attention; backward twice)."""
    layers = count_layers(backbone, heads)
    matmuls = layers * layer_matmul_parameters(backbone)
    unembeddings = heads.n_future * backbone.vocab_size * backbone.dim
    return 6 * (matmuls + unembeddings) + 6 * layers * context * backbone.dim
