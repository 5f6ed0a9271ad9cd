"""The `mtp` command: finds the function behind a command's words and gives it its arguments.

Every command is a plain function with typed parameters; jsonargparse makes its flags. Only the chosen function's
module is imported, so help is quick. Exit status: 0 all went well, 1 something failed while running, 2 bad input
(one message on standard error, no traceback; `--debug` shows it), 130 interrupted (`fit`: 1, Lightning's own).
"""

import copy
import errno
import importlib
import inspect
import os
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mtp_lightning import __version__
from mtp_lightning.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from mtp_lightning.grid.spec.cells import Cell
    from mtp_lightning.grid.tools import GridTools

COMMANDS: dict[str, tuple[str, str]] = {
    "fit": (
        "mtp_lightning.config.commands:fit",
        "train from YAML: -c conf/base.yaml [-c more.yaml ...] [--key value ...]",
    ),
    "validate": ("mtp_lightning.config.commands:validate", "validate a checkpoint: the same, with --ckpt_path"),
    "grid plan": ("mtp_lightning.grid.commands:plan", "a grid's cells, and what would happen to each; writes nothing"),
    "grid run": ("mtp_lightning.grid.commands:run", "run a grid's missing cells on this machine, then report"),
    "grid submit": ("mtp_lightning.grid.cluster:submit", "submit a grid's missing cells to Slurm, and return at once"),
    "grid resume": ("mtp_lightning.grid.cluster:resume", "the missing, failed and preempted cells: on Slurm, or here"),
    "grid status": ("mtp_lightning.grid.cluster:status", "how far a grid's cells are"),
    "grid logs": ("mtp_lightning.grid.cluster:logs", "the end of a cell's log"),
    "grid cancel": ("mtp_lightning.grid.cluster:cancel", "take a grid's cells out of Slurm's queue"),
    "grid report": ("mtp_lightning.grid.commands:report", "a grid's table, figure and verdict"),
    "generate": ("mtp_lightning.decoding.command:generate_command", "continue a prompt with a checkpoint's model"),
    "export": ("mtp_lightning.interop.command:export_command", "write a checkpoint's model to one safetensors file"),
    "evaluate induction": (
        "mtp_lightning.probes.command:induction_command",
        "does a model copy names and repeated tokens, and which attention heads do it",
    ),
    "evaluate polynomial": ("mtp_lightning.probes.command:polynomial_command", "polynomial arithmetic, by operations"),
    "evaluate star-graph": ("mtp_lightning.probes.command:star_graph_command", "path finding in star graphs"),
    "data prepare": ("mtp_lightning.data.command:prepare_command", "turn a corpus into memory-mapped token shards"),
    "data train-tokenizer": ("mtp_lightning.data.command:train_tokenizer_command", "train a BPE tokenizer on a corpus"),
    "bench loss": ("mtp_lightning.bench.loss:loss_command", "time and memory of the loss against naive code"),
    "bench train": ("mtp_lightning.bench.train:train_command", "training steps against Hugging Face and naive code"),
    "bench decode": ("mtp_lightning.bench.decode:decode_command", "self-speculative decoding against plain and peers"),
    "ui": ("mtp_lightning.tracking.command:ui_command", "the MLflow UI on this project's runs, on 127.0.0.1"),
}
FROM_YAML = ("fit", "validate")
"""Commands that LightningCLI parses itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning uses what is deprecated there
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        return dispatch(args)
    except InputError as error:
        if debug:
            raise
        print(f"mtp: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ECONNREFUSED):
            raise
        print(f"mtp: error: {error.strerror}: {error.filename or 'while writing'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


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
            function = load(COMMANDS[name][0])
            if name in FROM_YAML:
                return function(args[words:]) or 0
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
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def call(function: Callable[..., Any], args: Sequence[str], prog: str) -> int:
    """Parse `args` by the function's signature (parameters without a default are positional) and call it."""
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise InputError(f"{prog}: {message.strip()} (see `{prog} --help`)") from ex

    parameters = inspect.signature(function).parameters
    handed_in = {"tools": grid_tools()} if "tools" in parameters else {}
    lists = {name for name, p in parameters.items() if p.annotation == list[str] and p.default is p.empty}
    switches = {f"--{name}" for name, p in parameters.items() if p.annotation is bool}
    parser = Parser(prog=prog, description=(function.__doc__ or "").strip().split("\n")[0])
    parser.add_function_arguments(function, as_positional=True, skip={*handed_in, *lists})
    for name in lists:
        parser.add_argument(name, nargs="*", type=str, default=[], help="any number of them")
    parsed = parser.instantiate(parser.parse_args(_switched([_underscored(arg) for arg in args], switches))).as_dict()
    return function(**handed_in, **parsed) or 0


def _underscored(arg: str) -> str:
    """`--max-new-tokens` is `--max_new_tokens`."""
    flag, equals, value = arg.partition("=")
    return flag.replace("-", "_").replace("__", "--", 1) + equals + value if arg.startswith("--") else arg


def _switched(args: Sequence[str], switches: Collection[str]) -> list[str]:
    """`--watch` is `--watch=true`; jsonargparse wants a value."""
    behind = [*args[1:], ""]
    return [f"{arg}=true" if arg in switches and b not in ("true", "false") else arg for arg, b in zip(args, behind)]


def grid_tools() -> "GridTools":
    """What a grid borrows from the rest of the house. Lightning loads when the first cell is resolved."""
    from mtp_lightning.config.config_cache import cache_folder
    from mtp_lightning.config.config_files import find_config
    from mtp_lightning.config.many_configs import Resolver
    from mtp_lightning.grid.tools import GridTools, default_ui_command

    def ui_command(runs: Path, grid: str) -> str:
        """As this very program was called: an environment need not be on the PATH."""
        called = [os.path.relpath(sys.argv[0])]
        if called[0].endswith("__main__.py"):
            called = [os.path.relpath(sys.executable), "-m", "mtp_lightning"]
        program = "mtp" if shutil.which("mtp") else " ".join(called)
        return program + default_ui_command(runs, grid).removeprefix("mtp")

    resolver = Resolver(cache_folder())
    return GridTools(
        resolve=resolver,
        measure=resolver.measure,
        remember=resolver.remember,
        materialise=cell_config,
        command=cell_command,
        find_config=find_config,
        ui_command=ui_command,
    )


def cell_command(cell: "Cell") -> list[str]:
    """One process a cell; it goes on from its newest good checkpoint."""
    return [sys.executable, "-m", "mtp_lightning", "fit", "-c", str(cell.directory / "config.yaml")]


def cell_config(cell: "Cell") -> dict[str, Any]:
    """The cell's configuration with its own folder, its MLflow run, and the shards of all cells in one place."""
    from mtp_lightning.grid.report.view import experiment_name
    from mtp_lightning.tracking.store import default_tracking_uri

    runs = cell.directory.parent
    config: dict[str, Any] = copy.deepcopy(dict(cell.config))
    config["ckpt_path"] = "auto"
    config["trainer"] |= {"default_root_dir": str(cell.directory), "enable_progress_bar": False}
    if cell.resources.tasks_per_node > 1:
        config["trainer"]["devices"] = cell.resources.tasks_per_node
    if cell.resources.nodes > 1:
        config["trainer"]["num_nodes"] = cell.resources.nodes
    config["trainer"]["logger"] = {
        "class_path": "mtp_lightning.tracking.logger.MLflowRunLogger",
        "init_args": {
            "tracking_uri": default_tracking_uri(runs),
            "experiment": experiment_name(cell.grid),
            "run_name": cell.label,
            "directory": str(cell.directory),
            "tags": {
                "mtp.kind": "cell",
                "mtp.grid": cell.grid,
                "mtp.cell": cell.signature,
                "mtp.group": cell.group_label,
                "mtp.baseline": str(cell.baseline).lower(),
            },
        },
    }
    data = config["data"].get("init_args", {})
    if data.get("directory") == "runs/data":
        data["directory"] = str(runs / "data")
    return config


if __name__ == "__main__":
    sys.exit(main())
