"""Pairs of texts that differ in little and have different labels: does a model see it?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# "[a|b]" stands for a in one member of the pair and for b in the other. The first member of each is
# positive in the first list and negative in the second.
POSITIVE_FIRST = (
    "I would [|not ]watch this film again.",
    "The ending [makes|does not make] sense.",
    "The jokes [are|aren't] funny.",
    "She is [|not ]convincing as the young doctor.",
    "This kettle is [|not ]worth the money.",
    "The battery [lasts|doesn't last] a whole day.",
    "I [|never ]wanted the story to go on.",
    "[Everyone|No one] in the cast can act.",
    "The hinges are [|not ]well made.",
    "You will [|not ]be glad that you bought this tent.",
    "It is [|not ]a good film to see with children.",
    "He [has|has not] written a clever script.",
    "The picture is [|not ]sharp, and the sound is [|not ]clear.",
    "The staff [were|weren't] helpful when I rang about the broken lid.",
    "The last hour [|hardly ]holds your attention.",
    "I was [|not ]impressed by the camera work.",
    "There is [every|no] reason to see it twice.",
    "The music [|never ]suits the scenes it is played over.",
    "My daughter [likes|does not like] the pencils that I ordered.",
    "I [can|cannot] recommend this vacuum cleaner.",
)
NEGATIVE_FIRST = (
    "The film is [|not ]boring.",
    "I was [often|never] lost in the plot.",
    "The lead actor is [|not ]wooden.",
    "The zip [broke|has not broken] after a month of daily use.",
    "There is [something|nothing] wrong with this lamp.",
    "I [regret|do not regret] the price of the ticket.",
    "The dialogue is [|not ]clumsy.",
    "The handle [wobbles|doesn't wobble].",
    "It was [|not ]a waste of an evening.",
    "The second half [|never ]drags.",
    "I have [many|no] complaints about the seat covers.",
    "The instructions are [|not ]hard to follow.",
    "The special effects [look|do not look] cheap.",
    "This coat [lets|does not let] the rain in.",
    "The story is [|not ]silly, and the acting is [|not ]bad.",
    "You will [|not ]be sorry that you went.",
    "The fan is [|not ]too loud to sleep beside.",
    "He [ruins|does not ruin] the part of the old king.",
    "I [|never ]fell asleep during this one.",
    "The sequel is [|by no means ]a disappointment.",
)
SLOT = re.compile(r"\[([^|\]]*)\|([^|\]]*)\]")


@dataclass(frozen=True)
class Pair:
    """Two texts that differ in little, with different labels."""

    texts: tuple[str, str]
    labels: tuple[int, int]

    def __post_init__(self):
        if self.labels[0] == self.labels[1]:
            raise ValueError(f"expected two labels that differ, found {self.labels}: "
                             f"{self.texts[0][:40]!r}")


def negation_probes() -> list[Pair]:
    """40 pairs of short sentences about films and products; a negation turns the label round.

    Written for this project. In one half the sentence with the negation is the positive one ("not
    boring"), so that a model for which "not" is simply a bad word has no pair of them right.
    """
    pairs = []
    for templates, labels in ((POSITIVE_FIRST, (1, 0)), (NEGATIVE_FIRST, (0, 1))):
        pairs += [Pair((SLOT.sub(r"\1", t), SLOT.sub(r"\2", t)), labels) for t in templates]
    return pairs


def contrast_pairs(rows: Iterable[Mapping[str, Any]]) -> list[Pair]:
    """The contrast pairs of a split.

    Args:
        rows: of the built-in reviews, which name a row's `pair`, or of `imdb_contrast`, where a
            row has its `original_text` and `original_label` beside it.

    Raises:
        ValueError: rows without such columns, or a pair without its two members.
    """
    pairs, members = [], {}
    for row in rows:
        if "original_text" in row:
            pairs.append(Pair((row["text"], row["original_text"]),
                              (row["label"], row["original_label"])))  # fmt: skip
        elif "pair" not in row:
            raise ValueError(f"expected rows with 'pair', or with 'original_text', found "
                             f"{sorted(row)}: this set has no contrast pairs")
        elif row["pair"]:
            members.setdefault(row["pair"], []).append(row)
    for name, both in members.items():
        if len(both) != 2:
            raise ValueError(f"pair {name!r}: expected two rows, found {len(both)}: "
                             "pass the whole split")
        pairs.append(Pair(tuple(r["text"] for r in both), tuple(r["label"] for r in both)))
    return pairs
