"""An attack that sees probabilities only: a few words replaced by their like, until it succeeds.

It is a plain form of TextFooler (Jin et al. 2020, "Is BERT Really Robust?", algorithm 1): rank the
words by how much the true label's probability falls without them, then replace the first ones by
whatever of their candidates lowers it most. Nothing is drawn at random: the same model and texts
give the same result.

**Who says that the label stays?** Words of opposite meaning stand in the same contexts, so they are
neighbours in any embedding: "weak" lies nearer to "strong" than to "feeble". `synonym_table` lets a
word with a verdict in it (`POSITIVE`, `NEGATIVE`) be replaced only by one of the same list, a word
without one only by such a word, and leaves function words, "not" among them, alone. The lists are
short and no person has read the changed texts: an accuracy under this attack is that on texts
which probably kept their label, and a lower bound of what a better attack would find.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

WORD = re.compile(r"(?<![\w'])[A-Za-z]{3,}(?![\w'])")  # no "didn't": its "not" has to stay


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


POSITIVE = _listed("""
    admirable admire amazed amazing amazingly ambitious amused amusing appealing authentic
    awesome beautiful beautifully beauty believable best better brave brilliant brilliantly
    captivating charm charming cheerful classic clean clear clever comfortable compelling
    convincing convincingly cool creative credible decent delicate delicious delight delighted
    delightful easy effective elegant engaging enjoy enjoyable enjoyed entertaining enthralling
    excellent exceptional exciting exquisite fabulous fantastic fantastically fascinating fast
    faster favorite favourite fine finest flawless fresh fun funny gem generous gentle genuine
    glad good gorgeous graceful great greater greatest gripping handsome happy heartfelt
    hilarious honest hope hopeful humorous imaginative impressed impressive incredible inspired
    inspiring intelligent interested interesting inventive joy joyful kind like liked likes
    lively love loved lovely loves loving magical magnificent marvelous masterful masterpiece
    memorable moving nice original outstanding perfect perfectly plausible pleasant pleased
    pleasing pleasure polished positive powerful praise praised pretty quick quicker realistic
    recommend recommended refreshing reliable remarkable rewarding rich right satisfied
    satisfying sensible sharp smart smooth solid splendid strong stronger stunning sturdy subtle
    success successful superb superior surprising sweet talented tender terrific thrilling
    touching tremendous triumph true truthful unforgettable useful vivid warm warmth wise witty
    wonderful wonderfully worth worthy
""")
NEGATIVE = _listed("""
    absurd annoyed annoying appalling artificial ashamed atrocious awful awfully awkward bad
    badly bland bored boredom boring broke broken cheap cheaply cheesy cliche clumsy cold
    complain confused confusing contrived crap crude cruel damaged dated dead depressing
    difficult dire dirty disappoint disappointed disappointing disappointment disaster
    disgusting dislike dreadful dreary dull dumb embarrassed embarrassing evil fail failed
    failing fails failure fake false faulty flat flawed foolish forced forgettable frustrating
    garbage hard harsh hate hated hates hideous hollow horrible horribly horrid horrific
    implausible impossible inept inferior insulting irritating joke lacking lacks lame laughable
    lazy lifeless loud ludicrous mediocre mess messy miserable misery mistake mundane nasty
    negative negatively noisy nonsense offensive ordinary overrated painful pathetic plain
    pointless poor poorly predictable pretentious problem problems regret ridiculous rough
    rubbish rude ruined sad scary shallow shitty silly sloppy slow slower slowing slowly sorry
    stale stiff stupid stupidity tedious terrible terribly terrifying tired tiresome trash trite
    trivial ugly unbelievable unconvincing uneven unfunny unhappy unlikable unoriginal
    unpleasant unpleasantly useless vague waste wasted weak weaker weakest weakly weakness weird
    wooden worse worst worthless wrong
""")


@dataclass(frozen=True)
class Budget:
    """What the attack may spend on one text."""

    words: int = 3  # words replaced, at most
    queries: int = 100  # texts the model is asked about, at most; the text as it is counts as one

    def __post_init__(self):
        for name in ("words", "queries"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number from 1, found {value!r}")


@dataclass(frozen=True)
class Attack:
    """What became of one text."""

    text: str  # as changed; where nothing was flipped, the form with the least probability found
    correct_before: bool  # a text that is wrong as it stands is not attacked
    flipped: bool  # right before and wrong now
    changes: tuple[tuple[str, str], ...]  # (word, its replacement), in the order made
    queries: int  # texts the model was asked about

    @property
    def correct(self) -> bool:
        """Right under attack: right before and not flipped."""
        return self.correct_before and not self.flipped


def substitution_attack(
    predict: Callable[[list[str]], np.ndarray], texts: Sequence[str], labels: Sequence[int],
    candidates: Mapping[str, Sequence[str]], budget: Budget | None = None,
) -> list[Attack]:
    """Replace words of each text until the model's answer is wrong or the budget is spent.

    All texts advance together, so that `predict` reads many at once.

    Args:
        predict: maps texts to probabilities (N, C).
        texts: N texts.
        labels: N true labels; each stays true of its changed text, see above.
        candidates: for a word in lower case, its replacements: see `synonym_table`.
        budget: for each text; 3 words and 100 queries by default.

    Raises:
        ValueError: unequal numbers of texts and labels, or probabilities of another shape.
    """
    if len(texts) != len(labels):
        raise ValueError(f"expected one label for each text, found {len(texts)} texts and "
                         f"{len(labels)} labels")
    budget = budget or Budget()
    attacks = [_attack(text, label, candidates, budget)
               for text, label in zip(texts, labels, strict=True)]  # fmt: skip
    asked = {i: next(attack) for i, attack in enumerate(attacks)}
    done: dict[int, Attack] = {}
    while asked:
        probabilities = predict([text for questions in asked.values() for text in questions])
        total = sum(map(len, asked.values()))
        if np.ndim(probabilities) != 2 or len(probabilities) != total:
            raise ValueError(f"predict: expected probabilities of shape ({total}, C) for {total} "
                             f"texts, found {np.shape(probabilities)}")
        ends = np.cumsum([len(questions) for questions in asked.values()])
        answers = zip(asked, np.split(probabilities, ends[:-1]), strict=True)
        asked = {}
        for i, answer in answers:
            try:
                asked[i] = attacks[i].send(answer)
            except StopIteration as end:
                done[i] = end.value
    return [done[i] for i in range(len(texts))]


def _attack(
    text: str, label: int, candidates: Mapping[str, Sequence[str]], budget: Budget
) -> Generator[list[str], np.ndarray, Attack]:
    """One text's attack: yields the texts to ask about, is sent their probabilities (n, C)."""
    p = (yield [text])[0]
    queries, changes, lowest = 1, [], p[label]
    if p.argmax() != label:
        return Attack(text, False, False, (), queries)
    words = [m for m in WORD.finditer(text) if candidates.get(m.group().lower())]
    # At most half of what is left is spent on ranking; of a long text, words all along it.
    few = (budget.queries - queries) // 2
    if len(words) > few:
        words = [words[i] for i in np.linspace(0, len(words) - 1, few).round().astype(int)]
    if len(words) > 1:
        p = yield [text[: m.start()] + text[m.end() :] for m in words]
        queries += len(words)
        words = [words[i] for i in np.argsort(p[:, label], kind="stable")]  # of equals the first
    moved: list[tuple[int, int]] = []  # (where, by how much) what follows has moved
    for word in words:
        room = budget.queries - queries
        if len(changes) == budget.words or room == 0:
            break
        new = [_in_the_case_of(word.group(), c) for c in candidates[word.group().lower()]][:room]
        start = word.start() + sum(by for at, by in moved if at < word.start())
        tried = [text[:start] + c + text[start + len(word.group()) :] for c in new]
        p = yield tried
        queries += len(tried)
        best = int(p[:, label].argmin())
        wrong = p.argmax(axis=1) != label
        if wrong.any() or p[best, label] < lowest:
            best = int(np.where(wrong, p[:, label], 2).argmin()) if wrong.any() else best
            text, lowest = tried[best], p[best, label]
            changes.append((word.group(), new[best]))
            moved.append((word.start(), len(new[best]) - len(word.group())))
        if wrong.any():
            return Attack(text, True, True, tuple(changes), queries)
    return Attack(text, True, False, tuple(changes), queries)


def synonym_table(
    texts: Iterable[str], tokenizer: Any, embeddings: Float[Tensor, "vocabulary width"],
    threshold: float = 0.5, most: int = 8,
) -> dict[str, list[str]]:
    """For the words of some texts, their nearest neighbours among a model's word embeddings.

    Args:
        texts: whose words are looked up.
        tokenizer: of the model; words that it cuts in pieces have no embedding and no neighbours.
        embeddings: (V, D), a row for each token id: `model.get_input_embeddings().weight`.
        threshold: least cosine between a word and its replacement.
        most: replacements of a word, nearest first.

    Returns:
        Replacements by word, in lower case; words without any are left out.

    Raises:
        ValueError: a threshold outside 0…1, or fewer embeddings than tokens.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a cosine in 0…1, found {threshold}")
    tokens = _whole_words(tokenizer)
    if max(tokens.values()) >= len(embeddings):
        raise ValueError(f"expected an embedding for each of {len(tokenizer)} tokens, found "
                         f"{len(embeddings)}: take tokenizer and embeddings of one model")
    words = list(tokens)
    vectors = embeddings.detach().float().cpu()[list(tokens.values())]
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    number = {word: i for i, word in enumerate(words)}
    polarity = np.array([_polarity(word) for word in words])
    table = {}
    for word in sorted({m.group().lower() for text in texts for m in WORD.finditer(text)}):
        if word not in number:
            continue
        cosines = (vectors @ vectors[number[word]]).numpy()
        fits = (cosines >= threshold) & (polarity == _polarity(word))
        fits[number[word]] = False
        near = np.flatnonzero(fits)
        near = near[np.argsort(-cosines[near], kind="stable")][:most]
        if len(near):
            table[word] = [words[i] for i in near]
    return table


def _whole_words(tokenizer: Any) -> dict[str, int]:
    """Token ids of the words that are one token, in lower case, function words left out."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    vocabulary = tokenizer.get_vocab()
    # Of a vocabulary with a sign for the space before a word, those with the sign begin a word.
    space = next((s for s in ("Ġ", "▁") if any(t.startswith(s) for t in vocabulary)), "")
    found = {}
    for token, i in sorted(vocabulary.items(), key=lambda item: item[1]):
        word = token.removeprefix(space)
        a_word = token.startswith(space) and WORD.fullmatch(word) and word.islower()
        if a_word and word not in ENGLISH_STOP_WORDS:
            found[word] = i
    return found


def _polarity(word: str) -> int:
    return int(word in POSITIVE) - int(word in NEGATIVE)


def _in_the_case_of(word: str, replacement: str) -> str:
    if word.isupper():
        return replacement.upper()
    return replacement.capitalize() if word[0].isupper() else replacement
