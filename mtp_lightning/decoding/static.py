"""Steps of constant shape that never wait for the host: what a CUDA graph can replay.

A small model's step is a few hundred kernels of a few microseconds each, and launching them one by one takes longer
than running them. Here lengths stay on the device, attention runs over all slots of the caches under a mask, and
every step verifies and drafts as many tokens as any other, so that one recording serves for all of a batch size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mtp_lightning.decoding.positions import Tree
from mtp_lightning.decoding.session import Advance, Session
from mtp_lightning.shapes import Int


class StaticSession(Session):
    """A greedy session whose steps are recorded and replayed on CUDA; elsewhere they run as they are.

    For chains of heads without gaps. Steps in which the number of drafting heads changes are those of
    `Session`.
    """

    keeps_all = True  # a recording holds on to its caches, and looks everywhere
    lengths_B: Tensor  # noqa: N815
    """`lengths`, on the device."""
    _recorded: "dict[tuple[int, int], Callable[[], _Outcome]]"

    @torch.inference_mode()
    def read_prompts(self, heads_used: int) -> list[int]:
        self._recorded = {}
        certain = super().read_prompts(heads_used)
        self.lengths_B = torch.tensor(self.lengths, device=self.engine.device)
        return certain

    @torch.inference_mode()
    def step(self, heads_used: int) -> list[Advance]:
        rows = slice(0, self.batch)
        depth = self.engine.heads.head_offsets[heads_used - 1]
        unread = max((max(self.unread[head]) for head in range(2, heads_used + 1)), default=0)
        if self.block.depth != depth or unread:
            advances = super().step(heads_used)
            self.lengths_B[rows] = torch.tensor(self.lengths, device=self.engine.device)
            return advances
        key = self.batch, heads_used
        if key not in self._recorded:
            self._recorded[key] = self._record(heads_used)
        blocks, accepted, certain = (tensor.tolist() for tensor in self._recorded[key]())
        for row, count in enumerate(accepted):
            self.lengths[row] += count
            for head, counts in self.unread.items():
                counts[row] = 0 if head <= heads_used else counts[row] + count
        taken = [tokens[:count] for tokens, count in zip(blocks, accepted)]
        return [Advance(*fields) for fields in zip(blocks, taken, certain)]

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        self.lengths_B[row] = self.lengths_B[self.batch - 1]
        super().remove(row)
        self._recorded.clear()  # the batch never grows again

    def _record(self, heads_used: int) -> "Callable[[], _Outcome]":
        """What makes a step: on CUDA the replay of a recording, after a run that allocates whatever is kept."""
        if self.engine.device.type != "cuda":
            return lambda: self._step(heads_used)
        with torch.cuda.device(self.engine.device):
            return self._capture(heads_used)

    def _capture(self, heads_used: int) -> "Callable[[], _Outcome]":
        state = [self.lengths_B, self.text_BS]
        before = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(heads_used)
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, old in zip(state, before):  # caches need nothing: the same slots are written again
            tensor.copy_(old)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a loader's thread may pin memory meanwhile
            outcome = self._step(heads_used)

        def replay() -> _Outcome:
            graph.replay()
            return outcome

        return replay

    def _step(self, heads_used: int) -> "_Outcome":
        rows, lengths_B = slice(0, self.batch), self.lengths_B[: self.batch]
        depth = self.engine.heads.head_offsets[heads_used - 1]
        chain = Tree.chain(depth)
        tokens_BM = self._text(rows, lengths_B, depth)
        new = self.tables.block(lengths_B, chain)
        h_BMD, x_BMX = self._run(tokens_BM, new, rows)
        verdict = self._verify(tokens_BM, h_BMD, chain, rows, lengths_B + 1)
        self._keep(x_BMX, new.slots, rows)
        lengths_B += verdict.accepted_B
        self._write(rows, lengths_B, verdict.certain_B[:, None])
        if heads_used > 1:
            assert self.engine.drafter is not None
            self._propose(rows, lengths_B, depth + self.engine.drafter.lookback, heads_used)
        return tokens_BM, verdict.accepted_B, verdict.certain_B


_Outcome = tuple[Int[Tensor, "B M"], Int[Tensor, "B"], Int[Tensor, "B"]]
"""Blocks, how many of their tokens are accepted, and the tokens after those."""
