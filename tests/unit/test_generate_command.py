"""`mtp generate`: the same text however it is decoded, streamed and coloured; what is refused, and where."""

import io
import json
import re
from pathlib import Path

import pytest
import torch
from test_checkpoints import save
from tiny import tiny_backbone

from mtp_lightning.cli import main
from mtp_lightning.decoding.command import GREEN, PLAIN, RED
from mtp_lightning.model.config import HeadsConfig
from mtp_lightning.model.mtp import MTPModel

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def ckpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A random byte model of three heads, trained on windows of 48 bytes, as it were."""
    monkeypatch.chdir(tmp_path)
    return checkpoint(tmp_path, HeadsConfig(n_future=3))


def checkpoint(folder: Path, heads: HeadsConfig) -> str:
    torch.manual_seed(0)
    path = save(folder / "a.ckpt", MTPModel(tiny_backbone(vocab_size=256, n_layers=5), heads))
    content = torch.load(path, weights_only=True)
    content["mtp_lightning"]["context"] = 48
    torch.save(content, path)
    return str(path)


def generate(capsys: Capture, *arguments: str) -> tuple[str, str]:
    assert main(["generate", *arguments]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.mark.parametrize("sampling", [[], ["--temperature", "0.8", "--top_k", "9", "--seed", "3"]])
def test_the_text_is_the_same_however_it_is_drafted(ckpt: str, sampling: list[str], capsys: Capture) -> None:
    plain, figures = generate(capsys, ckpt, "--prompt", "def", "--max-new-tokens", "20", "--decoding=greedy", *sampling)
    assert plain.startswith("def")
    assert "1.00 tokens per forward with 1 of 3 heads" in figures
    for drafting in (["--heads_used", "2"], ["--heads_used", "3"], ["--heads_used", "auto"], ["--tree", "[3, 2]"]):
        text, _ = generate(capsys, ckpt, "--prompt", "def", "--max_new_tokens", "20", *drafting, *sampling)
        assert text == plain, drafting
    shown, _ = generate(
        capsys, ckpt, "--prompt", "def", "--max_new_tokens", "20", "--show-drafts", "true", "--heads_used", "3",
        "--json", "out.json", *sampling,
    )  # fmt: skip
    written = json.loads(Path("out.json").read_text())
    assert "def" + written["text"] + "\n" == plain
    kept = re.sub(re.escape(RED) + ".*?" + re.escape(PLAIN), "", shown, flags=re.S)
    assert kept.replace(GREEN, "").replace(PLAIN, "") == plain
    assert RED in shown, "a random model's drafts are rejected now and then"
    assert written["heads_used"] == 3
    assert written["tokens_per_forward"] >= 1
    assert written["bytes_per_forward"] == written["tokens_per_forward"], "of bytes"


def test_another_seed_is_another_text(ckpt: str, capsys: Capture) -> None:
    arguments = [ckpt, "--prompt", "def", "--max_new_tokens", "20", "--temperature", "1"]
    texts = {generate(capsys, *arguments, "--seed", str(seed), "--accept", "ratio")[0] for seed in range(3)}
    assert len(texts) == 3


def test_by_ratio_as_many_heads_draft_each_time(ckpt: str, capsys: Capture) -> None:
    """What is accepted by ratio depends on how many do, and how many pay is a matter of the clock."""
    arguments = [ckpt, "--prompt", "def", "--max_new_tokens", "9", "--accept", "ratio", "--json", "out.json"]
    for temperature, heads in (("1", 3), ("0", "auto")):
        generate(capsys, *arguments, "--temperature", temperature)
        assert json.loads(Path("out.json").read_text())["heads_used"] == heads


def test_half_precision_decodes(ckpt: str, capsys: Capture) -> None:
    text, _ = generate(capsys, ckpt, "--prompt", "def", "--max_new_tokens", "9", "--dtype", "bf16")
    assert text.startswith("def")


@pytest.mark.parametrize(
    ("heads", "says"),
    [(HeadsConfig(), "this model has one head: plain"), (HeadsConfig(2, kind="none"), "no heads to draft with")],
)
def test_a_model_with_nothing_to_draft_with_says_so(
    heads: HeadsConfig, says: str, tmp_path: Path, capsys: Capture
) -> None:
    _, reported = generate(capsys, checkpoint(tmp_path, heads), "--prompt", "def", "--max_new_tokens", "5")
    assert says in reported
    assert "1.00 tokens per forward" in reported


def test_text_beyond_the_trained_context_is_announced(ckpt: str, capsys: Capture) -> None:
    _, reported = generate(capsys, ckpt, "--prompt", "x" * 40, "--max_new_tokens", "20")
    assert "from token 48 on the text is longer than the model was trained on" in reported
    text, reported = generate(capsys, ckpt, "--prompt", "x" * 60, "--max_new_tokens", "5", "--beyond_context", "true")
    assert text.startswith("x" * 60)
    assert "from token 48 on" in reported


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--prompt", "x" * 60], "the prompt has 60 tokens, and the model was trained on windows of 48"),
        (["--prompt", ""], "the prompt is empty"),
        ([], "--prompt is missing"),
        (["--prompt", "x", "--heads_used", "4"], "heads_used is 4: this model has 3 prediction heads"),
        (["--prompt", "x", "--heads_used", "0"], "heads_used is 0: this model has 3 prediction heads"),
        (["--prompt", "x", "--heads_used", "many"], "heads_used"),
        (["--prompt", "x", "--temperature", "-1"], "temperature is -1.0"),
        (["--prompt", "x", "--top_p", "0.5"], "give a temperature above 0"),
        (["--prompt", "x", "--temperature", "1", "--top_p", "1.5"], "top_p is 1.5"),
        (["--prompt", "x", "--tree", "[2, 2, 2]"], "3 heads draft 2 tokens, and no more"),
        (["--prompt", "x", "--tree", "[20, 20]"], "and 64 are the most"),
        (["--prompt", "x", "--tree", "[0]"], "every draft needs at least one candidate"),
        (["--prompt", "x", "--tree", "[2]", "--temperature", "1", "--accept", "ratio"], "acceptance by match"),
        (["--prompt", "x", "--max_new_tokens", "0"], "max_new_tokens is 0"),
        (
            ["--prompt", "x", "--max_new_tokens", str(10**12)],
            "it has to be at least 1 and at most 1000000",
        ),
        (["--prompt", "x", "--decoding", "greedy", "--heads_used", "2"], "heads_used is 2, and decoding is greedy"),
        (["--prompt", "x", "--decoding", "greedy", "--tree", "[2]"], "tree is [2], and decoding is greedy"),
        (["--prompt", "x", "--temperature", ".nan"], "temperature is nan"),
        (["--prompt", "x", "--temperature", ".inf"], "temperature is inf"),
        (["--prompt", "x", "--json", "nowhere/out.json"], "json: nowhere/out.json cannot be written"),
        (["--prompt", "x", "--json", "."], "json: . cannot be written"),
        (["--prompt", "x", "--json", "x" * 300], "cannot be written: File name too long"),
        (["--prompt", "x\udcff"], "--prompt is not UTF-8 text: invalid start byte at byte 1"),
    ],
)
def test_bad_input_is_told_before_anything_is_printed(ckpt: str, flags: list[str], says: str, capsys: Capture) -> None:
    assert main(["generate", ckpt, *flags]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "a.ckpt", "--prompt", "x"],
        ["data", "sample", "a.ckpt", "--prompts", "p.txt", "--out", "out"],
        ["evaluate", "humaneval", "a.ckpt", "--data", "x.jsonl"],
    ],
)
def test_a_gpu_that_is_not_there_is_refused(
    command: list[str], ckpt: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    before = sorted(Path().iterdir())
    assert main([*command, "--device", "cuda"]) == 2
    assert "device is cuda, and " in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before


def test_one_token_has_no_rate(ckpt: str, capsys: Capture) -> None:
    _, figures = generate(capsys, ckpt, "--prompt", "def", "--max_new_tokens", "1", "--json", "out.json")
    assert "nan" not in figures
    assert figures.startswith("1 tokens, ")
    assert json.loads(Path("out.json").read_text())["tokens_per_forward"] is None


@pytest.mark.parametrize("temperature", ["1e-40", "1e-300", "1e-7"])
def test_next_to_no_temperature_is_greedy(ckpt: str, temperature: str, capsys: Capture) -> None:
    plain, _ = generate(capsys, ckpt, "--prompt", "def", "--max_new_tokens", "9")
    cold, _ = generate(capsys, ckpt, "--prompt", "def", "--max_new_tokens", "9", "--temperature", temperature)
    assert cold == plain


class _Input(io.TextIOWrapper):
    """Standard input of a strict locale."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="ascii", errors="strict")


def test_standard_input_is_utf8_whatever_the_locale(
    ckpt: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("sys.stdin", _Input("é\r\n".encode()))
    assert generate(capsys, ckpt, "--prompt", "-", "--max_new_tokens", "2")[0].startswith("é\r\n")
    monkeypatch.setattr("sys.stdin", _Input(b"ab\xff"))
    assert main(["generate", ckpt, "--prompt", "-"]) == 2
    assert "standard input is not UTF-8 text: invalid start byte at byte 2" in capsys.readouterr().err
    as_c_locale = "é".encode().decode("ascii", errors="surrogateescape")  # how Python hands such an argument over
    assert generate(capsys, ckpt, "--prompt", as_c_locale, "--max_new_tokens", "2")[0].startswith("é")


def test_a_terminal_that_is_not_utf8(ckpt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdout", stdout)
    assert main(["generate", ckpt, "--prompt", "né", "--max_new_tokens", "8"]) == 0
    stdout.flush()
    assert stdout.buffer.getvalue().startswith(b"n?")  # type: ignore[attr-defined]
