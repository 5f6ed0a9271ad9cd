"""Stories whose characters have new names of exactly two tokens (paper, section 4.1). The second token of such a name
cannot be known from sense, only from an earlier mention: AB ... A -> B.

    a girl named lily. lily ran      ->      _a|_girl|_named|_qu|ob|.|_qu|ob|_ran

The new name is put into the text, which is then encoded as a whole, so a mention has the tokens that its place demands.
It counts where these are the name's two, (_qu, ob) above; after a line break or a quotation mark most tokenizers make
"quob" of other tokens, and there it counts neither as a mention nor as the first one.
"""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtp_lightning.data.tokens.tokenizer import Tokenizer
from mtp_lightning.errors import InputError
from mtp_lightning.shapes import Bool, Int

_WORD = re.compile(r"[^\W\d_]+")
FIRST_NAMES = frozenset(
    _WORD.findall("""
    abby abigail adam alex alexander alfie alice amanda amelia amy andrew andy angela anna anne annie anthony arthur
    barbara becky bella ben benjamin benny beth betsy betty billy bob bobby brian bruce carl carla carlos carol
    caroline cathy charles charlie charlotte chloe chris christopher cindy claire clara daniel danny dave david
    diana dora dorothy eddie edward elena eliza elizabeth ella ellen ellie elsie emily emma emmy eric ethan eva
    evelyn fiona freddie freddy gary george gina gretel hannah hansel harold harry heidi helen henry hugo ian
    isabella jack jackie jacob jake james jamie jane janet jasmine jason jeff jennifer jenny jeremy jerry jessica
    jessie jill jim jimmy joan joe joey johan john johnny jonathan joseph josh joshua judy julia julian julie karen
    kate katherine kathy katie kelly kevin kim larry laura lauren leah leo leon lewis liam lila lilly lily linda
    lisa lizzie lola louis louisa louise lucas lucy luke lulu luna maggie mandy marcus margaret maria marie martha
    martin mary matthew max maya megan mia michael mickey mike millie milly mimi molly nancy natalie nathan nicholas
    nicole nina noah nora oliver olivia oscar pam patrick paul paula peggy pete peter philip polly rachel ralph
    rebecca rita robbie robert roger ronnie rosie ryan sally sam samantha sammy samuel sara sarah sebastian simon
    sofia sophia sophie stella stephen steve steven sue susan susie suzy tara thomas tilly tim timmy tina tobias
    toby todd tom tommy tony tracy tyler victor victoria vincent walter wendy william zoe zoey
    """)
)
"""First names that children's stories use and that are not also words: no rose, will, mark, hope or bill."""
NO_NAMES = frozenset(
    _WORD.findall("""
    a about after again all also an and are as at aunt away back because big but by can children come could dad daddy
    did do doctor dog down each every everyone everybody for friend friends from girl go goodbye good grandma grandpa
    granny had has have he hello help her here hers hi him his how i if in into is it its just let like little look
    loudly lots love man mama may me mister miss mom mommy more mr mrs mum mummy my names no nobody not now of off on
    one or our out over papa people she sir so some someone something softly some stop such than that the their them
    then there these they this those to together too two uncle up us very was we were what when where which who why
    will with would yes you your
    """)
)
"""What may follow "named" or "called" and names no one."""
_INTRODUCED = re.compile(r"\b(?:named|called|names? (?:was|were|is|are))\s+[\"'“‘]?([^\W\d_]+)", re.IGNORECASE)
_ARTICLE = re.compile(r"\b(?:an?|the|my|your)\s+([^\W\d_]+)", re.IGNORECASE)

LONG = 2
"""Letters that each token of a name has at least, if ENOUGH tokens have."""
ENOUGH = 32
"""Tokens to choose from, below which the choice is not narrowed further."""
MOST_TRIES = 10_000
"""Pairs of tokens drawn for one name."""


class NamedStories(NamedTuple):
    """Stories with two-token names, padded on the right with token 0, and their M counted mentions in reading order."""

    tokens: Int[np.ndarray, "B L"]
    lengths: Int[np.ndarray, "B"]
    """Tokens of a row that are no padding."""
    rows: Int[np.ndarray, "M"]
    positions: Int[np.ndarray, "M"]
    """Where in its row the mention's second token is."""
    occurrences: Int[np.ndarray, "M"]
    """1 at a name's first counted mention, then 2, 3, ..."""
    names: Int[np.ndarray, "M"]
    """Which of `pairs`."""
    pairs: Int[np.ndarray, "K 2"]
    """The tokens of every name; no two names of a story share one."""
    candidates: int
    """Tokens that a name's second one was drawn from."""


def characters(story: str) -> list[str]:
    """Names mentioned twice or more, as written, in the order of their first mention.

    A name is a word of FIRST_NAMES, or one that follows "named", "called" or "name was" and is none of NO_NAMES. A word
    after an article is a thing in this story ("a spot"), whatever it is called. In a story with capital letters only
    capitalised words are names, and mentions of "Spot" are not of "spot"; a story without any is lower-cased, and so
    are its names. "lily's" mentions lily.
    """
    words = _WORD.findall(story)
    lower_cased = story == story.lower()
    introduced, things = ({word.lower() for word in p.findall(story)} for p in (_INTRODUCED, _ARTICLE))
    named = (FIRST_NAMES | introduced - NO_NAMES) - things
    return [
        word
        for word in dict.fromkeys(words)
        if word.lower() in named and len(word) > 1 and (lower_cased or word.istitle()) and words.count(word) > 1
    ]


class NameMaker:
    """Draws names of exactly two tokens: the first one begins a word, the second one goes on with it.

    Where tokens hold the space before a word, (" qu", "ob"), only these begin one; with bytes any letter does.

    Args:
        allowed: which tokens may be used, by default all; the ones that occur in the training data, say.
    """

    def __init__(self, tokenizer: Tokenizer, allowed: Bool[np.ndarray, "V"] | None = None) -> None:
        self.tokenizer = tokenizer
        before = tokenizer.encode("a")  # some tokenizers decode a space at the very start to nothing
        cut = len(tokenizer.decode(before))
        ids = range(tokenizer.vocab_size) if allowed is None else np.flatnonzero(allowed).tolist()
        texts = {i: tokenizer.decode([*before, i])[cut:] for i in ids}
        spaced = {i: text for i, text in texts.items() if text.startswith(" ") and text[1:].isalpha()}
        inner = {i: text for i, text in texts.items() if text.isalpha()}
        self.allowed = len(ids)
        self.text = inner | spaced
        self.lead = "a" if spaced else "a "
        """The text before a name that is tried."""
        self.firsts = {capital: _pool(spaced or inner, capital) for capital in (False, True)}
        self.seconds = _pool(inner, capital=False)

    def draw(
        self, rng: np.random.Generator, capitals: Sequence[bool], words: Collection[str], story: Sequence[int]
    ) -> list[tuple[str, tuple[int, int]]]:
        """Different names with their two tokens, any pair with the same chance; no two names share a token.

        Args:
            capitals: of each name, whether its first letter is one.
            words: in lower case; no name is among them.
            story: tokens that no name begins with, as long as enough others are left. Then a name's first token shows
                which name it is.

        Raises:
            InputError: there is none, or it is too rare to be found.
        """
        taken = {*story}
        fresh = {capital: [i for i in firsts if i not in taken] for capital, firsts in self.firsts.items()}
        drawn: list[tuple[str, tuple[int, int]]] = []
        for capital in capitals:
            firsts = fresh[capital] if len(fresh[capital]) >= ENOUGH else self.firsts[capital]
            used = {token for _, pair in drawn for token in pair}
            drawn.append(self._draw_one(rng, firsts, words, used))
        return drawn

    def _draw_one(
        self, rng: np.random.Generator, firsts: Sequence[int], words: Collection[str], used: set[int]
    ) -> tuple[str, tuple[int, int]]:
        start = self.tokenizer.encode(self.lead)
        for _ in range(MOST_TRIES if firsts and self.seconds else 0):
            first, second = (pool[int(rng.integers(len(pool)))] for pool in (firsts, self.seconds))
            pair = (first, second)
            text = self.text[first] + self.text[second]
            new = text.strip().lower() not in words and first != second and used.isdisjoint(pair)
            if new and self.tokenizer.encode(self.lead + text) == [*start, *pair]:
                return text.strip(), pair
        raise InputError(
            f"data.tokenizer: found no name of exactly two tokens: of {self.allowed} tokens allowed, {len(firsts)} are "
            f"letters that begin a word, {len(self.seconds)} are letters that go on with one, and up to {MOST_TRIES} "
            "pairs of these were tried; take a tokenizer of word pieces, such as `mtp data train-tokenizer` trains, or "
            "'bytes'"
        )


def named_stories(
    stories: Sequence[str],
    tokenizer: Tokenizer,
    count: int,
    max_tokens: int,
    seed: int,
    allowed: Bool[np.ndarray, "V"] | None = None,
) -> NamedStories:
    """The first `count` stories, or as many as there are, where a name is mentioned twice in the first `max_tokens`.

    All names of a story are replaced, by new ones that are no words of any of the stories. A story's new names depend
    on the seed and its place in `stories`. Its tokens are what encoding their text gives, before the end is cut off.

    Args:
        allowed: which tokens names may be made of; all by default.

    Raises:
        InputError: no names of two tokens, or no such story.
    """
    maker = NameMaker(tokenizer, allowed)
    words = {word.lower() for story in stories for word in _WORD.findall(story)}
    found, with_names = [], 0
    for place, story in enumerate(stories):
        old = characters(story)
        if not old:
            continue
        with_names += 1
        rng = np.random.default_rng([seed, place])
        new = maker.draw(rng, [name.istitle() for name in old], words, tokenizer.encode(story))
        renamed = _rename(story, dict(zip(old, new)), tokenizer, max_tokens)
        if renamed is not None:
            found.append(renamed)
        if len(found) == count:
            break
    if not with_names:
        raise InputError(
            f"none of the {len(stories)} stories has a name that is mentioned twice: a name is a common first name "
            'such as lily or tom, or the word after "named", "called" or "name was"'
        )
    if not found:
        raise InputError(
            f"none of the {with_names} stories with names mentions one twice, as two tokens, in its first {max_tokens} "
            "tokens; allow more tokens, or take other stories"
        )
    return _joined(found, len(maker.seconds))


class _Renamed(NamedTuple):
    """One story."""

    ids: list[int]
    pairs: list[tuple[int, int]]
    mentions: list[tuple[int, int, int]]
    """(position, occurrence, index in `pairs`)"""


def _rename(
    story: str, new: Mapping[str, tuple[str, tuple[int, int]]], tokenizer: Tokenizer, max_tokens: int
) -> _Renamed | None:
    """The story with its names replaced; None where none is mentioned twice, or the tokenizer cannot write the text.

    Args:
        new: old name -> new name and its tokens.
    """
    ids = tokenizer.encode(_WORD.sub(lambda word: new[word[0]][0] if word[0] in new else word[0], story))
    text = tokenizer.decode(ids)
    if tokenizer.encode(text) != ids:
        return None
    ids = ids[:max_tokens]
    pairs = [pair for _, pair in new.values()]
    tokens_of = dict(new.values())
    ends = {word.end(): tokens_of[word[0]] for word in _WORD.finditer(text) if word[0] in tokens_of}
    mentions: list[tuple[int, int, int]] = []
    seen = [0] * len(pairs)
    for position, pair in enumerate(itertools.pairwise(ids), start=1):
        # where the pair ends but no mention does, a longer word has the name inside it (with bytes)
        if pair in pairs and ends.get(len(tokenizer.decode(ids[: position + 1]))) == pair:
            name = pairs.index(pair)
            seen[name] += 1
            mentions.append((position, seen[name], name))
    return _Renamed(ids, pairs, mentions) if max(seen) > 1 else None


def _pool(texts: Mapping[int, str], capital: bool) -> list[int]:
    """Tokens of capitalised or of lower-case letters; without the short ones, if there are enough others."""
    fitting = {i: text.strip() for i, text in texts.items() if (text.istitle() if capital else text.islower())}
    long = [i for i, text in fitting.items() if len(text) >= LONG]
    return long if len(long) >= ENOUGH else list(fitting)


def _joined(found: Sequence[_Renamed], candidates: int) -> NamedStories:
    lengths = np.array([len(story.ids) for story in found])
    tokens = np.zeros((len(found), lengths.max()), dtype=np.int64)
    for row, story in enumerate(found):
        tokens[row, : len(story.ids)] = story.ids
    first_pair = np.cumsum([0, *(len(story.pairs) for story in found)])
    mentions = np.array([(row, *m) for row, story in enumerate(found) for m in story.mentions], dtype=np.int64)
    rows, positions, occurrences, own = mentions.T
    pairs = np.array([pair for story in found for pair in story.pairs], dtype=np.int64)
    return NamedStories(tokens, lengths, rows, positions, occurrences, first_pair[rows] + own, pairs, candidates)
