"""Texts as careless hands leave them: misspelled, or with words missing."""

from __future__ import annotations

import re

import numpy as np

KEY_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
KINDS_OF_TYPO = ("swap", "drop", "double", "neighbour")


def typos(text: str, rate: float, rng: np.random.Generator) -> str:
    """Misspell a share of the words of four letters or more, by one letter each.

    Two neighbouring letters are swapped, or one is dropped, doubled, or hit on a neighbouring key;
    the first and the last letter stay, as people read on over such words.

    Args:
        text: one text.
        rate: chance of a typo for each word of four letters or more.
        rng: draws words, kinds and places.

    Raises:
        ValueError: a rate outside 0…1.

    Source: Pruthi, Dhingra & Lipton 2019, "Combating Adversarial Misspellings with Robust Word
    Recognition", section 3.
    """
    _check_rate(rate)

    def misspell(match: re.Match) -> str:
        return _typo(match.group(), rng) if rng.random() < rate else match.group()

    return re.sub(r"[A-Za-z]{4,}", misspell, text)


def _typo(word: str, rng: np.random.Generator) -> str:
    kind = KINDS_OF_TYPO[rng.integers(len(KINDS_OF_TYPO))]
    swaps = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]
    if kind == "swap" and swaps:  # "been" has two equal letters inside: it loses one instead
        i = swaps[rng.integers(len(swaps))]
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    i = rng.integers(1, len(word) - 1)
    if kind == "double":
        return word[:i] + word[i] + word[i:]
    if kind == "neighbour":
        keys = neighbouring_keys(word[i])
        return word[:i] + keys[rng.integers(len(keys))] + word[i + 1 :]
    return word[:i] + word[i + 1 :]


def neighbouring_keys(letter: str) -> str:
    """The letters left and right of one on a QWERTY keyboard, in its case."""
    row = next(row for row in KEY_ROWS if letter.lower() in row)
    at = row.index(letter.lower())
    found = row[max(0, at - 1) : at] + row[at + 1 : at + 2]
    return found.upper() if letter.isupper() else found


def drop_words(text: str, rate: float, rng: np.random.Generator) -> str:
    """Leave out each word with a fixed chance; one word stays in any case.

    Unlike a typo this may take the verdict with it, or its "not": no model can be right on all of
    such texts.

    Args:
        text: one text; its words are what white space separates.
        rate: chance of each word.
        rng: draws the words.

    Raises:
        ValueError: a rate outside 0…1.

    Source: Wei & Zou 2019, "EDA: Easy Data Augmentation", section 2 (random deletion).
    """
    _check_rate(rate)
    words = text.split()
    kept = rng.random(len(words)) >= rate
    if len(words) and not kept.any():
        kept[rng.integers(len(words))] = True
    return " ".join(word for word, keep in zip(words, kept, strict=True) if keep)


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: expected a share in 0…1, found {rate}")
