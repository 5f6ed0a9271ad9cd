"""The walls of the house: who may import whom, what must stay cheap to import, what every YAML must parse to."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mtp_lightning"

ALLOWED = {
    "model": {"model"},
    "objective": {"model", "objective"},
    "optimization": {"optimization"},
    "data": {"data", "objective"},
    "decoding": {"model", "decoding"},
    "probes": {"model", "objective", "decoding", "data", "probes"},
    "evaluation": {"decoding", "model", "data", "evaluation", "checkpoints"},
    "interop": {"model", "data", "checkpoints", "interop"},
    "checkpoints": {"model", "data", "checkpoints"},
    "metrics": {"model", "objective"},
    "module": {"checkpoints", "divergence", "metrics", "model", "objective", "optimization"},
    "divergence": set(),
    "strategies": {"model", "checkpoints", "strategies"},
    "tracking": {"tracking"},
    "grid": {"grid", "config", "tracking"},
}
"""Room -> rooms it may import (DESIGN). Every room may import what is open to all; the command line and the benchmarks
may import everything."""
NOT_CONFIG = {"grid", "bench", "cli"}
"""What `config` may not import: it turns files and flags into objects of all the other rooms."""
EDGES = {
    "data/pruning/measuring.py": {"checkpoints", "model"},
    "data/sample_command.py": {"checkpoints", "decoding", "model"},
    "decoding/command.py": {"checkpoints", "data"},
    "evaluation/results/record.py": {"tracking"},
    "probes/command.py": {"checkpoints"},
}
"""Command functions at a room's edge, and what more they may import inside a function."""
OPEN = {"", "errors", "files", "machine", "own_code", "ranges", "secrets", "shapes", "units", "yaml_lines"}
TORCH_ONLY = ("model", "objective", "decoding", "probes", "bench")
LIGHT = {"torch", "numpy", "mtp_lightning", "jaxtyping"} | set(sys.stdlib_module_names)


def imports(path: Path, top_only: bool = False) -> set[str]:
    """Modules a file imports, dotted; `top_only` leaves out those inside functions and `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


SOURCES = [p for p in sorted(PACKAGE.rglob("*.py")) if room_of(p) in ALLOWED]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_rooms_import_only_what_they_may(path: Path) -> None:
    relative = path.relative_to(PACKAGE).as_posix()
    allowed = ALLOWED[room_of(path)] | OPEN | EDGES.get(relative, set())
    for module in imports(path):
        parts = module.split(".")
        assert parts[0] not in ("callbacks", "experiments", "tests"), f"{relative} imports {module}"
        if parts[0] == "mtp_lightning":
            assert [*parts, ""][1] in allowed, f"{relative} may not import {module}"


@pytest.mark.parametrize(
    "path",
    [p for room in TORCH_ONLY for p in sorted((PACKAGE / room).rglob("*.py"))],
    ids=lambda p: p.relative_to(PACKAGE).as_posix(),
)
def test_what_runs_on_a_bare_gpu_machine_needs_torch_alone(path: Path) -> None:
    assert {module.split(".")[0] for module in imports(path, top_only=True)} <= LIGHT


def test_every_room_has_its_rule() -> None:
    rooms = {room_of(p) for p in PACKAGE.rglob("*.py")}
    assert rooms - set(ALLOWED) == {"__init__", "__main__", "bench", "cli", "completion", "config"} | (OPEN - {""})


@pytest.mark.parametrize("path", sorted((PACKAGE / "config").rglob("*.py")), ids=str)
def test_configurations_know_no_grid(path: Path) -> None:
    rooms = {module.split(".")[1] for module in imports(path) if module.startswith("mtp_lightning.")}
    assert not rooms & NOT_CONFIG


def test_a_folder_holds_about_a_dozen_files_or_has_rooms() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")]
    counts = Counter(path.parent.relative_to(PACKAGE).as_posix() for path in files)
    assert {folder: count for folder, count in counts.items() if count > 13} == {}


def test_callbacks_do_not_import_each_other() -> None:
    for path in (ROOT / "callbacks").glob("*.py"):
        assert {m for m in imports(path) if m.split(".")[0] == "callbacks"} <= {"callbacks.base"}, path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mtp_lightning.cli import main; main(['--help']); main(['grid', '--help'])\n"
        "import mtp_lightning.grid.commands, mtp_lightning.interop.export_command, mtp_lightning.data.command\n"
        "import mtp_lightning.tracking.ui\n"
        "print(sorted({'torch', 'lightning', 'mlflow', 'datasets', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.splitlines()[-1] == "[]"


def test_the_names_of_the_top_level_are_fixed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    out = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT)
    folders = {line.split("/")[0] for line in out.stdout.splitlines() if "/" in line}
    assert folders == {".ci", "mtp_lightning", "callbacks", "experiments", "conf", "tests"}
