"""What a model can do on a benchmark, a few problems of it, at the end of training or while it learns."""

from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl
from typing_extensions import override

from callbacks.base import ProbeCallback, When
from mtp_lightning.checkpoints.description import begin_ids
from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.errors import InputError
from mtp_lightning.evaluation.benchmark import Benchmark, check_name
from mtp_lightning.evaluation.code_benchmark import Running
from mtp_lightning.evaluation.evaluate import Subject, check_prompts, evaluate, file_hash
from mtp_lightning.evaluation.plan import Plan
from mtp_lightning.evaluation.tasks.benchmarks import BenchmarkName, make_benchmark
from mtp_lightning.model.mtp import MTPModel
from mtp_lightning.ranges import Kept, Range, Seed, check_ranges
from mtp_lightning.tracking.logger import MLflowRunLogger

FOLDER = "evaluation/probe"
"""Folder of samples, below `trainer.default_root_dir` and among the run's artifacts, apart from the samples of
`mtp evaluate`, which are kept."""


class EvaluationProbe(ProbeCallback):
    """Asks a benchmark's first problems, as `mtp evaluate` does, and logs `eval/<task>/pass_at_k`,
    `eval/<task>/temperature_at_k`, `eval/<task>/tokens_per_forward` and `/bytes_per_forward`. Programs run in the
    sandbox. One callback asks one benchmark; there may be several, of the same one if they have names.

    Args:
        task: humaneval, mbpp, cruxeval-output, cruxeval-input, stdin, infilling (single lines), gsm8k or rouge.
        data: file of the benchmark, in its published format.
        limit: problems, the first ones.
        samples: of every problem, at every temperature; one at temperature 0.
        temperatures: of sampling; 0 is greedy.
        k: for pass@k.
        max_new_tokens: of an answer; null for the benchmark's own number, at most half of the context.
        seed: of the samples.
        workers: programs that run at once.
        when: at the "end" alone, every so many steps, "log" (spaced), or at every "validation".
        name: tells apart callbacks of one benchmark, in files and metrics: with "maths" `eval/rouge-maths/rouge_l`.
    """

    def __init__(
        self,
        task: BenchmarkName,
        data: str,
        limit: Kept = 20,
        samples: Kept = 1,
        temperatures: tuple[Annotated[float, Range(least=0, most=100)], ...] = (0.0,),
        k: tuple[Kept, ...] = (1,),
        max_new_tokens: Kept | None = None,
        seed: Seed = 0,
        workers: Annotated[int, Range(least=1, most=256)] = 1,
        when: When = "end",
        name: str | None = None,
    ) -> None:
        super().__init__(when)
        check_ranges("EvaluationProbe", EvaluationProbe, locals())
        self.task: BenchmarkName = task
        self.label = name
        self.data = data
        with self.named():
            self.name = f"evaluation_{task}" + ("" if name is None else f"-{check_name(name)}")
            self.plan = Plan(
                samples=samples, temperatures=tuple(temperatures), k=tuple(k), seed=seed, limit=limit,
                max_new_tokens=max_new_tokens,
            )  # fmt: skip
        self.running = Running(workers)

    @property
    @override
    def state_key(self) -> str:
        name = "" if self.label is None else f", {self.label}"
        return f"EvaluationProbe{{{self.task}, {self.data}{name}}}"

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A file of something else, data that are no text, or a machine that cannot confine programs is refused here,
        not hours later."""
        with self.named():
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            if sum(isinstance(one, EvaluationProbe) and one.name == self.name for one in callbacks) > 1:
                raise InputError(
                    f"name is {self.label}: another callback asks {self.task} under the same name, and would write the "
                    "same metrics and files"
                )
            check_prompts(self._subject(trainer, pl_module.model), self._benchmark(), self.plan)

    @override
    def measure(self, trainer: pl.Trainer, model: MTPModel, at_end: bool) -> dict[str, float]:
        out = Path(trainer.default_root_dir) / FOLDER
        benchmark = self._benchmark()
        for old in out.glob(f"{benchmark.name}_step_{trainer.global_step}_*"):  # of an attempt that was killed
            old.unlink()
        results = evaluate(self._subject(trainer, model), benchmark, self.plan, out, file_hash(self.data))
        for logger in trainer.loggers:
            if isinstance(logger, MLflowRunLogger):
                for found in results.at.values():
                    logger.log_file_artifact(found.file, FOLDER)
        return results.metrics()

    def _benchmark(self) -> Benchmark:
        benchmark = make_benchmark(self.task, self.data, self.running)
        benchmark.tell_apart(self.label)
        return benchmark

    def _subject(self, trainer: pl.Trainer, model: Any) -> Subject:
        data = trainer.datamodule  # type: ignore[attr-defined]
        tokenizer = getattr(data, "tokenizer", None)
        if not isinstance(tokenizer, Tokenizer):
            raise InputError(f"task is {self.task}: the run is not trained on text, which it asks for")
        begin = tuple(begin_ids(data, getattr(trainer.lightning_module, "parent", None)))
        return Subject(model, tokenizer, getattr(data, "context", None), trainer.global_step, begin)
