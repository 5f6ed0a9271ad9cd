"""The `mtp` command: finds the function behind a command's words and gives it its arguments.

Every command is a plain function with typed parameters; jsonargparse makes its flags. Only the chosen function's
module is imported, so help is quick. Exit status: 0 all went well, 1 something failed while running, 2 bad input
(one message on standard error, no traceback; `--debug` shows it), 130 interrupted (`fit`: 1, Lightning's own).
"""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

from mtp_lightning import __version__
from mtp_lightning.errors import DivergedError, InputError, UnavailableError, UnprovenError, did_you_mean, printable
from mtp_lightning.own_code import given, import_own, put_working_directory_last
from mtp_lightning.secrets import MaskedStream, mask

_GRID = "mtp_lightning.grid.commands:Grid"
_EVALUATE = "mtp_lightning.evaluation.command:Evaluate"
COMMANDS: dict[str, tuple[str, str]] = {
    "fit": (
        "mtp_lightning.config.commands:fit",
        "train from YAML: -c conf/base.yaml [-c more.yaml ...] [--key value ...]",
    ),
    "validate": (
        "mtp_lightning.config.commands:validate",
        "validate a run: RUN [--key value ...], or -c ... and --ckpt_path",
    ),
    "grid plan": (f"{_GRID}.plan", "a grid's cells, and what would happen to each; writes nothing"),
    "grid run": (f"{_GRID}.run", "run a grid's missing cells on this machine, then report"),
    "grid submit": (f"{_GRID}.submit", "submit a grid's missing cells to Slurm, and return at once"),
    "grid resume": (f"{_GRID}.resume", "the missing, failed and preempted cells: on Slurm, or here"),
    "grid status": (f"{_GRID}.status", "how far a grid's cells are"),
    "grid logs": (f"{_GRID}.logs", "the end of a cell's log"),
    "grid cancel": (f"{_GRID}.cancel", "take a grid's cells out of Slurm's queue"),
    "grid report": (f"{_GRID}.report", "a grid's table, figure and verdict"),
    "generate": ("mtp_lightning.decoding.command:generate_command", "continue a prompt with a checkpoint's model"),
    "export": ("mtp_lightning.interop.export_command:export_command", "write a checkpoint's model for others to serve"),
    "import": (
        "mtp_lightning.interop.importing.import_command:import_command",
        "read a model of Hugging Face's or Meta's layout into one safetensors file",
    ),
    "mix": ("mtp_lightning.interop.mix:mix_command", "average checkpoints of one shape"),
    "evaluate induction": (
        "mtp_lightning.probes.command:induction_command",
        "does a model copy names and repeated tokens, and which attention heads do it",
    ),
    "evaluate polynomial": ("mtp_lightning.probes.command:polynomial_command", "polynomial arithmetic, by operations"),
    "evaluate star-graph": ("mtp_lightning.probes.command:star_graph_command", "path finding in star graphs"),
    "evaluate execution": (
        "mtp_lightning.probes.command:execution_command",
        "what random programs give, by operations",
    ),
    "evaluate pairs": ("mtp_lightning.probes.command:pairs_command", "whole answers of pairs, and their loss"),
    "evaluate humaneval": (f"{_EVALUATE}.humaneval", "functions to complete, run in the sandbox: pass@k"),
    "evaluate mbpp": (f"{_EVALUATE}.mbpp", "functions from a sentence and three tests: pass@k"),
    "evaluate cruxeval-output": (f"{_EVALUATE}.cruxeval_output", "what a function returns for an input"),
    "evaluate cruxeval-input": (f"{_EVALUATE}.cruxeval_input", "an input for which a function returns a value"),
    "evaluate stdin": (f"{_EVALUATE}.stdin", "programs that read and print, as of APPS and CodeContests"),
    "evaluate infilling": (f"{_EVALUATE}.infilling", "parts of HumanEval's solutions, between what is around them"),
    "evaluate gsm8k": (f"{_EVALUATE}.gsm8k", "word problems: exact match and majority vote"),
    "evaluate rouge": (f"{_EVALUATE}.rouge", "ROUGE-L of summaries"),
    "evaluate lm-eval": (
        "mtp_lightning.evaluation.harness.command:lm_eval_command",
        "tasks of lm-eval: log-likelihoods by head 1, texts by self-speculative decoding",
    ),
    "evaluate score": ("mtp_lightning.evaluation.score_command:score_command", "run and score programs from anywhere"),
    "data prepare": ("mtp_lightning.data.command:prepare_command", "turn a corpus into memory-mapped token shards"),
    "data pairs": ("mtp_lightning.data.command:pairs_command", "questions about generated stories, as JSON lines"),
    "data sample": (
        "mtp_lightning.data.sample_command:sample_command",
        "a model's own continuations as training data",
    ),
    "data train-tokenizer": (
        "mtp_lightning.data.tokenizers.commands:train_tokenizer_command",
        "train a BPE tokenizer on a corpus",
    ),
    "data compare-tokenizers": (
        "mtp_lightning.data.tokenizers.commands:compare_tokenizers_command",
        "what tokenizers make of the same texts",
    ),
    "data prune": ("mtp_lightning.data.pruning.commands:prune_command", "which of a corpus's documents to train on"),
    "data corruptions": (
        "mtp_lightning.data.pruning.corruption_commands:corruptions_command",
        "does a model see that files were made worse",
    ),
    "data plant": (
        "mtp_lightning.data.pruning.corruption_commands:plant_command",
        "a corpus with files that are known to be bad",
    ),
    "bench loss": ("mtp_lightning.bench.loss:loss_command", "time and memory of the loss against naive code"),
    "bench train": (
        "mtp_lightning.bench.train_command:train_command",
        "training steps against Hugging Face and naive code",
    ),
    "bench decode": (
        "mtp_lightning.bench.decode.decode_command:decode_command",
        "self-speculative decoding against plain and peers",
    ),
    "bench sandbox": ("mtp_lightning.evaluation.sandbox.bench:sandbox_command", "time of 164 confined programs"),
    "completion": ("mtp_lightning.completion:completion_command", "completion of commands and flags, for the shell"),
    "ui": ("mtp_lightning.tracking.ui:ui_command", "the MLflow UI on this project's runs, on 127.0.0.1"),
}
FROM_YAML = ("fit", "validate")
"""Commands that LightningCLI parses itself."""


OF_THE_SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ECONNREFUSED, errno.EACCES, errno.ELOOP,
                 errno.ENAMETOOLONG}  # fmt: skip
"""What a system refuses whatever the program: one line says it."""
LONGEST_NAME = 255


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status.

    Args:
        argv: by default this process is the command, and finds its user's own modules.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows "?" for what it has not
    if argv is None:
        put_working_directory_last()
        sys.stdout, sys.stderr = MaskedStream(sys.stdout), MaskedStream(sys.stderr)
    args = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning uses what is deprecated there
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        with careful_umask(args):
            return dispatch(_without_imports(args))
    except InputError as error:
        if debug:
            raise
        print(mask(f"mtp: error: {printable(str(error))}"), file=sys.stderr)
        return 2
    except (UnavailableError, DivergedError, UnprovenError) as error:
        if debug:
            raise
        print(mask(f"mtp: error: {printable(str(error))}"), file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug or error.errno not in OF_THE_SYSTEM:
            raise
        name = str(error.filename or "while writing")
        shown = name if len(name) <= LONGEST_NAME else f"{name[:80]}..."
        print(mask(f"mtp: error: {error.strerror}: {printable(shown)}"), file=sys.stderr)
        return 2 if error.errno == errno.ENAMETOOLONG else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


@contextmanager
def careful_umask(args: Sequence[str]) -> Iterator[None]:
    """What a run writes is not for others on the machine: its configuration, its log, its weights."""
    if not args or args[0] not in ("fit", "grid"):
        yield
        return
    before = os.umask(0o077)
    os.umask(before | 0o007)
    try:
        yield
    finally:
        os.umask(before)


def _without_imports(args: Sequence[str]) -> list[str]:
    """Import what `--import MODULE` names, anywhere on the line: the user's leave to run a module that a checkpoint
    may ask for (heads of an own kind), and that is never run because of the checkpoint alone.

    Raises:
        InputError: it cannot be imported.
    """
    rest, left = [], iter(args)
    given.clear()
    for arg in left:
        flag, equals, module = arg.partition("=")
        if flag == "--import":
            given.append(module if equals else next(left, ""))
            import_own(given[-1])
        else:
            rest.append(arg)
    return rest


def dispatch(args: list[str]) -> int:
    """Find the longest command that `args` begin with and run it on the rest.

    Raises:
        InputError: no such command; names the nearest.
    """
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if args[0] == "--version":
        print(f"mtp {__version__}")
        return 0
    for words in (2, 1):
        name = " ".join(args[:words])
        if name in COMMANDS:
            if name in FROM_YAML:
                from mtp_lightning.config.keys.early_checks import check_arguments

                check_arguments(name, args[words:])
                return load(COMMANDS[name][0])(args[words:]) or 0
            from mtp_lightning.config.keys.command_parser import call

            function = load(COMMANDS[name][0])
            return call(function, args[words:], prog=f"mtp {name}")
    group = [name for name in COMMANDS if name.split()[0] == args[0]]
    if group and (len(args) == 1 or args[1] in ("-h", "--help")):
        print(overview(args[0]))
        return 0
    tried = " ".join(args[:2]) if group else args[0]
    raise InputError(f"there is no command 'mtp {tried}'{did_you_mean(tried, COMMANDS)} (`mtp --help` lists them)")


def overview(group: str | None = None) -> str:
    """Help on the commands, or on those of one group; reads no module."""
    shown = {name: text for name, (_, text) in COMMANDS.items() if group in (None, name.split()[0])}
    width = max(map(len, shown)) + 2
    lines = [f"  mtp {name:<{width}}{text}" for name, text in shown.items()]
    head = "Multi-token prediction experiments. Every command has --help; --debug shows tracebacks; --version."
    return "\n".join([head, "", *lines])


def load(target: str) -> Callable[..., Any]:
    """The function `module:function`, or the method `module:Class.method`."""
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found  # type: ignore[no-any-return]


if __name__ == "__main__":
    sys.exit(main())
