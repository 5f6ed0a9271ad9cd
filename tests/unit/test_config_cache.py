"""What is remembered of resolved configurations, and what makes them be resolved again."""

import zlib
from pathlib import Path

import pytest
from test_config_many import Fake, fake, files, product

from mtp_lightning.config.config_cache import Store
from mtp_lightning.config.initial_weights import _remembered
from mtp_lightning.config.many_configs import Resolver
from mtp_lightning.config.run_size import Size

__all__ = ["fake", "files"]


def test_what_was_resolved_is_remembered_until_a_file_changes(fake: Fake, files: list[Path], tmp_path: Path) -> None:
    wanted = product(n=[1, 2], width=[8], seeds=[0, 1])

    def resolved() -> int:
        """Parses that it took."""
        fake.parses.clear()
        resolve = Resolver(tmp_path / "cache")
        assert [resolve(files, overrides) for overrides in wanted] == [fake.plain(overrides) for overrides in wanted]
        assert resolve.measure(resolve(files, wanted[-1])) == Size(2, 8)
        resolve.remember()
        return len(fake.parses)

    assert resolved() > 0
    assert resolved() == 0
    files[0].write_text("model: {n: 1}  # another text\n")
    assert resolved() > 0
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:-7])
    assert resolved() > 0, "torn files are made anew"
    assert resolved() == 0


@pytest.mark.parametrize("text", ["model: {n: '${oc.env:N}'}", "model: {n: '${oc.env:N,1}'}"])
def test_what_depends_on_more_than_files_is_not_remembered(
    fake: Fake, files: list[Path], tmp_path: Path, text: str
) -> None:
    files[0].write_text(text)
    for _ in range(2):
        resolve = Resolver(tmp_path / "cache")
        resolve(files, {"model.n": 1})
        resolve.remember()
    assert len(fake.parses) == 2


def test_files_that_are_named_are_looked_at(fake: Fake, files: list[Path], tmp_path: Path) -> None:
    """In a value of the grid, or in a file, beside it."""
    (tmp_path / "tokenizer.json").write_text("1")
    (tmp_path / "inner.yaml").write_text("1")
    files[0].write_text("model: inner.yaml\n")

    def parses() -> int:
        fake.parses.clear()
        resolve = Resolver(tmp_path / "cache")
        resolve(files, {"data.init_args.size": str(tmp_path / "tokenizer.json")})
        resolve.remember()
        return len(fake.parses)

    assert [parses(), parses()] == [1, 0]
    for name in ("tokenizer.json", "inner.yaml"):
        (tmp_path / name).write_text("2")  # as long as it was
        assert [parses(), parses()] == [1, 0], name


def test_the_environment_in_a_value_is_not_remembered(fake: Fake, files: list[Path], tmp_path: Path) -> None:
    for _ in range(2):
        resolve = Resolver(tmp_path / "cache")
        resolve(files, {"data.init_args.size": "${oc.env:N}"})
        resolve.remember()
    assert len(fake.parses) == 2


def test_other_gpus_are_another_machine(
    fake: Fake, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for visible in ("", "0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        resolve = Resolver(tmp_path / "cache")
        resolve(files, {"model.n": 1})
        resolve.remember()
    assert len(fake.parses) == 2


def test_a_cache_that_cannot_be_written_is_told_and_ends_nothing(
    fake: Fake, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    resolve = Resolver(files[0] / "cache")
    assert resolve(files, {"model.n": 1}) == fake.plain({"model.n": 1})
    resolve.remember()
    assert "nothing is remembered" in capsys.readouterr().err


def test_classes_of_others_are_not_remembered(fake: Fake, files: list[Path], tmp_path: Path) -> None:
    """Their defaults may change without our noticing."""
    for _ in range(2):
        resolve = Resolver(tmp_path / "cache")
        resolve(files, {"model.kind": {"class_path": "elsewhere.C"}})
        resolve.remember()
    assert len(fake.parses) == 2


WRONG = (b"[1]", b"[" * 5000, b'{"a": [{}, {"colour": 1}, {}]}', b'{"a": 3}')


@pytest.mark.parametrize("content", [b"", b"torn", *map(zlib.compress, WRONG)])
def test_a_memory_that_may_hold_anything_is_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache").write_bytes(content)
    assert Store(tmp_path / "cache").known == {}


@pytest.mark.parametrize(("content", "known"), [("0123456789abcdef\n", True), ("0123", False), ("x" * 16, False)])
def test_what_is_remembered_of_weights_is_a_digest(tmp_path: Path, content: str, known: bool) -> None:
    (tmp_path / "weights").write_text(content)
    assert _remembered(tmp_path / "weights") == (content.strip() if known else None)
