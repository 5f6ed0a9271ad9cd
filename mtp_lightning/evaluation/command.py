"""`mtp evaluate humaneval | mbpp | ...`: benchmarks on any checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from mtp_lightning.errors import InputError
from mtp_lightning.files import check_json
from mtp_lightning.machine import check_device
from mtp_lightning.ranges import Kept, Range, check_value

if TYPE_CHECKING:
    from mtp_lightning.checkpoints.files import LoadedModel
    from mtp_lightning.evaluation.benchmark import Benchmark, Domain
    from mtp_lightning.evaluation.tasks.benchmarks import BenchmarkName


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
        compile: bool | Literal["auto"] = "auto",
        device: Literal["cpu", "cuda"] = "cpu",
        turns: int = 1,
        workers: int = 2,
        cpu_seconds: float = 4.0,
        memory_mb: int = 1024,
        unsafe_execution: bool = False,
        name: str | None = None,
        out: str | None = None,
        json: str | None = None,
    ) -> None:
        """The arguments that benchmarks share.

        Args:
            ckpt: Checkpoint, or a file of `mtp export`, or the folder of a run, whose newest checkpoint is taken.
            data: File of the benchmark, in its published format (needed).
            samples: Of every problem, at every temperature; one at temperature 0.
            temperatures: Of sampling; [0.2, 0.8] without it.
            k: For pass@k; [1, 10] without it, [1] where samples are fewer or greedy.
            select: oracle: each k at the temperature that does best, as the paper's tables; fixed: temperatures belong
                to the k's in order, or one to all.
            top_p: Sample among the fewest most probable tokens of this probability together (nucleus).
            seed: Of the samples; sample s of a problem depends on nothing else.
            limit: Ask the first problems only; recorded in MLflow under a --name of its own alone.
            max_new_tokens: Most tokens of an answer; the benchmark's own number, at most half the context, without it.
            heads_used: Heads that draft; auto takes as many as pay. In fp32 the samples are the same.
            batch_size: Texts that are written together.
            dtype: Precision.
            compile: Decode by layers compiled for this processor; auto does for long work.
            device: Where the model runs.
            turns: Programs of a sample, at most 3; one that fails public tests is followed by another, with feedback.
            workers: Programs that run at once.
            cpu_seconds: CPU time that a program may take, where its problem does not say.
            memory_mb: Address space that a program may take, in MiB.
            unsafe_execution: Run the programs with all your rights, outside of the sandbox; recorded as a tag.
            name: Tells apart data of one benchmark, in files and metrics: with "maths" eval/rouge-maths/rouge_l.
            out: Folder for the samples; `evaluation` in the run's folder, or beside the file, without it.
            json: File to write the numbers to as well.
        """
        from mtp_lightning.evaluation.benchmark import check_name
        from mtp_lightning.evaluation.code_benchmark import Running
        from mtp_lightning.evaluation.plan import Plan, usual_ks
        from mtp_lightning.evaluation.sandbox import Limits

        check_json(json, ckpt=ckpt, data=data, out=out)
        check_device(device)
        check_value("workers", workers, Kept)
        check_value("turns", turns, Annotated[int, Range(least=1, most=3)])
        self.ckpt, self.json, self.device = Path(ckpt), json, device
        self.turns, self.name = turns, None if name is None else check_name(name)
        self.running = Running(workers, unsafe_execution, Limits(cpu_seconds, memory_mb))
        if data is None:
            raise InputError("--data is missing: the file of the benchmark, in its published format")
        self.data, self.temperatures_given, self.k_given = Path(data), temperatures is not None, k is not None
        asked = (0.2, 0.8) if temperatures is None else tuple(temperatures)
        self.out = Path(out) if out is not None else evaluation_folder(self.ckpt)
        self.plan = Plan(
            samples, asked, usual_ks(samples, asked) if k is None else tuple(k), select, top_p, seed, limit,
            max_new_tokens, heads_used, batch_size, dtype, compile,
        )  # fmt: skip

    def humaneval(self) -> None:
        """Functions to complete (HumanEval; HumanEval+ in EvalPlus's format)."""
        self._ask_named("humaneval")

    def mbpp(self) -> None:
        """Functions from a sentence and three tests, after three worked examples (MBPP, sanitized MBPP; MBPP+)."""
        self._ask_named("mbpp")

    def cruxeval_output(self) -> None:
        """What a function returns for an input (CRUXEval-O)."""
        self._ask_named("cruxeval-output")

    def cruxeval_input(self) -> None:
        """An input for which a function returns what is given (CRUXEval-I)."""
        self._ask_named("cruxeval-input")

    def stdin(self) -> None:
        """Programs that read standard input and print (APPS, CodeContests, or one's own rows)."""
        self._ask_named("stdin")

    def infilling(
        self,
        *,
        spans: Literal["single-line", "multi-line", "random-span"] = "single-line",
        mode: Literal["psm", "spm", "prefix"] = "psm",
    ) -> None:
        """A part of a HumanEval solution, between what comes before and after it.

        Args:
            spans: What is taken out: each line, each run of lines, or ten random spans of a solution.
            mode: psm: prefix, suffix, middle; spm: suffix, then prefix and middle; prefix: the baseline of models
                without infilling tokens, which never see the suffix.
        """
        from mtp_lightning.evaluation.tasks.benchmarks import check_turns
        from mtp_lightning.evaluation.tasks.infilling import Infilling

        check_turns("infilling", self.turns)
        self._ask(Infilling(self.data, spans, mode, self.running))

    def gsm8k(self) -> None:
        """Word problems, after eight worked examples: exact match of the answer, and majority vote."""
        self._ask_named("gsm8k")

    def rouge(self, *, domain: Literal["code", "prose", "maths"] = "prose") -> None:
        """ROUGE-L of summaries, on pairs: rows with prompt and completion. Greedy, where no temperatures are given.

        Args:
            domain: What the pairs are about, for the JSON.
        """
        if self.k_given and self.plan.k != (1,):
            raise InputError(f"k is {[*self.plan.k]}: rouge has no pass@k, but a mean over samples; leave it out")
        temperatures = self.plan.temperatures if self.temperatures_given else (0.0,)
        self.plan = replace(self.plan, temperatures=temperatures, k=(1,))
        self._ask_named("rouge", domain)

    def _ask_named(self, name: "BenchmarkName", domain: "Domain | None" = None) -> None:
        from mtp_lightning.evaluation.tasks.benchmarks import make_benchmark

        benchmark = make_benchmark(name, self.data, self.running, self.turns)
        benchmark.domain = domain or benchmark.domain
        self._ask(benchmark)

    def _ask(self, benchmark: "Benchmark") -> None:
        from mtp_lightning.evaluation.evaluate import Subject, evaluate, file_hash
        from mtp_lightning.evaluation.results.record import UNSAFE, record
        from mtp_lightning.evaluation.results.show import show, write

        benchmark.tell_apart(self.name)
        loaded = load(self.ckpt)
        results = evaluate(Subject.loaded(loaded, self.device), benchmark, self.plan, self.out, file_hash(self.data))
        show(results, loaded)
        if self.json is not None:
            write(results, loaded, Path(self.json))
        tags = {UNSAFE: "true"} if benchmark.confined_by == "none" else {}
        limited = self.name is None and len(benchmark.prompts) < len(benchmark.order)
        files = [found.file for found in results.at.values()]
        record(self.ckpt, loaded.step, results.metrics(), files, tags, limited)


def load(ckpt: Path) -> "LoadedModel":
    from mtp_lightning.checkpoints.files import load_model
    from mtp_lightning.checkpoints.select import find_checkpoint

    return load_model(find_checkpoint(ckpt))


def evaluation_folder(ckpt: Path) -> Path:
    """In the folder of the run, or of a checkpoint that belongs to none."""
    from mtp_lightning.checkpoints.sharded import is_sharded

    folder = ckpt if ckpt.is_dir() and not is_sharded(ckpt) else ckpt.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "evaluation"
