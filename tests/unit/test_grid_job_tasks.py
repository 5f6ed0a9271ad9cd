"""A cell of several Slurm tasks: they start, are warned and end together."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from test_grid_fakes import DONE, finish, starts, until
from test_grid_job import NODES, RANKED, SAVES, Slurm, attempts, both, cell, scontrol, slurm, two

from mtp_lightning.grid.spec.cells import Cell

__all__ = ["cell", "slurm"]


def test_tasks_start_together_and_end_with_the_first(slurm: Slurm, cell: Cell) -> None:
    turn = "turn = len((cell / 'rank0').read_text())\n"
    meets = "while not (cell / 'rank1').exists() or len((cell / 'rank1').read_text()) < turn: time.sleep(0.02)\n"
    script = "if rank: time.sleep(60)\n" + turn + meets + "if turn == 1: sys.exit(3)\nfinish()"
    assert both(slurm, two(cell), RANKED + script) == [0, 0]
    assert [len((cell.directory / f"rank{rank}").read_text()) for rank in range(2)] == [2, 2]
    assert [one[2] for one in attempts(cell)] == ["failed", "finished"]


def test_a_task_that_dies_takes_the_run_with_it(slurm: Slurm, cell: Cell) -> None:
    assert both(slurm, two(cell), RANKED + "if rank: sys.exit(9)\ntime.sleep(60)") == [1, 0]
    assert [one[3].split(" on ")[0] for one in attempts(cell)] == ["task 1"] * 2
    assert attempts(cell)[0][3].endswith("ended with exit status 9")


def test_every_task_is_warned_and_hands_it_on(slurm: Slurm, cell: Cell) -> None:
    saves = SAVES.replace("{time.time()}", "{os.environ['SLURM_PROCID']}").replace("'ready'", "f'ready{rank}'")
    script = RANKED + saves.replace('"ready"', "f'ready{rank}'")
    tasks = [slurm.start(two(cell), script, rank=rank) for rank in range(2)]
    until(lambda: all((cell.directory / f"ready{rank}").exists() for rank in range(2)), 60)
    tasks[1].send_signal(signal.SIGUSR2)
    until(lambda: (cell.directory / "checkpoints" / "1.ckpt").exists(), 60)
    tasks[0].send_signal(signal.SIGUSR2)
    assert [slurm.end(task) for task in tasks] == [(255, True), (0, False)]
    assert len(list((cell.directory / "checkpoints").iterdir())) == 2


def test_a_cell_that_is_finished_sends_all_its_tasks_home(slurm: Slurm, cell: Cell) -> None:
    finish(cell, loss_1=1.0)
    assert both(slurm, two(cell), DONE) == [0, 0]
    assert starts(cell) == 0


@pytest.mark.parametrize(
    ("script", "address"),
    [('echo "NodeName=$3 Arch=x NodeAddr=10.0.0.7 NodeHostName=$3"', "10.0.0.7"), ("exit 1", "node0")],
)
def test_tasks_on_several_nodes_meet_where_slurm_reaches_the_first(
    slurm: Slurm, cell: Cell, tmp_path: Path, script: str, address: str
) -> None:
    scontrol(tmp_path, script)
    says = "(cell / f'at{rank}').write_text(os.environ['MASTER_ADDR'])\n"
    waits = "while rank == 0 and not (cell / 'at1').exists(): time.sleep(0.02)\n"
    assert both(slurm, replace(cell, resources=NODES), RANKED + says + waits + DONE) == [0, 0]
    assert [(cell.directory / f"at{rank}").read_text() for rank in range(2)] == [address] * 2


def test_a_run_that_lost_a_node_is_queued_again_and_one_that_failed_is_not(
    slurm: Slurm, cell: Cell, tmp_path: Path
) -> None:
    """The first fails, since it hears no more of the other: that may be dead with its node, or have failed itself."""
    scontrol(tmp_path, "exit 1")
    script = RANKED + "while not (cell / 'lost').exists(): time.sleep(0.02)\nif rank: time.sleep(8)\nsys.exit(3)"
    for job, kill in (("7", True), ("8", False)):
        tasks = [slurm.start(replace(cell, resources=NODES), script, job=job, rank=rank) for rank in range(2)]
        until(lambda: (cell.directory / "rank1").exists(), 60)
        if kill:
            tasks[1].kill()
        (cell.directory / "lost").touch()
        assert slurm.end(tasks[0]) == ((255, True) if kill else (1, False))
        slurm.end(tasks[1])
        for file in cell.directory.glob("rank*"):
            file.unlink()
        (cell.directory / "lost").unlink()
    assert [one[2:] for one in attempts(cell)] == [
        ("interrupted", "task 1 was lost, and its node with it"),
        ("failed", "exit status 3"),
    ]
