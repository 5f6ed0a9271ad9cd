"""Parameters and FLOPs of a configuration, by formula: no weight is allocated (table S14 of the paper). Heads of a
user's own kind have no formula here: they are made on the meta device and counted (`own_kind`).

Parameter matching is decided here too: `trunk_widths` says how many layers the trunk keeps and how wide their SwiGLUs
are, so that every kind of head and every n has the parameters of the n_future = 1 model.
"""

from collections.abc import Iterable
from typing import NamedTuple

from mtp_lightning.errors import InputError
from mtp_lightning.model.config import JOINED, BackboneConfig, HeadsConfig
from mtp_lightning.model.networks.fetch import fetch_heads
from mtp_lightning.model.own_kind import count_own


class ModelCounts(NamedTuple):
    """Parameter counts. `total` counts a tied embedding once; `non_embedding` is what the paper's M-sizes name."""

    non_embedding: int
    embedding: int
    """Embedding and unembeddings; further ones, a bigram's two matrices and the registers' vector included."""
    total: int


def layer_matmul_parameters(backbone: BackboneConfig, ffn: int | None = None) -> int:
    """Weights of one layer that take part in a matrix product: 2 d d_q + 2 d d_kv + 3 d d_ffn."""
    d, q, kv = backbone.dim, backbone.q_dim, backbone.kv_dim
    return 2 * d * q + 2 * d * kv + 3 * d * (backbone.ffn if ffn is None else ffn)


def layer_parameters(backbone: BackboneConfig, ffn: int | None = None) -> int:
    """A layer with its norms and biases."""
    biases = backbone.q_dim + 2 * backbone.kv_dim if backbone.attention_bias == "qkv" else 0
    head_norms = 2 * backbone.head_size if backbone.qk_norm else 0
    return layer_matmul_parameters(backbone, ffn) + 2 * backbone.dim + biases + head_norms


class HeadCounts(NamedTuple):
    """What the heads of a kind consist of. A `join` is DeepSeek-V3's M (d x 2d) with the norms of its two inputs."""

    layers: int
    """Transformer layers held."""
    layers_run: int
    """Transformer layers run per position: more than held where one module serves several heads."""
    joins: int
    joins_run: int
    linears: int
    """d x d matrices."""
    further_unembeddings: int
    unembeddings_run: int
    norms: int = 0
    """Final norms beside the shared one."""
    networks: int = 0
    """Of kinds `next_latent` and `fetch`: one for all further heads (`_network_parameters`)."""
    networks_run: int = 0
    positions: int = 1
    """Of each layer, for a token of a training window: itself, and its register."""


def count_heads(heads: HeadsConfig) -> HeadCounts:
    """The parts of `model.heads.Heads`, by kind."""
    n, m = heads.n_future, heads.layers
    further = n - 1 if heads.replicate_unembedding else 0
    if heads.is_own:
        return HeadCounts(0, 0, 0, 0, 0, further, n)  # what else it consists of is measured (`own_kind`)
    if heads.kind == "linear":
        return HeadCounts(0, 0, 0, 0, n, further, n)
    if heads.kind in JOINED:
        held = n if heads.kind == "sequential" else min(n, 2)
        norms = held - 1 if heads.norms == "own" else 0
        return HeadCounts(held * m, n * m, held - 1, n - 1, 0, further, n, norms)
    if heads.kind in ("next_latent", "fetch"):
        return HeadCounts(m, m, 0, 0, 0, 0, n, networks=min(n - 1, 1), networks_run=n - 1)
    if heads.kind == "none":
        return HeadCounts(m, m, 0, 0, 0, 0, 1)
    if heads.second_loss:
        return HeadCounts(m, m, 0, 0, 0, 1, 2)
    if heads.kind == "registers":
        return HeadCounts(m, m, 0, 0, 0, 0, 2, positions=2)
    components = n * heads.components
    return HeadCounts(n * m, n * m, 0, 0, 0, further, 1 + components if components else n)


def mixture_parameters(backbone: BackboneConfig, heads: HeadsConfig) -> int:
    """Of `mtp.Mixture`: a matrix for each head and component, and the map to their weights."""
    return (heads.n_future * backbone.dim + 1) * heads.components * backbone.dim


def head_parameters(backbone: BackboneConfig, heads: HeadsConfig) -> int:
    """Weights of the heads without unembeddings."""
    if heads.is_own:
        return count_own(backbone, heads, 1).parameters
    d, counts = backbone.dim, count_heads(heads)
    joins = counts.joins * (2 * d * d + 2 * d) + counts.norms * d
    networks = counts.networks * _network_parameters(backbone, heads)
    linears = counts.linears * d * d + mixture_parameters(backbone, heads)
    return counts.layers * layer_parameters(backbone) + joins + linears + networks


def _network_parameters(backbone: BackboneConfig, heads: HeadsConfig) -> int:
    """Of NextLat's network: 3 d H + H^2 weights of its maps, H its hidden width, and a norm of 2 d. Of JTP's fetch:
    four maps of d x d, a norm of 2 d and one of d, a bias for each pair of slots, and one number."""
    d, n, width = backbone.dim, heads.n_future, heads.network_width(backbone.dim)
    if heads.kind == "fetch":
        return 4 * d * d + 3 * d + fetch_heads(backbone) * (n - 1) * n + 1
    return (3 * d + width) * width + 2 * d


def _network_products(backbone: BackboneConfig, heads: HeadsConfig) -> int:
    """Products of numbers in a forward of all further heads through the network, per position; of a fetch's attention
    over n slots, of which a slot sees half, as of all attention."""
    counts, d, n, width = count_heads(heads), backbone.dim, heads.n_future, heads.network_width(backbone.dim)
    if heads.kind == "fetch":  # queries and results of n - 1 slots, keys and values of n
        return counts.networks * ((4 * n - 2) * d * d + (n - 1) * n * d)
    return counts.networks_run * (3 * d + width) * width


def trunk_widths(backbone: BackboneConfig, heads: HeadsConfig) -> tuple[int, ...]:
    """SwiGLU width of each layer of the trunk.

    Without matching, all of the n_future = 1 model's layers but head 1's own. With it, what `n_layers` layers have
    less the heads and further unembeddings: a whole number of layers, and the rest, within half a layer (more where
    SwiGLUs are too narrow to give that), spread over them a column (3 d weights) at a time. For transformer heads on a
    shared unembedding there is no rest, and the trunk has the paper's L - n layers.

    Raises:
        InputError: no layer would be left, or a mixture has more components than a state has coordinates.
    """
    if heads.components > backbone.dim:
        raise InputError(
            f"model.heads.mixture_rank is {heads.components}, and model.backbone.dim is {backbone.dim}: there can be "
            "at most as many components as coordinates"
        )
    own = 0 if heads.kind == "linear" else heads.layers
    if heads.match == "none":
        if own >= backbone.n_layers:
            raise InputError(
                f"model.heads.layers is {heads.layers} and model.backbone.n_layers {backbone.n_layers}: head 1 takes "
                "its layers off the trunk and leaves it none"
            )
        return (backbone.ffn,) * (backbone.n_layers - own)
    d, layer = backbone.dim, layer_parameters(backbone)
    columns = count_heads(heads).further_unembeddings * d + 2 * heads.bigram_rank
    taken = head_parameters(backbone, heads) + columns * backbone.vocab_size
    left = backbone.n_layers * layer - taken
    for n_layers in (round(left / layer), left // layer):  # fewer, where the SwiGLUs cannot give the rest
        if n_layers < 1:
            break
        each, rest = divmod(round((left - n_layers * layer) / (3 * d)), n_layers)
        if backbone.ffn + each > 0:
            return tuple(backbone.ffn + each + (i < rest) for i in range(n_layers))
    raise InputError(
        f"model.heads.n_future is {heads.n_future} and model.backbone.n_layers is {backbone.n_layers}: with "
        f"model.heads.match 'parameters' heads of kind '{heads.kind}'"
        f"{' and their own unembeddings' if count_heads(heads).further_unembeddings else ''} take "
        f"{taken / layer:.3g} layers and leave the trunk none; n_future has to be smaller, n_layers larger, or "
        "model.heads.match 'none'"
    )


def count_parameters(backbone: BackboneConfig, heads: HeadsConfig) -> ModelCounts:
    """Exact counts of `MTPModel(backbone, heads)`."""
    trunk = sum(layer_parameters(backbone, ffn) for ffn in trunk_widths(backbone, heads))
    non_embedding = trunk + head_parameters(backbone, heads) + backbone.dim
    matrices = (1 if backbone.tie_embeddings else 2) + count_heads(heads).further_unembeddings
    embedding = (matrices * backbone.dim + 2 * heads.bigram_rank) * backbone.vocab_size
    embedding += backbone.dim if heads.kind == "registers" else 0
    return ModelCounts(non_embedding, embedding, non_embedding + embedding)


def trainable_parameters(backbone: BackboneConfig, heads: HeadsConfig, freeze: str = "none") -> int:
    """How many of `count_parameters(...).total` train.

    Args:
        freeze: one of `training.freezing.Freeze`.
    """
    total, matrix = count_parameters(backbone, heads).total, backbone.vocab_size * backbone.dim
    if freeze == "none":
        return total
    frozen = matrix + sum(layer_parameters(backbone, ffn) for ffn in trunk_widths(backbone, heads))
    if freeze != "trunk":
        frozen += backbone.dim + (0 if backbone.tie_embeddings else matrix)
    if freeze == "next_token":
        frozen += backbone.dim**2 if heads.kind == "linear" else heads.layers * layer_parameters(backbone)
    return total - frozen


def flops_per_token(
    backbone: BackboneConfig, heads: HeadsConfig, context: int, freeze: str = "none", unembedded_again: int = 0
) -> int:
    """Training FLOPs per input token: 6 per weight of a matrix product and time it is used (the unembedding once per
    hidden state that goes through it), plus causal attention's 6 T d_q per layer (forward 2 T d_q, half of the 4 T
    d_q of full attention; backward twice).

    What is frozen and comes before everything that trains (the trunk; head 1 and its unembedding under `next_token`)
    has its forward alone, a third; a frozen unembedding after heads that train lacks the gradient of its weight.

    Args:
        unembedded_again: hidden states that a loss puts through the unembedding once more, forward alone.
    """
    d, counts, widths = backbone.dim, count_heads(heads), trunk_widths(backbone, heads)
    own = 3 * count_own(backbone, heads, context).forward_flops if heads.is_own else 0

    def layers(wide: Iterable[int]) -> int:
        """A third of the FLOPs of transformer layers."""
        return sum(2 * layer_matmul_parameters(backbone, ffn) + 2 * context * backbone.q_dim for ffn in wide)

    trunk, run = (counts.positions * layers(wide) for wide in (widths, [backbone.ffn] * counts.layers_run))
    unembedding = 2 * backbone.vocab_size * (d + heads.bigram_rank)  # head 1's columns of the bigram are zeros
    matrices = 2 * ((counts.joins_run * 2 + counts.linears) * d * d + mixture_parameters(backbone, heads))
    matrices += 2 * _network_products(backbone, heads)
    whole = own + 3 * (trunk + run + matrices + counts.unembeddings_run * unembedding)
    whole += unembedded_again * unembedding
    if freeze == "none":
        return whole
    saved = 2 * trunk
    if freeze != "trunk" and not heads.bigram_rank:  # whose gradient is made together with the weight's
        saved += (counts.unembeddings_run - counts.further_unembeddings) * unembedding
    if freeze == "next_token":
        head_1 = 2 * d * d if heads.kind == "linear" else layers([backbone.ffn] * heads.layers)
        saved += 2 * head_1 + unembedding
    return whole - saved
