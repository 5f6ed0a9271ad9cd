"""The scores of a corpus, document by document: made once, in files that outlive a kill."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from mtp_lightning.data.corpora.documents import Document
from mtp_lightning.data.preparing.folders import progress, work_folder, writing_to
from mtp_lightning.data.preparing.pieces import Arrays, Work, read_arrays, to_files
from mtp_lightning.data.pruning.measuring import Provider, load_provider
from mtp_lightning.data.pruning.survey import Survey
from mtp_lightning.errors import InputError
from mtp_lightning.own_code import import_own
from mtp_lightning.shapes import Float

What = Literal["losses", "embed"]
CHARACTERS = 1 << 18
"""Of a piece: some ten seconds' work of a small model."""
_WRITES = "out: cannot write"


@dataclass(frozen=True)
class Measuring:
    """The job that measures documents by a checkpoint, or an encoder."""

    ckpt: str | None
    first_tokens: int | None
    what: What
    fingerprint: str
    embedder: str | None = None
    imports: tuple[str, ...] = ()
    """Modules of the user's own that the checkpoint may ask for: another process has not imported them."""

    @property
    def made_by(self) -> str:
        return f"{self.what} {self.fingerprint}"

    def begin(self) -> Work:
        """
        Raises:
            InputError: the checkpoint is another one by now.
        """
        for module in self.imports:
            import_own(module)
        provider = load_provider(self.ckpt, self.first_tokens, self.embedder)
        if provider.fingerprint != self.fingerprint:
            what = f"embedder: '{self.embedder}'" if self.ckpt is None else f"ckpt: '{self.ckpt}'"
            raise InputError(f"{what} has changed since the command began")
        return partial(_measured, provider, self.what)


def _measured(provider: Provider, what: What, documents: list[Document]) -> Arrays:
    return {what: provider.losses(documents) if what == "losses" else provider.embed(documents)}


Measure = Callable[[Measuring, int], "Float[np.ndarray, 'n k']"]


@contextmanager
def measuring(out: Path, corpus: Survey) -> Iterator[Measure]:
    """What measures the training documents of a corpus, by so many processes; what it made is kept beside `out` until
    the end, so that a command that was killed goes on.

    Raises:
        InputError: nothing can be written there.
    """
    writing = partial(writing_to, out, _WRITES)
    with work_folder(out, _WRITES) as folder:

        def measure(job: Measuring, workers: int) -> Float[np.ndarray, "n k"]:
            with progress("measuring", "measured") as report:
                files = to_files(folder, corpus.training(), job, workers, report, writing, CHARACTERS)
            return np.concatenate([read_arrays(path)[job.what] for path in files])

        yield measure
