"""The model: trunk -> n prediction heads -> shared norm -> unembedding (paper, section 2).

    tokens (B, T) -> embedding -> trunk z (B, T, D) -> heads -> norm -> h (S, B, T, D) -> unembedding

S, the number of hidden states, is N, or 1 for the kinds without further heads (2 with registers). With n_future = 1 it
is exactly Llama, whatever the kind (but `linear`): the trunk's layers and the one head's are its L layers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtp_lightning.model.attention import Projection, draw
from mtp_lightning.model.block import Block, FinalNorm
from mtp_lightning.model.config import BackboneConfig, HeadsConfig
from mtp_lightning.model.counts import count_heads, trunk_widths
from mtp_lightning.model.documents import Documents, Mask, WithRegisters
from mtp_lightning.model.heads import ParallelHeads, Score, Scored, make_heads
from mtp_lightning.model.rope import Rotary
from mtp_lightning.shapes import Float, Int


class Unembedding(nn.Module):
    """The one owner of the V x D matrix; everything that needs the matrix runs inside this module's forward.

    That is what makes a fused loss correct under FSDP and ZeRO-3, whose hooks gather a weight only while its
    module runs. With `score` left out the result is logits; a loss passes itself as `score`.

    With a bigram (kind `markov`) it owns B (V x R) too: hidden states that have R columns more, a, are scored by [W B],
    so that their logits are W h + B a, and all that is made of rows and one matrix serves them as it is.
    """

    def __init__(self, vocab_size: int, dim: int, std: float, rank: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(torch.empty(vocab_size, dim), std))
        self.bigram = nn.Parameter(draw(torch.empty(vocab_size, rank), std)) if rank else None

    def forward(self, h: Float[Tensor, "*rows D"], score: Callable[[Tensor, Tensor], Any] = F.linear) -> Any:
        """`score(h, weight)`: logits (..., V) by default."""
        if self.bigram is None or h.shape[-1] == self.weight.shape[1]:
            return score(h, self.weight)
        return score(h, torch.cat((self.weight, self.bigram), dim=1))


class Register(nn.Module):
    """The one learned embedding of all registers, a vector (D)."""

    def __init__(self, dim: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(torch.empty(dim), std))

    def forward(self, *shape: int) -> Float[Tensor, "*shape D"]:
        """A copy for each place: sharding frees what it gathered of a weight, and views of it, when this returns."""
        return self.weight.repeat(*shape, 1)


class Mixture(nn.Module):
    """What kind `mixture` has beside parallel heads: of each, r components, and the weights of the components.

    After the CP circuit of MTPC (arXiv 2511.11346, and its code, april-tools/mtpc: `mtp_head.py`, `circuits.py`):

        q(x_{t+1} .. x_{t+n}) = sum_r w_r prod_i p_{i,r}(x_{t+i}), p_{i,r} = softmax(W C_{i,r} h_i), w = softmax(G h_2)

    with a matrix C_{i,r} for each head and component, the identity at first, one unembedding W for all, and weights by
    a linear map of the state, as there. There heads have one state, of a model that verifies and may be frozen; all n
    tokens are drafted, and the loss is -log q. What is ours: head 1 is no part of the mixture, so that it stays the
    exact next-token model, with its own cross-entropy, and its token is certain where drafts are made. So of q the
    tokens after the first are asked for, given it, which leaves -log q(x_{t+2} .. x_{t+n} | x_{t+1}), or head by head

        -log q(x_{t+i} | x_{t+1} .. x_{t+i-1}),  q( . | ..) = sum_r v_r p_{i,r},  v_r ~ w_r prod_{j<i} p_{j,r}(x_{t+j})

    the components of x_{t+1} are of head 2's state too (h_1 above stands for h_2), and a little noise on the identities
    tells components apart from the first step on.
    """

    def __init__(self, dim: int, n_future: int, rank: int, std: float) -> None:
        super().__init__()
        self.components = nn.ModuleList(_Components(dim, rank, std) for _ in range(n_future))
        self.gate = Projection(dim, rank, std)

    def forward(self, h_NBTD: Float[Tensor, "N B T D"]) -> Float[Tensor, "S B T D"]:
        """S = 2 + N R: head 1's state; the logits of the weights, and zeros to the width; the components' states, those
        of one head together."""
        gate_BTR = self.gate(h_NBTD[1])
        states = [
            component(h_NBTD[max(i, 1)]).unflatten(-1, (-1, h_NBTD.shape[-1])).permute(2, 0, 1, 3)
            for i, component in enumerate(self.components)
        ]
        gate_1BTD = F.pad(gate_BTR, (0, h_NBTD.shape[-1] - gate_BTR.shape[-1]))[None]
        return torch.cat((h_NBTD[:1], *(part.to(h_NBTD.dtype) for part in (gate_1BTD, *states))))


class _Components(Projection):
    """C_i, of R D x D: at first R identities, and noise that moves states by `std` of their length."""

    def __init__(self, dim: int, rank: int, std: float) -> None:
        super().__init__(dim, rank * dim, std / dim**0.5)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.weight += torch.eye(self.in_features, device=self.weight.device).repeat(
                self.out_features // self.in_features, 1
            )


def mixed(weights_R: Float[Tensor, "*rows R"], logits_RV: Float[Tensor, "*rows R V"]) -> Float[Tensor, "*rows V"]:
    """log sum_r w_r p_r, of the logits of both."""
    return (weights_R.log_softmax(-1)[..., None] + logits_RV.log_softmax(-1)).logsumexp(-2)


class MTPModel(nn.Module):
    """Shared trunk, n prediction heads, one norm and one unembedding for all, unless heads have their own.

    `further_unembeddings` holds what some kinds have beside the shared one: a matrix for each head from the second on
    (`replicate_unembedding`; with tied embeddings only head 1's is tied), or the one that ranks (`order`).

    Raises:
        InputError: the heads would take all layers of the trunk.
    """

    def __init__(self, backbone: BackboneConfig, heads: HeadsConfig) -> None:
        super().__init__()
        self.config = backbone
        self.heads_config = heads
        self.trunk_is_frozen = False
        """Whether the trunk keeps nothing for a backward pass (`mtp_lightning.model.training.freezing`)."""
        self.embedding = nn.Embedding(
            backbone.vocab_size,
            backbone.dim,
            _weight=draw(torch.empty(backbone.vocab_size, backbone.dim), backbone.init_std),
        )
        self.rotary = Rotary(backbone)
        self.trunk = nn.ModuleList(Block(backbone, ffn) for ffn in trunk_widths(backbone, heads))
        self.heads = make_heads(backbone, heads)
        self.norm = FinalNorm(backbone.dim, eps=backbone.norm_eps)
        self.unembedding, *further = (
            Unembedding(backbone.vocab_size, backbone.dim, backbone.init_std, heads.bigram_rank)
            for _ in range(1 + count_heads(heads).further_unembeddings)
        )
        self.further_unembeddings = nn.ModuleList(further)
        self.before: nn.Embedding | None = None
        """A, which says what the token before a target is, of kind `markov`."""
        if rank := heads.bigram_rank:
            rows = draw(torch.empty(backbone.vocab_size, rank), backbone.init_std)
            self.before = nn.Embedding(backbone.vocab_size, rank, _weight=rows)
        self.register: Register | None = None
        """What training adds after each token, of kind `registers`; using the model knows nothing of it."""
        if heads.kind == "registers":
            self.register = Register(backbone.dim, backbone.init_std)
        self.mixture: Mixture | None = None
        """Of kind `mixture`."""
        if rank := heads.components:
            self.mixture = Mixture(backbone.dim, heads.n_future, rank, backbone.init_std)
        if backbone.tie_embeddings:
            self.unembedding.weight = self.embedding.weight  # type: ignore[assignment]

    @property
    def n_future(self) -> int:
        return self.heads_config.n_future

    def forward(
        self,
        tokens_BT: Int[Tensor, "B T"],
        documents_BT: Int[Tensor, "B T"] | None = None,
        ahead_NBT: Int[Tensor, "N B T"] | None = None,
        detach_further: bool = False,
        score: Score[Scored] | None = None,
        offsets_B: Int[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "S B T D"] | list[Scored]:
        """Normed hidden states of every head (S, B, T, D); head i's (index i - 1) predict the i-th token ahead.

        Of kind `markov` D is the width and R columns more, A[x] of the token before the target, head 1's all 0. Of kind
        `mixture` they are those of `Mixture`.

        Args:
            documents_BT: document ids. Used only with `attend_across_documents` off: then a position sees its own
                document alone.
            ahead_NBT: the true token of every target; heads of kind `sequential`, `recurrent`, `next_latent`, `fetch`
                and `markov` read all but the last.
            detach_further: keep the gradient of heads 2 .. N out of the trunk.
            score: return what it makes of each head's states in place of these (`ParallelHeads.scored`).
            offsets_B: of kind `registers`, how far each row's registers look: S is then 2, head 1's states and those of
                the registers. Left out, there are no registers, and S is 1.

        Raises:
            ValueError: a kind that reads true tokens did not get them.
        """
        mask = None
        if documents_BT is not None and not self.config.attend_across_documents:
            mask = Documents(documents_BT)
        positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        if offsets_B is not None:
            return self._with_registers(tokens_BT, offsets_B, positions, mask)
        rotary = self.rotary(positions)
        z_BTD = self.run_trunk(tokens_BT, rotary, mask)
        e_MBTD = None
        reads_ahead = self.n_future > 1 and (self.heads.teacher_forced or self.before is not None)
        if reads_ahead and ahead_NBT is None:
            raise ValueError(f"heads of kind '{self.heads_config.kind}' read the true tokens ahead: give ahead_NBT")
        if reads_ahead and self.before is None:
            read_MBT: Tensor = ahead_NBT[:-1]  # type: ignore[index]
            if self.heads.reads_current:
                read_MBT = torch.cat((tokens_BT[None], read_MBT))
            e_MBTD = self.embedding(read_MBT)
        if score is not None:
            assert isinstance(self.heads, ParallelHeads)
            assert self.before is None
            return self.heads.scored(z_BTD, (rotary, mask), detach_further, self.norm, score)
        h_SBTD = self.heads(z_BTD, rotary, mask, e_MBTD, detach_further, norm=self.norm)
        if self.mixture is not None:
            return self.mixture(h_SBTD)  # type: ignore[no-any-return]
        if self.before is None:
            return h_SBTD  # type: ignore[no-any-return]
        a_MBTR = self.before(ahead_NBT[:-1])  # type: ignore[index]
        return torch.cat((h_SBTD, torch.cat((torch.zeros_like(a_MBTR[:1]), a_MBTR))), dim=-1)

    def _with_registers(
        self, tokens_BT: Tensor, offsets_B: Tensor, positions_T: Tensor, text: Documents | None
    ) -> Float[Tensor, "2 B T D"]:
        """The rows of a layer are the text's T positions and then its T registers' (S = 2 T), that of token t at the
        position t + offset - 1, where head 1 would predict its target (`objective.registers`)."""
        assert self.register is not None
        B, T = tokens_BT.shape
        positions_BS = torch.cat((positions_T.expand(B, T), positions_T + offsets_B[:, None] - 1), dim=1)
        cos_BSF, sin_BSF = self.rotary(positions_BS)
        rotary = cos_BSF[:, None], sin_BSF[:, None]  # for every attention head
        mask = WithRegisters(text, T, tokens_BT.device)
        e_BTD = self.embedding(tokens_BT)
        z_BSD = self._run_layers(torch.cat((e_BTD, self.register(B, T).to(e_BTD.dtype)), dim=1), rotary, mask)
        h_1BSD = self.heads(z_BSD, rotary, mask, norm=self.norm)
        return h_1BSD[0].unflatten(1, (2, T)).movedim(1, 0)  # type: ignore[no-any-return]

    def next_token_states(self, tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Normed hidden states of head 1 alone, which predict the next token: for using the model, not for training.

        Further heads are run only where head 1 reads them.
        """
        rotary = self.rotary(torch.arange(tokens_BT.shape[1], device=tokens_BT.device))
        return self.norm(self.heads.first(self.run_trunk(tokens_BT, rotary), (rotary, None)))  # type: ignore[no-any-return]

    def run_trunk(
        self,
        tokens_BT: Int[Tensor, "B T"],
        rotary: tuple[Tensor, Tensor],
        mask: Mask = None,
    ) -> Float[Tensor, "B T D"]:
        """The trunk's output z: what every head reads."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.trunk_is_frozen):
            return self._run_layers(self.embedding(tokens_BT), rotary, mask)

    def _run_layers(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask: Mask) -> Float[Tensor, "B T D"]:
        for block in self.trunk:
            x_BTD = block(x_BTD, rotary, mask)
        return x_BTD

    def logits(
        self,
        tokens_BT: Int[Tensor, "B T"],
        documents_BT: Int[Tensor, "B T"] | None = None,
        ahead_NBT: Int[Tensor, "N B T"] | None = None,
    ) -> Float[Tensor, "S B T V"]:
        """Logits of every head at every position: for small models and tests; training never makes this tensor.

        Of kind `mixture` those of head i > 1 are log q given the true tokens before the target.

        Raises:
            ValueError: a kind that reads true tokens did not get them.
        """
        h_SBTD = self(tokens_BT, documents_BT, ahead_NBT)
        if self.mixture is not None:
            if ahead_NBT is None:
                raise ValueError("heads of kind 'mixture' read the true tokens ahead: give ahead_NBT")
            return self._mixed_logits(self.unembedding(h_SBTD[[0, *range(2, len(h_SBTD))]]), h_SBTD[1], ahead_NBT)
        if not self.heads_config.replicate_unembedding:
            return self.unembedding(h_SBTD)  # type: ignore[no-any-return]
        unembeddings = [self.unembedding, *self.further_unembeddings]
        return torch.stack([unembed(h) for unembed, h in zip(unembeddings, h_SBTD)])

    def _mixed_logits(
        self, logits_KBTV: Float[Tensor, "K B T V"], gate_BTD: Float[Tensor, "B T D"], ahead_NBT: Int[Tensor, "N B T"]
    ) -> Float[Tensor, "N B T V"]:
        """
        Args:
            logits_KBTV: head 1's and the components'.
        """
        parts_NBTRV = logits_KBTV[1:].view(self.n_future, -1, *logits_KBTV.shape[1:]).movedim(1, -2)
        weights_BTR, heads = gate_BTD[..., : parts_NBTRV.shape[-2]], [logits_KBTV[0]]
        for before_BTRV, part_BTRV, token_BT in zip(parts_NBTRV, parts_NBTRV[1:], ahead_NBT):
            index_BTR1 = token_BT[..., None, None].expand(*weights_BTR.shape, 1)
            weights_BTR = weights_BTR + before_BTRV.log_softmax(-1).gather(-1, index_BTR1)[..., 0]
            heads.append(mixed(weights_BTR, part_BTRV))
        return torch.stack(heads)

    def final_norms(self) -> list[FinalNorm | None]:
        """Of every head, the norm before its unembedding; None where that reads the head's state as it is."""
        if self.heads_config.kind == "next_latent":
            return [self.norm, *[None] * (self.n_future - 1)]
        if self.heads_config.norms == "shared" and self.heads_config.kind != "fetch":
            return [self.norm] * self.n_future
        return [self.norm, *(self.heads[min(i, len(self.heads) - 1)].norm for i in range(1, self.n_future))]

    def blocks(self) -> list[Block]:
        """Every transformer layer, the trunk's first."""
        return [part for part in self.modules() if isinstance(part, Block)]

    def compile_layers(self) -> None:
        """With torch.compile, every layer for itself, which share their code, and the norms before unembeddings."""
        for part in self.modules():
            if isinstance(part, (Block, FinalNorm)):
                part.compile()
