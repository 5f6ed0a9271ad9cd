import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from mtp_lightning.data.stories.names import ENOUGH, FIRST_NAMES, NamedStories, NameMaker, characters, named_stories
from mtp_lightning.data.tokenizers.training import train_bpe
from mtp_lightning.data.tokens.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer
from mtp_lightning.errors import InputError

THINGS = ["kite", "basket", "window", "garden", "pencil", "bucket", "ladder", "pillow", "candle", "mirror", "whistle"]
PEOPLE = ["lily", "tom", "spot", "anna", "max"]
LONG = 10_000


def story(i: int) -> str:
    """Two characters, mentioned in mid-line, after a line break, after a quotation mark and with a possessive."""
    a, b = PEOPLE[i % 5], PEOPLE[(i + 1) % 5]
    one, two, three = (THINGS[i * k % len(THINGS)] for k in (1, 2, 7))
    return (
        f"once there was a child named {a} with a {one}. {a}'s friend was called {b}, who was {i % 9} years old.\n\n"
        f'{b} saw that {a} had lost the {two}. "{a}, look behind the {three}!" said {b}. so {a} and {b} went looking.'
    )


STORIES = [
    text for i in range(30) for text in (story(i), f"a {THINGS[i % 11]} fell from the {THINGS[i % 7]} and broke.")
]


def bpe(texts: Sequence[str] = STORIES, size: int = 600) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(train_bpe(iter(texts), size))


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return ByteTokenizer() if request.param == "bytes" else bpe()


def texts_of(built: NamedStories, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(row[:length].tolist()) for row, length in zip(built.tokens, built.lengths)]


def names_in(built: NamedStories, tokenizer: Tokenizer, row: int) -> dict[str, tuple[int, int]]:
    used = {int(name) for r, name in zip(built.rows, built.names) if r == row}
    return {tokenizer.decode(built.pairs[name].tolist()).strip(): tuple(built.pairs[name].tolist()) for name in used}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a little girl named lily saw tom. tom liked lily's hat.", ["lily", "tom"]),
        ("a little girl named lily saw a cat.", []),  # mentioned once
        ("a dog called fluffy ran. fluffy barked.", ["fluffy"]),
        ("his name was zed. zed was old, and zed's dog was named rex.", ["zed"]),
        ("it was named after the king. after that they called out to the king. out he came.", []),
        ("she called her friend. her friend came. they named it. it was good.", []),
        ("a dog named spot saw a spot. spot barked.", []),  # a thing in this story
        ("lilypad and tomcat, lilypad and tomcat", []),  # whole words
        ("A girl named Lily met Tom. Lily and Tom played on lily pads.", ["Lily", "Tom"]),
        ("There was a tom and a lily. Some tom, some lily.", []),  # a capitalised story has capitalised names
        ("A dog named Spot ran. Spot ran to MAX and MAX.", ["Spot"]),
        ('a bird named "pip" sang. pip sang.', ["pip"]),
        ("", []),
    ],
)
def test_characters(text: str, names: list[str]) -> None:
    assert characters(text) == names


def test_the_list_of_names() -> None:
    assert len(FIRST_NAMES) >= 80
    assert all(name.isalpha() and name.islower() for name in FIRST_NAMES)


def test_stories_are_the_same_but_for_their_names(tokenizer: Tokenizer) -> None:
    built = named_stories(STORIES, tokenizer, 20, LONG, seed=0)
    told = [text for text in STORIES if characters(text)][:20]
    assert len(built.tokens) == 20
    for row, (new, old) in enumerate(zip(texts_of(built, tokenizer), told)):
        assert tokenizer.encode(new) == built.tokens[row, : built.lengths[row]].tolist()
        assert new != old
        assert re.sub(rf"\b({'|'.join(names_in(built, tokenizer, row))})\b", "*", new) == re.sub(
            rf"\b({'|'.join(characters(old))})\b", "*", old
        )


def test_mentions_by_brute_force(tokenizer: Tokenizer) -> None:
    """What stands before a mention is encoded on its own: its tokens say where the mention's are."""
    space = 0 if isinstance(tokenizer, ByteTokenizer) else 1  # whether the space before belongs to the name's tokens
    built = named_stories(STORIES, tokenizer, 30, LONG, seed=1)
    expected = []
    skipped = 0
    for row, text in enumerate(texts_of(built, tokenizer)):
        counts: dict[str, int] = {}
        pairs = names_in(built, tokenizer, row)
        for match in re.finditer(rf"\b({'|'.join(pairs)})\b", text):
            place = len(tokenizer.encode(text[: match.start() - space]))
            if tuple(built.tokens[row, place : place + 2].tolist()) == pairs[match[1]]:
                counts[match[1]] = counts.get(match[1], 0) + 1
                expected.append((row, place + 1, counts[match[1]], pairs[match[1]]))
            else:
                assert text[match.start() - 1] in '\n"'
                skipped += 1
    pairs_M = [tuple(pair) for pair in built.pairs[built.names].tolist()]
    assert [*zip(built.rows, built.positions, built.occurrences, pairs_M)] == expected
    assert skipped == (
        60 if space else 0
    )  # with BPE, the mention after a line break and the one after a quotation mark
    assert built.occurrences.max() == (4 if space else 5)


def test_names_are_two_new_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    built = named_stories(STORIES, tokenizer, 30, LONG, seed=2)
    words = set(re.findall(r"\w+", " ".join(STORIES)))
    spaced = not isinstance(tokenizer, ByteTokenizer)
    for row in range(30):
        names = names_in(built, tokenizer, row)
        assert len(names) == 2
        assert len({token for pair in names.values() for token in pair}) == 4
        for name, pair in names.items():
            assert name.isalpha()
            assert name.islower()
            assert name not in words
            assert tokenizer.encode(f"and {name}") == [*tokenizer.encode("and" if spaced else "and "), *pair]
            if spaced:
                assert (built.tokens[row] == pair[0]).sum() == (
                    (built.pairs[built.names, 0] == pair[0]) & (built.rows == row)
                ).sum()
            else:
                assert len(name) == 2


def test_pieces_are_drawn_uniformly() -> None:
    maker = NameMaker(ByteTokenizer())
    rng = np.random.default_rng(0)
    drawn = [maker.draw(rng, [False, True], (), ()) for _ in range(3000)]
    assert maker.firsts == {False: [*range(97, 123)], True: [*range(65, 91)]}
    assert maker.seconds == [*range(97, 123)]
    for i in (0, 1):
        for part in (0, 1):
            counts = np.bincount([names[i][1][part] for names in drawn])
            counts = counts[counts > 0]
            assert len(counts) == 26
            assert counts.max() < 2 * counts.min()


def test_short_pieces_are_left_out_where_others_are_enough() -> None:
    maker = NameMaker(bpe())
    assert len(maker.firsts[False]) >= ENOUGH
    assert all(len(maker.text[i].strip()) >= 2 for i in maker.firsts[False] + maker.seconds)


def test_capitalised_stories_get_capitalised_names(tokenizer: Tokenizer) -> None:
    told = [re.sub(rf"\b({'|'.join(PEOPLE)})\b", lambda m: m[0].capitalize(), story(i)) for i in range(30)]
    told = [*told, " ".join(f"A{c} B{c} C{c}" for c in "abcdefghijklmnop")]  # pieces to begin names with
    tokenizer = tokenizer if isinstance(tokenizer, ByteTokenizer) else bpe(told)
    built = named_stories(told, tokenizer, 5, LONG, seed=0)
    assert all(name.istitle() for row in range(5) for name in names_in(built, tokenizer, row))


def test_seeds(tokenizer: Tokenizer) -> None:
    def build(count: int = 10, seed: int = 0) -> NamedStories:
        return named_stories(STORIES, tokenizer, count, LONG, seed)

    one, same = build(), build()
    assert all(np.array_equal(getattr(one, field), getattr(same, field)) for field in NamedStories._fields)
    assert not np.array_equal(build().pairs, build(seed=1).pairs)
    assert np.array_equal(build(count=4).pairs, build().pairs[: len(build(count=4).pairs)])
    assert len({tuple(pair) for pair in build().pairs.tolist()}) > 10


def test_names_of_allowed_tokens_only(tokenizer: Tokenizer) -> None:
    everything = NameMaker(tokenizer)
    chosen = everything.firsts[False][::2] + everything.seconds[::2]
    allowed = np.isin(np.arange(tokenizer.vocab_size), chosen)
    built = named_stories(STORIES, tokenizer, 30, LONG, 0, allowed)
    assert allowed[built.pairs].all()
    assert built.candidates == len(NameMaker(tokenizer, allowed).seconds) < len(everything.seconds)
    assert not allowed[named_stories(STORIES, tokenizer, 30, LONG, 0).pairs].all()


def test_cut_off_stories(tokenizer: Tokenizer) -> None:
    """Cut in the middle of a mention for every story in turn: it is as if the rest had never been there."""
    whole = named_stories(STORIES, tokenizer, 30, LONG, 0)
    for row in range(0, 30, 6):
        places = whole.positions[(whole.rows == row) & (whole.occurrences == 3)]
        limit = int(places[0])
        cut = named_stories(STORIES, tokenizer, 30, limit, 0)
        again = whole.positions < limit
        kept = [r for r in range(30) if (whole.occurrences[again & (whole.rows == r)] > 1).any()]
        assert row in kept
        assert cut.lengths.tolist() == [min(whole.lengths[r], limit) for r in kept]
        for new, old in enumerate(kept):
            assert np.array_equal(
                cut.tokens[new], np.where(np.arange(limit) < whole.lengths[old], whole.tokens[old, :limit], 0)
            )
            ours, theirs = cut.rows == new, again & (whole.rows == old)
            assert np.array_equal(cut.positions[ours], whole.positions[theirs])
            assert np.array_equal(cut.occurrences[ours], whole.occurrences[theirs])


def test_stories_without_a_second_mention_in_range_are_left_out() -> None:
    late = "tom " + "went on and " * 50 + "on, said tom."
    built = named_stories([late, story(0), late], ByteTokenizer(), 3, 300, 0)
    assert texts_of(built, ByteTokenizer())[0].startswith("once there was a child")
    assert len(built.tokens) == 1


def test_padding_is_no_mention(tokenizer: Tokenizer) -> None:
    built = named_stories([story(0), "tom ran. so tom fell. so tom ran."], tokenizer, 2, LONG, 0)
    assert built.lengths[0] > built.lengths[1]
    assert (built.tokens[1, built.lengths[1] :] == 0).all()
    assert (built.positions < built.lengths[built.rows]).all()


def test_stories_that_the_tokenizer_cannot_write_are_left_out() -> None:
    """A sentencepiece-like tokenizer: spaces in its tokens, and none for what it has not seen."""
    pieces = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    pieces.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>", "<unk>"], show_progress=False)
    pieces.train_from_iterator(STORIES, trainer)
    tokenizer = HuggingFaceTokenizer(pieces.to_str())
    built = named_stories([story(0) + " 100 €!", story(1), story(2) + " €"], tokenizer, 3, LONG, 0)
    (text,) = texts_of(built, tokenizer)
    assert tokenizer.encode(text) == built.tokens[0].tolist()
    assert all(name.isalpha() and len(pair) == 2 for name, pair in names_in(built, tokenizer, 0).items())


def test_no_names() -> None:
    with pytest.raises(InputError, match=r'none of the 2 stories has a name that is mentioned twice.*"named"'):
        named_stories(["a cat sat.", "lily ran."], ByteTokenizer(), 5, LONG, 0)
    with pytest.raises(
        InputError, match=r"none of the 1 stories with names mentions one twice.*in its first 20 tokens"
    ):
        named_stories([story(0), "a cat sat."], ByteTokenizer(), 5, 20, 0)


def test_no_names_of_two_tokens() -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=["</s>", "<unk>"], show_progress=False)
    words.train_from_iterator(STORIES, trainer)
    with pytest.raises(
        InputError, match=r"data\.tokenizer: found no name of exactly two tokens: of \d+ tokens allowed"
    ):
        named_stories(STORIES, HuggingFaceTokenizer(words.to_str()), 5, LONG, 0)
    only_one = np.isin(np.arange(256), [*b"q"])
    with pytest.raises(InputError, match="of 1 tokens allowed, 1 are letters that begin a word, 1 are letters"):
        named_stories(STORIES, ByteTokenizer(), 5, LONG, 0, only_one)


def test_real_stories() -> None:
    folder = os.environ.get("MTP_DATA_DIR")
    file = Path(folder or "") / "stories" / "tinystories-lower-4M.txt"
    if not folder or not file.is_file():
        pytest.skip("MTP_DATA_DIR does not name a folder with stories/tinystories-lower-4M.txt")
    told = re.split(r"(?<!\n)\n(?!\n)", file.read_text(encoding="utf-8"))[:1500]  # an empty line is inside a story
    assert np.mean([bool(characters(text)) for text in told]) > 0.5
    tokenizer = bpe(told, 1024)
    built = named_stories(told, tokenizer, 100, 512, 0)
    assert len(built.tokens) == 100
    assert (built.occurrences > 1).sum() > 300
    for row, text in enumerate(texts_of(built, tokenizer)):
        if built.lengths[row] < 512:
            assert tokenizer.encode(text) == built.tokens[row, : built.lengths[row]].tolist()
