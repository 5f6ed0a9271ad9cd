"""Pairs out of generated stories."""

import hashlib
import json
from pathlib import Path

from test_data_pairs import stored

from mtp_lightning.cli import main
from mtp_lightning.data import SourceConfig, TokenDataModule
from mtp_lightning.data.corpora.documents import documents
from mtp_lightning.data.stories.generator import stories, tell
from mtp_lightning.data.stories.questions import SEED


def test_story_pairs_are_answered_by_their_stories_and_kept_apart() -> None:
    """Names and the last sentence, found again in the text; the name of a pair is its story's alone."""
    found = list(documents(SourceConfig(kind="story_pairs", max_documents=300)))
    told = {story.text: story for story in (tell(i, SEED) for i in range(300))}
    asked: dict[str, int] = {}
    for document in found:
        question, answer = document.parts
        story, line = question.rsplit("\n\n", 1)
        asked[line] = asked.get(line, 0) + 1
        if line == "Who is in the story?\n":
            assert sorted(answer.split(", ")) == sorted(character.name for character in told[story].characters)
            first = [story.index(name) for name in answer.split(", ")]
            assert first == sorted(first)
        else:
            assert line == "How does the story end?\n"
            assert story.endswith(answer)
            assert answer[0].isupper() or answer[0] == '"'
            assert story.removesuffix(answer)[-1] in " \n"
        assert document.name == hashlib.sha256(story.encode()).hexdigest()[:16]
    assert min(asked.values()) > 100
    assert found[:20] == list(documents(SourceConfig(kind="story_pairs", max_documents=20)))
    assert not set(told) & set(stories(300)), "others than those that are pretrained on"


def test_story_pairs_as_a_file_are_those_that_are_trained_on(tmp_path: Path) -> None:
    sides = []
    for side in ("train", "validation", "all"):
        assert main(["data", "pairs", str(tmp_path / f"{side}.jsonl"), "--count", "60", "--side", side]) == 0
        rows = [json.loads(line) for line in (tmp_path / f"{side}.jsonl").read_text().splitlines()]
        sides.append({(row["prompt"], row["completion"]) for row in rows})
    assert sides[0] | sides[1] == sides[2]
    assert [len(side) for side in sides] == [60 - len(sides[1]), len(sides[1]), 60]
    source = SourceConfig(kind="story_pairs", max_documents=60)
    data = TokenDataModule(source=source, context=1152, directory=str(tmp_path / "cache"))
    data.prepare_data()
    data.setup("validate")
    assert set(stored(data.validation_store)) == sides[1]
    assert main(["data", "pairs", str(tmp_path / "all.jsonl")]) == 2
    for seed in "012345":
        few = ["data", "pairs", str(tmp_path / f"{seed}.jsonl"), "--count", "3", "--split_seed", seed]
        assert main([*few, "--side", "validation"]) == 0
        assert (tmp_path / f"{seed}.jsonl").read_text(), "a run has a validation document, whatever chance says"
    assert main(["data", "pairs", str(tmp_path / "x.jsonl"), "--count", "0"]) == 2
