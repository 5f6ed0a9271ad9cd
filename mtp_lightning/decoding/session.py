"""The state of a batch of texts while it is decoded, and one step of all: verify, accept, draft.

Between steps, for every row: `length` accepted tokens whose keys and values are in the caches; after them, in `text`,
the next token, which is certain, and drafts. A step runs one forward over certain token and drafts, keeps what head 1
agrees with, and drafts anew. Rows advance by different amounts; a finished row's place is taken by the last.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtp_lightning.decoding.choosing import Chooser, Verdict
from mtp_lightning.decoding.drafts import DraftedText
from mtp_lightning.decoding.engine import Engine, MixtureMaps
from mtp_lightning.decoding.positions import KeyValues, NewPositions, PerRow, PositionTables, Tree
from mtp_lightning.model.mtp import mixed
from mtp_lightning.shapes import Float, Int


class Advance(NamedTuple):
    """What a step did to one row."""

    block: list[int]
    """The nodes that were verified."""
    accepted: list[int]
    """Tokens that are certain now, of the block's."""
    certain: int
    """The token after them."""


class Session:
    """
    Args:
        prompts: non-empty texts, of any lengths.
        room: most tokens to come after any prompt.
        tree: shape of the drafts; a chain of what the heads in use give, by default.
    """

    keeps_all = False
    """Whether there are keys and values of all heads and all positions, also of those that do not draft yet and those
    that no head will look back to."""

    def __init__(
        self, engine: Engine, prompts: Sequence[Tensor], room: int, chooser: Chooser, tree: Tree | None = None
    ) -> None:
        self.engine, self.chooser, self.tree = engine, chooser, tree
        config, device = engine.config, engine.device
        B = len(prompts)
        most = max(engine.most_tokens, 0 if tree is None else tree.size)
        size = max(prompt.numel() for prompt in prompts) + room + most
        self.path_cache = engine.key_values(B, size)
        self.tables = PositionTables(size, config, engine.dtype, device)
        self.text_BS = torch.zeros(B, size + most, dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            self.text_BS[row, : prompt.numel()] = prompt
        self.prompt_lengths = [prompt.numel() for prompt in prompts]
        self.lengths = [0] * B
        self.draft_cache: KeyValues | None = None
        self.heads_kept = 1
        self.inputs_BSX: Tensor | None = None
        """What the drafter read, or will, at every accepted position."""
        self.unread = {head: [0] * B for head in range(2, engine.heads_used + 1)}
        """Head -> of each row, how many of its last accepted positions the head has not read."""
        self.block = Tree.chain(1)
        self.branches_BJW: Tensor | None = None
        chooser.start(B, config.vocab_size, most, device)

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @torch.inference_mode()
    def read_prompts(self, heads_used: int) -> list[int]:
        """Take the prompts, one after the other (nothing is padded); returns each row's next, certain token."""
        certain = []
        for row, length in enumerate(self.prompt_lengths):
            rows = slice(row, row + 1)
            new = self.tables.block([0], Tree.chain(length))
            h, x = self._run(self.text_BS[rows, :length], new, rows)
            self._keep(x, new.slots, rows)
            last = self.text_BS[rows, length - 1 : length]
            verdict = self._verify(last, h[:, -1:], Tree.chain(1), rows, [length])
            self._advance(rows, [length], verdict.certain_B)
            certain += verdict.certain_B.tolist()
        for row in range(self.batch):
            self._draft(slice(row, row + 1), heads_used)
        return certain

    @torch.inference_mode()
    def step(self, heads_used: int) -> list[Advance]:
        """One forward of every row, and drafts by heads 2 .. `heads_used` for the next."""
        rows, block = slice(0, self.batch), self.block
        new = self.tables.block(self.lengths, block)
        tokens_BM = self._block(rows)
        h_BMD, x_BMX = self._run(tokens_BM, new, rows)
        verdict = self._verify(tokens_BM, h_BMD, block, rows, [length + 1 for length in self.lengths])
        accepted, certain = verdict.accepted_B.tolist(), verdict.certain_B.tolist()
        if verdict.path_BA is not None:
            x_BMX = self._straighten(tokens_BM, x_BMX, verdict.path_BA, accepted)
            new = self.tables.block(self.lengths, Tree.chain(block.depth))
        self._keep(x_BMX, new.slots, rows)
        blocks = tokens_BM.tolist()
        if verdict.path_BA is None:
            taken = [tokens[:count] for tokens, count in zip(blocks, accepted)]
        else:
            paths = verdict.path_BA.tolist()
            taken = [[tokens[i] for i in path[:count]] for tokens, path, count in zip(blocks, paths, accepted)]
        self._advance(rows, accepted, verdict.certain_B)
        self._draft(rows, heads_used)
        return [Advance(*fields) for fields in zip(blocks, taken, certain)]

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """A finished row leaves; the last takes its place."""
        last = self.batch - 1
        if row != last:
            self.text_BS[row] = self.text_BS[last]
            for cache in (self.path_cache, self.draft_cache):
                if cache is not None:
                    cache.move_row(last, row)
            for tensor in (self.inputs_BSX, self.branches_BJW):
                if tensor is not None:
                    tensor[row] = tensor[last]
            self.chooser.move_row(last, row)
        for values in (self.lengths, *self.unread.values()):
            values[row] = values[last]
            values.pop()

    def _block(self, rows: slice) -> Int[Tensor, "B M"]:
        """Tokens of the nodes to verify."""
        chain_BA = self._text(rows, self.lengths[rows], self.block.depth)
        if self.block.is_chain:
            return chain_BA
        assert self.branches_BJW is not None
        nodes = [chain_BA[:, :1]]
        for depth, (level, branch) in enumerate(zip(self.block.levels[1:], self.block.branches)):
            nodes.append(self.branches_BJW[rows, depth, :branch].repeat(1, len(level) // branch))
        return torch.cat(nodes, dim=1)

    def _text(self, rows: slice, starts: PerRow, count: int, ahead: int = 0) -> Int[Tensor, "B C"]:
        """The tokens `ahead` of `count` positions from each row's start on; before the first there is the first."""
        if not isinstance(starts, Tensor) and min(starts) == max(starts) >= 0:
            return self.text_BS[rows, starts[0] + ahead : starts[0] + ahead + count]
        index_BC = self._column(starts) + self.tables.slots[:count]
        return self.text_BS[rows].gather(1, index_BC.clamp_(min=0) + ahead)

    def _write(self, rows: slice, starts: PerRow, tokens_BC: Int[Tensor, "B C"]) -> None:
        if not isinstance(starts, Tensor) and min(starts) == max(starts):
            self.text_BS[rows, starts[0] : starts[0] + tokens_BC.shape[1]] = tokens_BC
            return
        index_BC = self._column(starts) + self.tables.slots[: tokens_BC.shape[1]]
        self.text_BS[rows].scatter_(1, index_BC, tokens_BC)

    def _column(self, positions: PerRow) -> Int[Tensor, "B 1"]:
        known = positions if isinstance(positions, Tensor) else torch.tensor(positions, device=self.engine.device)
        return known[:, None]

    def _run(self, tokens_BM: Tensor, new: NewPositions, rows: slice) -> tuple[Tensor, Tensor | None]:
        return self.engine.run(tokens_BM, new, self.path_cache.layers(rows))

    def _verify(self, block_BM: Tensor, h_BMD: Tensor, tree: Tree, rows: slice, targets: PerRow) -> Verdict:
        return self.chooser.verify(block_BM, self.engine.logits(h_BMD), tree, rows, targets)

    def _keep(self, x_BMX: Float[Tensor, "B M X"] | None, slots: slice | tuple[Tensor, Tensor], rows: slice) -> None:
        """Remember the drafter's inputs."""
        if x_BMX is None:
            return
        if self.inputs_BSX is None:
            self.inputs_BSX = x_BMX.new_empty(len(self.text_BS), self.tables.size, x_BMX.shape[-1])
        if isinstance(slots, slice):
            self.inputs_BSX[rows, slots] = x_BMX
        else:
            self.inputs_BSX[rows][slots] = x_BMX

    def _advance(self, rows: slice, accepted: Sequence[int], certain_B: Tensor) -> None:
        for row, count in zip(range(rows.start, rows.stop), accepted):
            self.lengths[row] += count
            for unread in self.unread.values():
                unread[row] += count
        self._write(rows, self.lengths[rows], certain_B[:, None])

    def _straighten(
        self, tokens_BM: Tensor, x_BMX: Tensor | None, path_BA: Tensor, accepted: Sequence[int]
    ) -> Tensor | None:
        """Move what belongs to the accepted nodes to where a chain would have it: text, caches, drafter's inputs."""
        straight_A = self.tables.slots[: path_BA.shape[1]]
        for row, count in enumerate(accepted):
            path = path_BA[row, :count]
            if count > 1 and not torch.equal(path, straight_A[:count]):
                self.path_cache.gather(row, self.lengths[row], self.lengths[row] + path)
        self._write(slice(0, self.batch), self.lengths, tokens_BM.gather(1, path_BA))
        return None if x_BMX is None else x_BMX.take_along_dim(path_BA[..., None], dim=1)

    def _draft(self, rows: slice, heads_used: int) -> None:
        """Propose what follows the certain tokens, with heads 2 .. `heads_used`."""
        self.chooser.begin_draft(rows)
        self.block = Tree.chain(1)
        drafter = self.engine.drafter
        if drafter is None or heads_used == 1:
            return
        if heads_used > self.heads_kept:
            self._keep_heads(self.engine.heads_used if self.keeps_all else heads_used)
        ends = self.lengths[rows]
        unread = max(max(self.unread[head][rows]) for head in range(2, heads_used + 1))
        seen = max(ends)  # from the first position that a row's heads will ever look at; the shortest row only grows
        if not self.keeps_all:
            seen -= max(min(self.lengths) - drafter.reach, 0)
        self._propose(rows, ends, min(unread + drafter.lookback, seen), heads_used)
        for head in range(2, heads_used + 1):
            self.unread[head][rows] = [0] * len(ends)
        self.block = self.tree or Tree.chain(drafter.offsets[heads_used - 1])

    def _keep_heads(self, heads_used: int) -> None:
        """Make caches for heads 2 .. `heads_used`, which have not read the text yet. They are not made sooner: zeroing
        memory for heads that never draft would take as long as some steps."""
        drafter, size = self.engine.drafter, self.tables.size
        assert drafter is not None
        self.draft_cache = drafter.key_values(self.batch, size, self.engine.embedding, heads_used)
        self.heads_kept = heads_used
        for head in range(2, heads_used + 1):
            self.unread[head] = list(self.lengths)

    def _propose(self, rows: slice, ends: PerRow, length: int, heads_used: int) -> None:
        """Drafts by heads 2 .. `heads_used`, which read the last `length` positions."""
        drafter = self.engine.drafter
        assert drafter is not None
        assert self.inputs_BSX is not None
        if not isinstance(ends, Tensor) and min(ends) == max(ends):
            x_BLX = self.inputs_BSX[rows, ends[0] - length : ends[0]]
        else:
            index_BL = (self._column(ends) - length + self.tables.slots[:length]).clamp_(min=0)
            x_BLX = self.inputs_BSX[rows].take_along_dim(index_BL[..., None], dim=1)
        cache = self.draft_cache.layers(rows) if self.draft_cache else []
        drafter.draft(x_BLX, self.tables, ends, cache, heads_used, _DraftedRows(self, rows, ends))


class _DraftedRows(DraftedText):
    """A drafter's view of the rows that it drafts for; what it proposes goes into the text after the certain token."""

    def __init__(self, session: Session, rows: slice, ends: PerRow) -> None:
        self.session, self.rows, self.ends = session, rows, ends
        self.proposed = 0
        self.weights_BR: Tensor | None = None
        """Of kind `mixture`: logits of the components' weights given the tokens before the last proposed one."""
        self.last_BRV: Tensor | None = None
        """What the components say of that one."""

    def embedded(self, length: int, offset: int) -> Float[Tensor, "B L D"]:
        tokens_BL = self.session._text(self.rows, self._from_ends(-length), length, ahead=offset)
        return F.embedding(tokens_BL, self.session.engine.embedding)

    def propose(self, states_BJD: Float[Tensor, "B J D"], heads: Sequence[int]) -> None:
        engine = self.session.engine
        if engine.mixture is not None:
            for j, head in enumerate(heads):
                self._choose(self._mixed(engine.mixture, states_BJD[:, j], head)[:, None])
            return
        logits_BJV = engine.logits(states_BJD, heads)
        if engine.before is None:
            self._choose(logits_BJV)
            return
        for j in range(len(heads)):
            self._choose(logits_BJV[:, j : j + 1] + engine.bigram_logits(self._before()))

    def _before(self) -> Int[Tensor, "B 1"]:
        """The token before the next to be proposed; of a tree's level the first."""
        return self.session._text(self.rows, self._from_ends(self.proposed), 1)

    def _mixed(self, maps: MixtureMaps, h_BD: Float[Tensor, "B D"], head: int) -> Float[Tensor, "B V"]:
        """log q of the next token given those before it: the components, weighted by what they say of these."""
        if self.weights_BR is None or self.last_BRV is None:
            self.weights_BR, self.last_BRV = maps.weights(h_BD), maps.logits(h_BD, 1)
        index_BR1 = self._before()[:, :, None].expand(*self.weights_BR.shape, 1)
        self.weights_BR = self.weights_BR + self.last_BRV.log_softmax(-1).gather(-1, index_BR1)[..., 0]
        self.last_BRV = maps.logits(h_BD, head)
        return mixed(self.weights_BR, self.last_BRV)

    def _choose(self, logits_BJV: Float[Tensor, "B J V"]) -> None:
        session, targets = self.session, self._from_ends(1 + self.proposed)
        if session.tree is None:
            tokens_BJ = session.chooser.draft(logits_BJV, self.rows, targets)
        else:
            most = max(session.tree.branches)
            branches_BJW = session.chooser.candidates(logits_BJV, self.rows, targets, most)
            if session.branches_BJW is None:
                depth = session.engine.most_tokens - 1
                session.branches_BJW = branches_BJW.new_zeros(len(session.text_BS), depth, most)
            session.branches_BJW[self.rows, self.proposed : self.proposed + branches_BJW.shape[1]] = branches_BJW
            tokens_BJ = branches_BJW[:, :, 0]
        session._write(self.rows, targets, tokens_BJ)
        self.proposed += tokens_BJ.shape[1]

    def _from_ends(self, by: int) -> PerRow:
        return self.ends + by if isinstance(self.ends, Tensor) else [end + by for end in self.ends]
