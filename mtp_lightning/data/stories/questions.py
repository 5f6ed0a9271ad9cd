"""Questions about stories with one right answer each, for fine-tuning: who is in a story, and how it ends.

    Once upon a time, there was a kind little girl named Lily. ...

    Who is in the story?
    Lily, Ben, Ziggy

Pair i is a function of (seed, i). A pair is named by a hash of its story, so that the same story never comes on both
sides of a split, whatever it is asked.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from mtp_lightning.data.stories.generator import Story, tell

SEED = 2
"""Of the stories asked about, which the corpus `stories` (seed 0) and the probes (seed 1) do not have."""
_SENTENCE_END = re.compile(r'(?<=[.!?"])(?<!Mr\.)(?<!Mrs\.) (?=["A-Z])')


class StoryPair(NamedTuple):
    name: str
    prompt: str
    answer: str


def names(story: Story) -> str:
    """`Lily, Ben, Ziggy`, in the order in which the story first names them."""

    def place(name: str) -> int:
        found = re.search(rf"\b{re.escape(name)}\b", story.text)
        assert found is not None, "a plot names all of its characters"
        return found.start()

    return ", ".join(sorted((character.name for character in story.characters), key=place))


def ending(story: Story) -> str:
    """The last sentence."""
    return _SENTENCE_END.split(story.text.split("\n\n")[-1])[-1]


QUESTIONS = {"Who is in the story?": names, "How does the story end?": ending}


def story_pairs(count: int, seed: int = SEED, invented_names: bool = False) -> Iterator[StoryPair]:
    """Of `count` stories, each with one of the questions."""
    asked = list(QUESTIONS)
    for index in range(count):
        story = tell(index, seed, invented_names)
        question = asked[int(random.Random(f"{seed}/{index}/question").random() * len(asked))]
        name = hashlib.sha256(story.text.encode()).hexdigest()[:16]
        yield StoryPair(name, f"{story.text}\n\n{question}\n", QUESTIONS[question](story))
