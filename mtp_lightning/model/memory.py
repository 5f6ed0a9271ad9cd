"""What a training step holds in memory, by formula, and what recomputing layers saves of it and costs."""

from typing import NamedTuple

from mtp_lightning.model.attention import CAUSAL_BLOCK
from mtp_lightning.model.block import Recomputed
from mtp_lightning.model.config import ONE_STREAM, SIDE_BY_SIDE, BackboneConfig, HeadsConfig
from mtp_lightning.model.counts import (
    count_heads,
    count_parameters,
    flops_per_token,
    layer_matmul_parameters,
    layer_parameters,
    mixture_parameters,
    trainable_parameters,
    trunk_widths,
)
from mtp_lightning.model.own_kind import count_own
from mtp_lightning.model.training.recompute import HEADS, Recompute, recomputed_parts

PASS_ELEMENTS = 2**20
"""Probabilities that a CPU makes of a chunk of logits at once: 4 MB stay in its caches (measured: 2^19 to 2^20)."""
STATE_BYTES = 16
"""Of a weight in training: itself, its gradient, AdamW's two moments, in float32 (mixed precision keeps them so)."""


def state_memory(backbone: BackboneConfig, heads: HeadsConfig, freeze: str = "none", optimizer: str = "adamw") -> int:
    """Bytes of weights, gradients and optimizer; a weight that is frozen is 4 bytes, Muon has one moment."""
    trained = trainable_parameters(backbone, heads, freeze)
    state = STATE_BYTES * trained + 4 * (count_parameters(backbone, heads).total - trained)
    if optimizer != "muon":
        return state
    further = count_heads(heads).further_unembeddings
    shared = {"none": 1 if backbone.tie_embeddings else 2, "trunk": 1}.get(freeze, 0)
    by_adamw = ((shared + further) * backbone.dim + 2 * heads.bigram_rank) * backbone.vocab_size
    by_adamw += heads.components * backbone.dim  # a mixture's weights
    return state - 4 * (trained - by_adamw)  # norms are next to nothing


class LayerRun(NamedTuple):
    """A transformer layer that runs in a step's forward and keeps something for its backward."""

    ffn: int
    recomputed: Recomputed


def layers_run(
    backbone: BackboneConfig, heads: HeadsConfig, context: int, freeze: str, recompute: Recompute
) -> list[LayerRun]:
    """The trunk's, then the heads', those of a module that serves several heads as often as it runs. A part that is
    frozen, and comes before everything that trains, keeps nothing and is left out."""
    widths = trunk_widths(backbone, heads)
    run = count_own(backbone, heads, context).layers_run if heads.is_own else count_heads(heads).layers_run
    held = run if heads.is_own else count_heads(heads).layers
    parts = recomputed_parts(recompute, len(widths), held)
    trunk = [LayerRun(ffn, part) for ffn, part in zip(widths, parts)]
    own = parts[len(widths) :]
    further = [LayerRun(backbone.ffn, own[min(i, held - 1)]) for i in range(run)]
    if freeze == "next_token" and heads.kind != "linear":
        further = further[heads.layers :]
    return [*(trunk if freeze == "none" else ()), *further]


def layer_memory(
    backbone: BackboneConfig, ffn: int, context: int, width: int, on_gpu: bool = False, registers: bool = False
) -> dict[Recomputed, int]:
    """Bytes that a layer keeps of a position for its backward, by what of it is recomputed.

    In half precision each linear map keeps a copy of its input of its own. A CPU also keeps what is normed, before the
    norm's gain, and in half precision, and of registers, the probabilities of attention. Of registers it is the mean
    of a token and its register.
    """
    d, q, kv, half = backbone.dim, backbone.q_dim, backbone.kv_dim, width == 2
    norm = d * 4 if on_gpu else 2 * d * 4
    qk_norms = (q + kv) * 4 * (1 if on_gpu else 2) if backbone.qk_norm else 0
    if on_gpu:
        mixed = (2 * q + 2 * kv) * width  # queries and output; keys and values
    elif half:  # keys and values once for each query head; half of the probabilities are above the diagonal
        mixed = 4 * q * width + backbone.n_heads * (context + CAUSAL_BLOCK) // 2 * width
    else:
        mixed = (3 * q + 2 * kv) * width  # the output transposed, too
        mixed += backbone.n_heads * (context + CAUSAL_BLOCK) // 2 * width // 2 if registers else 0
    if registers and kv < q:
        mixed += 2 * q * width  # keys and values of both once for each query head
    attention = norm + qk_norms + (3 if half else 1) * d * width + mixed
    swiglu = norm + (2 if half else 1) * d * width + 4 * ffn * width  # gate, its silu, up, their product
    return {"none": attention + swiglu, "attention": d * 4 + swiglu, "layer": d * 4, "head": 0}


class _Layer(NamedTuple):
    """Bytes of a layer in a step."""

    kept: int
    """From its forward to its backward."""
    at_work: int
    """During its own backward, when what is recomputed is whole."""
    gradients: int


def training_memory(
    backbone: BackboneConfig,
    heads: HeadsConfig,
    rows: int,
    context: int,
    width: int,
    freeze: str = "none",
    recompute: Recompute = "none",
    *,
    optimizer: str = "adamw",
    accumulates: bool = False,
    chunk_rows: int = 512,
    on_gpu: bool = False,
    shards: int = 1,
) -> int:
    """Bytes at the peak of a step of one process, beyond what its libraries take.

    Beside weights and optimizer, which are always there, it is the most that is held at one of these moments: as the
    loss is computed, with all that the forward keeps; in the backward of a layer, with what those before it keep and
    the gradients of those after it; at the end, with all gradients. Of documents that do not see each other, and of
    heads that are taught, it knows nothing.

    Args:
        width: bytes of an activation: 4, or 2 under bfloat16 autocast, where the residual stream keeps 4.
        accumulates: the gradients of one batch wait for those of another.
        chunk_rows: of the loss.
        shards: processes that share weights, gradients and optimizer.
    """
    d, positions, counts = backbone.dim, rows * context, count_heads(heads)
    stream, matrix = positions * d * 4, 4 * backbone.vocab_size * d
    in_layer = positions * counts.positions
    gradients = 4 * trainable_parameters(backbone, heads, freeze)
    bigram = 4 * backbone.vocab_size * heads.bigram_rank  # each of its two matrices
    components = heads.n_future * heads.components
    learned = counts.further_unembeddings + (freeze in ("none", "trunk"))
    layers = []
    for ffn, part in layers_run(backbone, heads, context, freeze, recompute):
        each = layer_memory(backbone, ffn, context, width, on_gpu, heads.kind == "registers")
        copies = 0 if width == 4 else 2 * layer_matmul_parameters(backbone, ffn)  # of the weights
        kept = in_layer * each[part] + (copies if part == "none" else 0)
        weights = 4 * layer_parameters(backbone, ffn)
        at_work = in_layer * (each["none"] + 2 * d * 4 + ffn * width) + copies + (2 * weights if shards > 1 else 0)
        layers.append(_Layer(kept, at_work, weights))
    of_trunk = len(trunk_widths(backbone, heads)) if freeze == "none" else 0

    def loss(streams: int, learned: int) -> int:
        """Before the norm, beside its gain, after it, and the gradient; logits, the unembedding's gradient, twice in
        the backward. A bigram's columns stand beside the states and, in a copy, beside the unembedding; a mixture's
        components, and their gradient, beside the states that they are made of."""
        learned, wide = max(learned, 1 if bigram else 0), matrix + bigram
        logits = min(chunk_rows, max(streams, components) * positions) * backbone.vocab_size
        chunk = logits * (width + 4 * on_gpu + 4 * (on_gpu and width == 2))
        chunk += 4 * min(logits, PASS_ELEMENTS) if width == 2 and not on_gpu else 0
        chunk += logits * 4 if heads.second_loss == "summary" else 0  # which tokens come
        chunk += (wide if width == 2 else 0) + (wide if bigram else 0)
        states = streams * ((3 if on_gpu else 4) * stream + 2 * positions * heads.bigram_rank * 4)
        states += (2 * (components + 2) - streams) * stream if components else 0
        return states + max(chunk + learned * wide, (learned + 1) * wide)

    if recompute in HEADS:
        trained = heads.n_future - (freeze == "next_token")
        one = layers[of_trunk : of_trunk + heads.layers] if heads.kind != "linear" else []
        before = stream + sum(layer.kept for layer in layers[:of_trunk])
        done = (trained - 1) * sum(layer.gradients for layer in one)
        done += matrix * max(counts.further_unembeddings, 1) if trained > 1 and learned else 0
        at_work = before + sum(layer.at_work for layer in one) + loss(1, min(learned, 1))
        moments, layers, streams, between = [(at_work, done)], layers[:of_trunk], 0, 0
        done += sum(layer.gradients for layer in one)
    else:
        streams = counts.positions if heads.kind in ONE_STREAM else heads.n_future
        between = _between(heads, d, width) * positions
        moments = [(between + sum(layer.kept for layer in layers) + loss(streams, learned), 0)]
        done = learned * matrix + 2 * bigram + 4 * mixture_parameters(backbone, heads)
    for i in reversed(range(len(layers))):
        held = sum(layer.kept for layer in layers[:i]) + layers[i].at_work
        if i >= of_trunk:  # the gradients of all heads' states are one tensor
            held += streams * stream + between * (i + 1 - of_trunk) // (len(layers) - of_trunk)
        moments.append((held, done))
        done += layers[i].gradients
    moments.append((2 * stream * counts.positions + (matrix if backbone.tie_embeddings else 0), gradients))
    peak = max(held + (gradients if accumulates else done) // shards for held, done in moments)
    return (state_memory(backbone, heads, freeze, optimizer) - gradients) // shards + peak


def _between(heads: HeadsConfig, d: int, width: int) -> int:
    """Bytes of a position that are kept between layers: a head's input where it is no layer, less an input that several
    layers share."""
    counts = count_heads(heads)
    if heads.kind in SIDE_BY_SIDE:
        copies = heads.n_future * d * 2 if heads.components and width == 2 else 0
        return copies - (heads.n_future - 1) * d * 4
    linears = counts.linears * d * 2 if width == 2 else min(counts.linears, 1) * d * 4
    # of a join: two inputs, both normed before the gain, and the two together; of a network: the two together, normed
    # before the gain and after it, and what goes into and comes out of each gelu
    joins = counts.joins_run * (4 * d * 4 + 2 * d * (4 if width == 4 else 6))
    if heads.kind == "fetch":
        return counts.networks * _of_fetch(heads, d, width)
    return linears + joins + counts.networks_run * (4 * d * 4 + (2 * d + 4 * heads.network_width(d)) * width)


def _of_fetch(heads: HeadsConfig, d: int, width: int) -> int:
    """What JTP's fetch keeps of a position, with four attention heads, the most that it has."""
    n, half = heads.n_future, width == 2
    slots = n * 2 * d * 4 + (n * d * 2 if half else 0)  # before their norm and after it
    maps = (2 * n + 3 * (n - 1)) * d * width  # keys, values; queries, twice; what they get
    return slots + maps + 2 * (n - 1) * d * 4 + 4 * n * (n - 1) * (width + 2 * half)


def recomputed_flops(
    backbone: BackboneConfig, heads: HeadsConfig, context: int, freeze: str = "none", recompute: Recompute = "none"
) -> int:
    """Per input token, what recomputing adds to `flops_per_token`: one more forward of the parts."""
    d = backbone.dim
    attention = 2 * layer_matmul_parameters(backbone, 0) + 2 * context * backbone.q_dim
    total = 0
    for ffn, recomputed in layers_run(backbone, heads, context, freeze, recompute):
        total += 0 if recomputed == "none" else attention
        total += 6 * d * ffn if recomputed in ("layer", "head") else 0
    total *= count_heads(heads).positions
    if recompute in HEADS:
        trained = heads.n_future - (freeze == "next_token")
        total += trained * 2 * d * (backbone.vocab_size + (d if heads.kind == "linear" else 0))
    return total


def describe_size(
    backbone: BackboneConfig,
    heads: HeadsConfig,
    context: int,
    freeze: str = "none",
    recompute: Recompute = "none",
    unembedded_again: int = 0,
) -> dict[str, int]:
    """Parameters and training FLOPs per token under their metrics' names; those that train where others are frozen,
    and those that are executed where some are recomputed."""
    counts = count_parameters(backbone, heads)
    flops = flops_per_token(backbone, heads, context, freeze, unembedded_again)
    described = {
        "model/parameters": counts.total,
        "model/parameters_non_embedding": counts.non_embedding,
        "model/flops_per_token": flops,
    }
    if freeze != "none":
        described["model/parameters_trained"] = trainable_parameters(backbone, heads, freeze)
    if recompute != "none":
        more = recomputed_flops(backbone, heads, context, freeze, recompute)
        described["model/flops_executed_per_token"] = flops + more
    return described
