"""What cannot fit into memory is refused with the estimate, and nothing else is."""

import copy
from pathlib import Path
from typing import Any

import pytest

from mtp_lightning.cli import main
from mtp_lightning.config.memory import check_memory
from mtp_lightning.errors import InputError
from mtp_lightning.machine import machine_memory

GIB = 1024**3
CONFIG: dict[str, Any] = {
    "model": {"backbone": {"dim": 1024, "n_layers": 24, "n_heads": 16, "vocab_size": 32000}, "heads": {"n_future": 4}},
    "trainer": {"devices": 1, "num_nodes": 1, "strategy": "auto", "accelerator": "cpu", "precision": "32-true"},
    "data": {"class_path": "TokenDataModule", "init_args": {"batch_size": 8, "context": 1024}},
}
"""374 M parameters: 5.6 GiB with their states, and a batch of 15.5 GiB."""


def config(**trainer: Any) -> dict[str, Any]:
    changed = copy.deepcopy(CONFIG)
    changed["trainer"] |= trainer
    return changed


def needed(given: dict[str, Any], gpus: int = 0) -> int:
    """The least memory that is not refused, in GiB."""
    for gib in range(1, 200):
        try:
            check_memory(given, gib * GIB, gpus)
        except InputError:
            continue
        return gib
    raise AssertionError("always refused")


def test_weights_states_and_a_batch() -> None:
    assert needed(CONFIG) == 22
    without_batch = copy.deepcopy(CONFIG)
    without_batch["data"]["init_args"] = {"task": {}}
    assert needed(without_batch) == 6
    assert needed(config(precision="bf16-mixed")) < 22


def test_every_process_of_a_node_has_the_weights_and_its_part_of_the_batch() -> None:
    assert needed(config(devices=2)) == 26
    fsdp = {"class_path": "mtp_lightning.strategies.fsdp2.FSDP2Strategy", "init_args": {}}
    assert needed(config(devices=2, strategy=fsdp)) == 22
    assert needed(config(num_nodes=2, strategy=fsdp)) == 11


def test_of_each_gpu_of_a_cluster() -> None:
    fsdp = {"class_path": "mtp_lightning.strategies.fsdp2.FSDP2Strategy", "init_args": {}}
    assert [needed(CONFIG, gpus) for gpus in (1, 2, 4)] == [21, 14, 10], "each has the weights, and its part of a batch"
    assert [needed(config(strategy=fsdp), gpus) for gpus in (1, 2, 4)] == [21, 12, 7]


@pytest.mark.parametrize(("gib", "gpus", "fits"), [(0.01, 1, False), (8.0, 1, True), (None, 1, True)])
def test_a_grid_plans_no_cell_that_its_gpus_cannot_hold(
    gib: float | None, gpus: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    files = "[conf/base.yaml, conf/model/tiny.yaml, conf/data/python_stdlib.yaml]"
    memory = "" if gib is None else f", gpu_memory_gb: {gib}"
    text = f"name: g\nconfigs: {files}\naxes: {{model.heads.n_future: [1]}}\nresources: {{gpus: {gpus}{memory}}}\n"
    text += "overrides: {trainer.precision: bf16-mixed}\n"
    (tmp_path / "grid.yaml").write_text(text)
    assert main(["grid", "plan", "grid.yaml"]) == (0 if fits else 2)
    assert ("each GPU (resources.gpu_memory_gb) has 10.2 MiB" in capsys.readouterr().err) is not fits


def test_gpus_are_counted_as_lightning_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 12 * GIB

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: Card)
    for devices in (4, "4", "auto", -1, "-1", "0,1,2,3", [0, 1, 2, 3]):
        check_memory(config(devices=devices, accelerator="gpu"))
    for devices in (1, "0,1", [2]):
        with pytest.raises(InputError, match=r"and the GPU has 12\.0 GiB"):
            check_memory(config(devices=devices, accelerator="gpu"))


def test_offloaded_states_are_not_judged() -> None:
    zero = {"class_path": "mtp_lightning.strategies.zero.ZeroStrategy", "init_args": {"offload": "optimizer"}}
    check_memory(config(strategy=zero), GIB)


def test_the_message_names_keys_and_estimate() -> None:
    with pytest.raises(InputError) as refused:
        check_memory(CONFIG, GIB)
    said = str(refused.value)
    assert "model.backbone (dim 1,024, n_layers 24" in said
    assert "data.batch_size 8, data.context 1,024" in said
    assert "has 1.00 GiB" in said


def test_this_machine_says_how_much_it_has() -> None:
    memory = machine_memory()
    assert memory is not None
    assert GIB // 4 < memory < 2**50
