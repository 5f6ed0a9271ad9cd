"""What a model is: the backbone's dimensions and its prediction heads. Plain frozen dataclasses, checked when made."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from mtp_lightning.errors import InputError, did_you_mean
from mtp_lightning.ranges import TINY, Range, check_ranges

CHECKPOINT_KEY = "mtp_lightning"
"""Entry of a checkpoint that describes its model: the two dataclasses below as plain dicts."""
CHECKPOINT_FORMAT = 2

Width = Annotated[int, Range(least=1, most=2**24)]
Layers = Annotated[int, Range(least=1, most=1000)]
Turns = Annotated[float, Range(least=TINY, most=10**9)]

RopeKind = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are slowed for texts longer than a model's first ones; names as in Hugging Face's configs.

    Raises:
        InputError: a number outside its range, or one that the kind does not have, or lacks.
    """

    kind: RopeKind = "default"
    """`default`: as they are; `linear`: all slower by `factor` (position interpolation, arXiv 2306.15595); `llama3`:
    pairs of few turns in the original context slower, those of many as they are (Llama 3.1); `yarn`: the same by number
    of pair, and attention sharpened (arXiv 2309.00071)."""
    factor: Annotated[float, Range(least=1, most=10**6)] = 1.0
    """How many times longer the texts are."""
    original_context: Annotated[int, Range(least=1, most=10**9)] | None = None
    """Positions of the original context, for `llama3` and `yarn`."""
    low_freq_factor: Turns = 1.0
    """`llama3`: turns in the original context up to which a pair is slowed fully."""
    high_freq_factor: Turns = 4.0
    """`llama3`: turns from which a pair is left as it is."""
    beta_fast: Turns = 32.0
    """`yarn`: turns of the last pair that is left as it is."""
    beta_slow: Turns = 1.0
    """`yarn`: turns of the first pair that is slowed fully."""
    truncate: bool = True
    """`yarn`: whether these pairs are rounded outwards to whole ones."""
    attention_factor: Annotated[float, Range(least=TINY, most=1000)] | None = None
    """`yarn`: factor on queries and keys; by default 0.1 ln(factor) + 1."""

    def __post_init__(self) -> None:
        key = "model.backbone.rope_scaling"
        check_ranges(key, RopeScaling, vars(self))
        own = {
            "factor": ("linear", "llama3", "yarn"),
            "original_context": ("llama3", "yarn"),
            "low_freq_factor": ("llama3",),
            "high_freq_factor": ("llama3",),
            "beta_fast": ("yarn",),
            "beta_slow": ("yarn",),
            "truncate": ("yarn",),
            "attention_factor": ("yarn",),
        }
        for name, kinds in own.items():
            if self.kind not in kinds and getattr(self, name) != getattr(RopeScaling, name):
                raise InputError(f"{key}.{name} goes with kind {' or '.join(kinds)}, and kind is '{self.kind}'")
        if self.original_context is None and self.kind in own["original_context"]:
            raise InputError(f"{key}.original_context is null: kind '{self.kind}' needs the number of positions")
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if getattr(self, low) >= getattr(self, high):
                raise InputError(
                    f"{key}.{high} is {getattr(self, high)}: it has to be above {low} = {getattr(self, low)}"
                )

    @property
    def attention(self) -> float:
        """Factor on the rotations of queries and of keys."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1 if self.kind == "yarn" else 1.0


@dataclass(frozen=True)
class BackboneConfig:
    """A Llama-style decoder: pre-norm RMSNorm, RoPE, SwiGLU. Table S14 of the paper lists sizes.

    Raises:
        InputError: a dimension that no model can have; the message names the configuration key.
    """

    vocab_size: Width = 256
    """Tokens; has to be the tokenizer's number."""
    dim: Width = 256
    """Width: coordinates of each position's vector."""
    n_layers: Layers = 6
    """Layers of the n_future = 1 model. Under parameter matching, trunk and head layers together."""
    n_heads: Width = 4
    """Attention heads. Everywhere else "heads" means prediction heads."""
    n_kv_heads: Width | None = None
    """Key/value heads of grouped-query attention; by default as many as `n_heads`."""
    ffn_dim: Width | None = None
    """Hidden width of SwiGLU; by default 8/3 `dim`, rounded up to a multiple of 256, as in Llama."""
    rope_theta: Annotated[float, Range(least=1, most=1e18)] = 10_000.0
    """Base of the rotary embedding's wavelengths."""
    norm_eps: Annotated[float, Range(least=TINY, most=1)] = 1e-5
    """Added to the mean square in RMSNorm."""
    tie_embeddings: bool = False
    """One matrix for embedding and unembedding."""
    init_std: Annotated[float, Range(least=TINY, most=10)] = 0.02
    """Standard deviation of the initial weights."""
    attend_across_documents: bool = True
    """Whether a packed document sees the ones before it in its window. Targets never cross a border either way."""
    head_dim: Width | None = None
    """Coordinates of each attention head; by default `dim` / `n_heads`."""
    attention_bias: Literal["none", "qkv"] = "none"
    """Biases of the attention's projections: none, or of queries, keys and values (Qwen2)."""
    qk_norm: bool = False
    """RMSNorm over each attention head's query and key, before RoPE (Qwen3)."""
    rope_scaling: RopeScaling = RopeScaling()
    """Rotary positions of a model for longer texts."""

    def __post_init__(self) -> None:
        check_ranges("model.backbone", BackboneConfig, vars(self))
        if self.head_dim is None and self.dim % (2 * self.n_heads):
            raise InputError(
                f"model.backbone.dim is {self.dim}: it has to be a multiple of 2 * n_heads = {2 * self.n_heads}, "
                "since RoPE rotates pairs of coordinates of each attention head"
            )
        if self.head_size % 2:
            raise InputError(f"model.backbone.head_dim is {self.head_dim}: it has to be even, since RoPE rotates pairs")
        if self.rope_scaling.kind == "yarn" and self.rope_theta == 1:
            raise InputError("model.backbone.rope_theta is 1: with rope_scaling 'yarn' it has to be above 1")
        if self.n_heads % self.kv_heads:
            raise InputError(f"model.backbone.n_kv_heads is {self.kv_heads}: it has to divide n_heads = {self.n_heads}")

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> "BackboneConfig":
        """What `dataclasses.asdict` made, as it stands in checkpoints; fields of later versions have their defaults."""
        scaling = {"rope_scaling": RopeScaling(**described["rope_scaling"])} if "rope_scaling" in described else {}
        return cls(**{**described, **scaling})

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def head_size(self) -> int:
        """E, coordinates of an attention head."""
        return self.head_dim or self.dim // self.n_heads

    @property
    def q_dim(self) -> int:
        """Coordinates of all queries of a position."""
        return self.n_heads * self.head_size

    @property
    def kv_dim(self) -> int:
        """Coordinates of all keys of a position, and of all values."""
        return self.kv_heads * self.head_size

    @property
    def ffn(self) -> int:
        return self.ffn_dim or -(-8 * self.dim // (3 * 256)) * 256


HeadKind = Literal[
    "parallel", "linear", "causal", "anticausal", "sequential", "recurrent", "none", "order", "markov", "next_latent",
    "registers", "mixture", "future_summary", "fetch",
]  # fmt: skip
ONE_STREAM: tuple[HeadKind, ...] = ("none", "order", "registers", "future_summary")
"""Kinds without further heads: head 1's layers answer for all future tokens."""
HEAD_KINDS: tuple[HeadKind, ...] = get_args(HeadKind)
SIDE_BY_SIDE: tuple[HeadKind, ...] = ("parallel", "markov", "mixture")
"""Kinds whose every head is transformer layers on the trunk's output."""
INDEPENDENT: tuple[HeadKind, ...] = ("parallel", "linear")
"""Kinds whose heads read the trunk's output alone, and not each other."""
JOINED: tuple[HeadKind, ...] = ("sequential", "recurrent")
"""Kinds whose further heads are transformer layers on a state joined with a token's embedding."""
TEACHER_FORCED: tuple[HeadKind, ...] = (*JOINED, "next_latent", "fetch")
"""Kinds whose further heads read the true tokens between their position and their target."""


@dataclass(frozen=True)
class HeadsConfig:
    """The prediction heads: head i (1-based) predicts the token `offsets[i - 1]` after this one, by default the i-th.

    Raises:
        InputError: numbers that cannot be, or settings that do not go together; the message names the key.
    """

    n_future: Layers = 1
    """Number of predicted future tokens, which is the number of prediction heads."""
    kind: HeadKind | str = "parallel"
    """With z the trunk's output and H_i head i's transformer layers:

    - `parallel`: h_i = H_i(z) (paper, section 2);
    - `linear`: h_i = A_i z, one matrix a head (paper, appendix B);
    - `causal`: h_i = H_i(h_{i-1}), h_0 = z (appendix B);
    - `anticausal`: h_i = H_i(h_{i+1}), h_{n+1} = z: head 1 is the deepest (appendix B);
    - `sequential`: h_1 = H_1(z), h_i = H_i(M_i [norm(h_{i-1}); norm(embedding of the true token i - 1 ahead)])
      (DeepSeek-V3, arXiv 2412.19437, equations 21-23);
    - `recurrent`: `sequential` with one module for all i > 1 (FastMTP, arXiv 2509.18362);
    - `none`: h_1 = H_1(z), whose one distribution is scored against every future token (modded-nanogpt);
    - `order`: h_1 = H_1(z), and a second unembedding of it ranks the tokens by how soon they come, among the next
      `n_future` (token-order prediction, arXiv 2508.19228; W = n_future);
    - `future_summary`: h_1 = H_1(z), and a second unembedding of it says which tokens come among those from the second
      ahead to the `n_future`-th, in any order (FSP-BCE, arXiv 2510.14751; `mtp_lightning.objective.future_summary`);
    - `markov`: `parallel`, and for i > 1 the logits are W h_i + B A[x_{t+i-1}], of the true token before the target, in
      decoding of the draft there: a bigram of rank r (`markov_rank`) that mends the independence of the heads (as in
      DeepSeek's drafter DSpark, of which a summary alone was at hand; that head 1 goes without is our reading);
    - `next_latent`: h_1 = norm(H_1(z)), h_i = h_{i-1} + F([embedding of the true token i - 1 ahead; h_{i-1}]), F one
      small network for all i > 1, whose result the unembedding reads as it is: an estimate of head 1's state i - 1
      positions later (NextLat, arXiv 2511.05963, with `conf/loss/next_latent.yaml`);
    - `fetch`: h_1 = norm(H_1(z)), h_i = norm'(h_1 + A(s_1 .. s_i)), A one small attention for all i > 1, over slots of
      h_1 and the embedding of the token k - 1 ahead, k = 1 .. i (JTP, arXiv 2503.21801; `networks.fetch`);
    - `registers`: h_1 = H_1(z); in training a register goes after each token, through the same layers, and predicts the
      d-th token ahead, d drawn from 1 .. `n_future` for each window (MuToR, arXiv 2505.10518; `objective.registers`).
      A kind beside the others, and `n_future` its d_max as it is W of `order`, since one axis then compares them;
    - `mixture`: `parallel`, and the further tokens' joint distribution is a mixture of r components (`mixture_rank`),
      q(x_{t+1..t+n}) = sum_r w_r prod_i p_{i,r}(x_{t+i}), after MTPC's CP circuit (arXiv 2511.11346;
      `mtp_lightning.model.mtp.Mixture`);
    - `my_heads.Gated`: the import path of a kind of one's own (`mtp_lightning.model.own_kind`).
    """
    match: Literal["parameters", "none"] = "parameters"
    """`parameters`: every arm has the parameters of the n_future = 1 model, the trunk giving up layers and, for what
    is no whole layer, columns of its SwiGLUs (paper, section 3); `none`: the trunk stays as it is, the paper's
    "+ layers" arm (table S4)."""
    layers: Layers = 1
    """Transformer layers of each head."""
    offsets: Sequence[Annotated[int, Range(least=1, most=10_000)]] | None = None
    """How many tokens ahead each head looks, strictly increasing from 1; by default 1 .. n_future. With gaps it is
    leap multi-token prediction (L-MTP, arXiv 2505.17505: 1, 3, 5, 7)."""
    replicate_unembedding: bool = False
    """An unembedding matrix for each head instead of one for all (appendix B; the paper's byte models)."""
    norms: Literal["shared", "own"] = "shared"
    """`shared`: the final norm is that of all heads, and heads hand on the states before it; `own`: of `sequential` and
    `recurrent`, each module of a further head has a final norm of its own, and heads hand on the states after their
    final norms (DeepSeek-V3's release, and the MTP standard of Hugging Face)."""

    markov_rank: Width | None = None
    """Of `markov`: r, the columns of A and B, which have a row for each token; by default 64."""
    latent_width: Width | None = field(default=None, repr=False)
    """Of `next_latent`: the hidden width of its network; by default 2 `dim`, as in the authors' release, whose star
    graphs have `dim` and whose language models of 1B parameters 3.2 `dim` (its `proj_factor` 1, 0.5 and 1.6)."""
    mixture_rank: Annotated[int, Range(least=2, most=1024)] | None = field(default=None, repr=False)
    """Of `mixture`: r, the components, each a matrix of D x D for every head; by default 2."""

    def __post_init__(self) -> None:
        check_ranges("model.heads", HeadsConfig, vars(self))
        if self.kind not in HEAD_KINDS and not self.is_own:
            raise InputError(
                f"model.heads.kind is '{self.kind}': it has to be one of {', '.join(HEAD_KINDS)}, or the import path "
                f"of your own, as in my_heads.Gated{did_you_mean(self.kind, HEAD_KINDS)}"
            )
        if self.layers > 1 and self.kind in ("linear", "next_latent", "fetch", *ONE_STREAM):
            raise InputError(f"model.heads.layers is {self.layers}: heads of kind '{self.kind}' have no layers to set")
        if self.replicate_unembedding and self.kind in ONE_STREAM:
            raise InputError(
                f"model.heads.replicate_unembedding: kind '{self.kind}' has no further heads, and nothing to "
                "replicate the unembedding for"
            )
        if self.norms == "own" and self.kind not in JOINED:
            raise InputError(
                f"model.heads.norms is 'own', which goes with kind {' or '.join(JOINED)}, and kind is '{self.kind}'"
            )
        shares = {
            "markov": "the unembedding that their bigram is added to", "mixture": "one with all components",
            "next_latent": "the unembedding of the states that they foresee", "fetch": "the unembedding of their state",
        }  # fmt: skip
        if self.kind in shares and self.replicate_unembedding:
            raise InputError(
                f"model.heads.replicate_unembedding: heads of kind '{self.kind}' share {shares[self.kind]}"
            )
        for key, value, kind in (
            ("markov_rank", self.markov_rank, "markov"), ("mixture_rank", self.mixture_rank, "mixture"),
            ("latent_width", self.latent_width, "next_latent"),
        ):  # fmt: skip
            if value is not None and self.kind != kind:
                raise InputError(
                    f"model.heads.{key} is {value}, which goes with kind '{kind}', and kind is '{self.kind}'"
                )
        if self.offsets is not None:
            offsets = tuple(self.offsets)  # YAML and JSON give lists
            object.__setattr__(self, "offsets", offsets)
            self._check_offsets(offsets)

    def _check_offsets(self, offsets: tuple[int, ...]) -> None:
        if len(offsets) != self.n_future:
            raise InputError(
                f"model.heads.offsets has {len(offsets)} entries, and model.heads.n_future is {self.n_future}: "
                "there has to be one for each head"
            )
        if offsets[0] != 1 or any(a >= b for a, b in itertools.pairwise(offsets)):
            raise InputError(f"model.heads.offsets is {list(offsets)}: it has to begin with 1 and increase strictly")
        asks = {"order": "ranks", "future_summary": "sums up"}
        if self.kind in asks and offsets[-1] != self.n_future:
            raise InputError(
                f"model.heads.offsets is {list(offsets)}: kind '{self.kind}' {asks[self.kind]} all of the next "
                "n_future tokens; leave offsets out"
            )
        if self.kind == "registers" and offsets[-1] != self.n_future:
            raise InputError(
                f"model.heads.offsets is {list(offsets)}: registers look 1 .. n_future tokens ahead; leave offsets out"
            )
        before = "the token before their target"
        all_before = "the tokens before their target"
        reads = {"markov": before, "next_latent": before, "mixture": all_before, "fetch": all_before}
        if self.kind in reads and offsets[-1] != self.n_future:
            raise InputError(
                f"model.heads.offsets is {list(offsets)}: heads of kind '{self.kind}' read {reads[self.kind]}, which "
                "the heads before them predict; leave offsets out"
            )

    @property
    def is_own(self) -> bool:
        """Whether `kind` is the import path of a user's own."""
        return "." in self.kind

    @property
    def head_offsets(self) -> tuple[int, ...]:
        """Of each head, how many tokens ahead it predicts: `offsets`, or 1 .. n_future."""
        return tuple(self.offsets or range(1, self.n_future + 1))

    @property
    def bigram_rank(self) -> int:
        """Columns of the bigram that further heads have beside their hidden states; 0 without one."""
        return (self.markov_rank or 64) if self.kind == "markov" and self.n_future > 1 else 0

    def network_width(self, dim: int) -> int:
        """The hidden width of kind `next_latent`'s network, in a model of that width."""
        return self.latent_width or 2 * dim

    @property
    def components(self) -> int:
        """Components of the mixture that further heads predict by; 0 without one."""
        return (self.mixture_rank or 2) if self.kind == "mixture" and self.n_future > 1 else 0

    @property
    def horizon(self) -> int:
        """Tokens that a window has after its last input: L = T + horizon."""
        return self.head_offsets[-1]

    @property
    def second_loss(self) -> str | None:
        """Of kinds whose one hidden state goes through a second unembedding: the name of the loss there."""
        if self.kind == "future_summary":
            return "summary" if self.n_future > 1 else None  # nothing comes after the next token
        return "order" if self.kind == "order" else None

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the summed losses, in metrics: `head_1` .. `head_n`, or `head_1` and the second loss."""
        second = self.kind if self.kind == "registers" else self.second_loss
        if second:
            return ("head_1", second)
        return tuple(f"head_{i}" for i in range(1, self.n_future + 1))

    @property
    def max_heads_used(self) -> int:
        """How many heads can draft and verify text (`mtp_lightning.decoding`); 1 is plain decoding."""
        return 1 if self.kind in ONE_STREAM or self.is_own else self.n_future
