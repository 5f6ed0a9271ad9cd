"""`mtp evaluate humaneval | mbpp | ...`: benchmarks on any checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json

if TYPE_CHECKING:
    from mtp_lightning.checkpoints.files import LoadedModel
    from mtp_lightning.evaluation.benchmark import Benchmark


class Evaluate:
    def __init__(
        self,
        ckpt: str,
        *,
        data: str | None = None,
        samples: int = 20,
        temperatures: list[float] | None = None,
        k: list[int] | None = None,
        select: Literal["oracle", "fixed"] = "oracle",
        top_p: float | None = 0.95,
        seed: int = 0,
        limit: int | None = None,
        max_new_tokens: int | None = None,
        heads_used: int | Literal["auto"] = "auto",
        batch_size: int = 16,
        dtype: Literal["fp32", "bf16"] = "fp32",
        device: Literal["cpu", "cuda"] = "cpu",
        out: str | None = None,
        json: str | None = None,
    ) -> None:
        """The arguments that benchmarks share.

        Args:
            ckpt: Checkpoint, or a file of `mtp export`, or the folder of a run, whose newest checkpoint is taken.
            data: File of the benchmark, in its published format (needed).
            samples: Of every problem, at every temperature; one at temperature 0.
            temperatures: Of sampling; [0.2, 0.8] without it.
            k: For pass@k; [1, 10] without it.
            select: oracle: each k at the temperature that does best, as the paper's tables; fixed: temperatures belong
                to the k's in order, or one to all.
            top_p: Sample among the fewest most probable tokens of this probability together (nucleus).
            seed: Of the samples; sample s of a problem depends on nothing else.
            limit: Ask the first problems only.
            max_new_tokens: Most tokens of an answer; the benchmark's own number, at most half the context, without it.
            heads_used: Heads that draft; auto takes as many as pay. In fp32 the samples are the same.
            batch_size: Texts that are written together.
            dtype: Precision.
            device: Where the model runs.
            out: Folder for the samples; `evaluation` in the run's folder, or beside the file, without it.
            json: File to write the numbers to as well.
        """
        from mtp_lightning.evaluation.evaluate import Plan

        check_json(json)
        self.ckpt, self.json, self.device = Path(ckpt), json, device
        if data is None:
            raise InputError("--data is missing: the file of the benchmark, in its published format")
        self.data = Path(data)
        self.out = Path(out) if out is not None else evaluation_folder(self.ckpt)
        self.plan = Plan(
            samples, tuple(temperatures or (0.2, 0.8)), tuple(k or (1, 10)), select, top_p, seed, limit,
            max_new_tokens, heads_used, batch_size, dtype,
        )  # fmt: skip

    def gsm8k(self) -> None:
        """Word problems, after eight worked examples: exact match of the answer, and majority vote."""
        from mtp_lightning.evaluation.tasks.gsm8k import GSM8K

        self._ask(GSM8K(self.data))

    def _ask(self, benchmark: "Benchmark") -> None:
        from mtp_lightning.evaluation.evaluate import Subject, evaluate, file_hash
        from mtp_lightning.evaluation.record import record
        from mtp_lightning.evaluation.show import show, write

        loaded = load(self.ckpt)
        subject = Subject(loaded.model.to(self.device), loaded.tokenizer, loaded.context, loaded.step)
        results = evaluate(subject, benchmark, self.plan, self.out, file_hash(self.data))
        show(results, loaded)
        if self.json is not None:
            write(results, loaded, Path(self.json))
        record(self.ckpt, loaded.step, results.metrics(), [found.file for found in results.at.values()])


def load(ckpt: Path) -> "LoadedModel":
    from mtp_lightning.checkpoints.files import load_model
    from mtp_lightning.checkpoints.select import find_checkpoint

    return load_model(find_checkpoint(ckpt))


def evaluation_folder(ckpt: Path) -> Path:
    """In the folder of the run, or of a file that belongs to none."""
    folder = ckpt if ckpt.is_dir() else ckpt.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "evaluation"
