"""The exercises of lesson 02: what each expects, its known mistakes, and its hints."""

from __future__ import annotations

import re

import torch
from torch import Generator, Tensor

from tutorkit import data
from tutorkit.checks.exercise import Exercise, Mistake
from tutorkit.checks.inputs import pick, whole

# 1. WordPiece: the longest piece first

VOCAB = (
    *("un", "re", "rew", "over", "overl", "watch", "film", "remake"),
    *("##watch", "##watche", "##watched", "##atch", "##atchable", "##able", "##ing", "##make"),
    *("##ma", "##ke", "##s", "##ed", "##e", "##d", "##long", "##lon", "##g", "##a"),
)
# In most of them another way of cutting finds other pieces: the longest one may lead nowhere.
WORDS = (
    *("overlong", "overlongs", "rewatched", "rewatchable", "rewatching", "unwatched"),
    *("unwatchable", "remakes", "filmx", "unfilmed", "filmed"),
)


def _longest_first(word: str, vocab: list[str], mark: str = "##", found=None) -> list[str]:
    pieces, start = [], 0
    while start < len(word):
        before = mark if start else ""
        stop = next(
            (e for e in range(len(word), start, -1) if before + word[start:e] in vocab), None
        )
        if stop is None:
            return ["[UNK]"] if found is None else found(pieces)
        pieces.append(before + word[start:stop])
        start = stop
    return pieces


def _shortest_first(word: str, vocab: list[str]) -> list[str]:
    pieces, start = [], 0
    while start < len(word):
        before = "##" if start else ""
        stop = next(
            (e for e in range(start + 1, len(word) + 1) if before + word[start:e] in vocab), None
        )
        if stop is None:
            return ["[UNK]"]
        pieces.append(before + word[start:stop])
        start = stop
    return pieces


def wordpiece(word: str, vocab: list[str]) -> list[str]:
    from tokenizers import Tokenizer, models

    numbers = {piece: i for i, piece in enumerate(["[UNK]", *vocab])}
    return Tokenizer(models.WordPiece(numbers, unk_token="[UNK]")).encode(word).tokens


def _word_and_vocab(generator: Generator) -> tuple[str, list[str]]:
    word = pick(generator, WORDS)
    spare = ("##s", "##ma", "##ke", "##lon", "##ing")  # no trap needs one of these
    left_out = {pick(generator, spare)} if whole(generator, 0, 1) else set()
    return word, [piece for piece in VOCAB if piece not in left_out]


wordpiece = Exercise(
    solution=wordpiece,
    inputs=_word_and_vocab,
    mistakes=(
        Mistake(
            "the pieces inside a word are looked up without ##; only the first piece of a word "
            "is in the vocabulary without it",
            lambda word, vocab: _longest_first(word, vocab, mark=""),
        ),
        Mistake(
            "where no piece fits, the whole word becomes [UNK]; the pieces found so far are "
            "dropped",
            lambda word, vocab: _longest_first(
                word, vocab, found=lambda pieces: [*pieces, "[UNK]"]
            ),
        ),
        Mistake(
            "the rest of a word that can't be split is left out in silence; the whole word is "
            "[UNK]",
            lambda word, vocab: _longest_first(word, vocab, found=lambda pieces: pieces),
        ),
        Mistake(
            "this takes the shortest piece that fits; WordPiece takes the longest",
            _shortest_first,
        ),
        Mistake(
            "the pieces inside a word are returned without their ##; join it to them",
            lambda word, vocab: [piece.removeprefix("##") for piece in _longest_first(word, vocab)],
        ),
    ),
    hints=(
        "Two nested loops: over the start of what is left, and over its end from the longest down.",
        "From `start`, try `word[start:end]` for end = len(word), …, start + 1, with ## in front "
        "where start > 0.",
        'When no end is left, `return ["[UNK]"]`, whatever was found before.',
    ),
)

# 2. Keep both ends


def head_tail(ids: Tensor, room: int) -> Tensor:
    return torch.tensor(data.truncate(ids.tolist(), room, "head+tail"))


def _ids_and_room(generator: Generator) -> tuple[Tensor, int]:
    room = whole(generator, 1, 9)
    length = room + pick(generator, (-1, 0, 1, 1, 2, 5, 12))
    return torch.randint(1000, 30000, (max(1, length),), generator=generator), room


def _both_ends(ids: Tensor, head: int, tail: int) -> Tensor:
    return torch.cat([ids[:head], ids[len(ids) - tail :]])


head_tail = Exercise(
    solution=head_tail,
    inputs=_ids_and_room,
    mistakes=(
        Mistake(
            "a row with no more than `room` ids stays as it is; yours is joined from two ends that "
            "overlap",
            lambda ids, room: _both_ends(
                ids, min(room // 2, len(ids)), min(room - room // 2, len(ids))
            ),
        ),
        Mistake(
            "this is `head`: it keeps the first ids only",
            lambda ids, room: ids[:room],
        ),
        Mistake(
            "this is `tail`: it keeps the last ids only",
            lambda ids, room: ids[max(0, len(ids) - room) :],
        ),
        Mistake(
            "an odd `room` loses one place: head and tail together must have `room` ids",
            lambda ids, room: ids if len(ids) <= room else _both_ends(ids, room // 2, room // 2),
        ),
        Mistake(
            "for an odd `room` the extra id belongs to the tail: head = room // 2",
            lambda ids, room: (
                ids if len(ids) <= room else _both_ends(ids, room - room // 2, room // 2)
            ),
        ),
    ),
    hints=(
        "First: what has to happen when the row is short enough?",
        "head = room // 2, and tail = room - head, so that an odd room is used up.",
        "`torch.cat([ids[:head], ids[len(ids) - tail:]])`.",
    ),
)

# 3. One batch


def _filled(rows: list[Tensor], pad_id: int, width: int, left: bool = False) -> Tensor:
    batch = torch.full((len(rows), width), pad_id)
    for i, row in enumerate(rows):
        if left:
            batch[i, width - len(row) :] = row
        else:
            batch[i, : len(row)] = row
    return batch


def _mask(rows: list[Tensor], width: int, left: bool = False) -> Tensor:
    return _filled([torch.ones_like(row) for row in rows], 0, width, left)


def _width(rows: list[Tensor]) -> int:
    return max(len(row) for row in rows)


def pad_batch(rows: list[Tensor], pad_id: int) -> tuple[Tensor, Tensor]:
    width = _width(rows)
    return _filled(rows, pad_id, width), _mask(rows, width)


def _rows_and_pad(generator: Generator) -> tuple[list[Tensor], int]:
    pad_id = whole(generator, 1, 9)
    rows = [
        torch.randint(10, 99, (whole(generator, 2, 7),), generator=generator)
        for _ in range(whole(generator, 2, 4))
    ]
    rows[0] = rows[0][:1]  # so that some row is padded
    rows[-1] = torch.cat([rows[-1], torch.tensor([pad_id])])  # a decoder's end token pads as well
    return rows, pad_id


pad_batch = Exercise(
    solution=pad_batch,
    inputs=_rows_and_pad,
    mistakes=(
        Mistake(
            "the mask is made by comparing with the pad token, and a row may hold that token as a "
            "real one: many decoders pad with their end-of-text token. Take the rows' lengths",
            lambda rows, pad_id: (
                _filled(rows, pad_id, _width(rows)),
                (_filled(rows, pad_id, _width(rows)) != pad_id).long(),
            ),
        ),
        Mistake(
            "the mask is turned round: 1 is a real token, 0 is padding",
            lambda rows, pad_id: (
                _filled(rows, pad_id, _width(rows)),
                1 - _mask(rows, _width(rows)),
            ),
        ),
        Mistake(
            "the mask is 1 everywhere, so that padding is read like text",
            lambda rows, pad_id: (
                _filled(rows, pad_id, _width(rows)),
                torch.ones(len(rows), _width(rows), dtype=torch.long),
            ),
        ),
        Mistake(
            "the rows are filled up with 0; the tokenizer's pad token is `pad_id`",
            lambda rows, pad_id: (_filled(rows, 0, _width(rows)), _mask(rows, _width(rows))),
        ),
        Mistake(
            "this pads on the left; here the tokens come first and the padding after them",
            lambda rows, pad_id: (
                _filled(rows, pad_id, _width(rows), left=True),
                _mask(rows, _width(rows), left=True),
            ),
        ),
    ),
    hints=(
        "Start from a full batch of padding and a mask of zeros, then write each row into them.",
        "`torch.full((len(rows), width), pad_id)`, where width is the length of the longest row.",
        "Row i: `input_ids[i, :len(row)] = row` and `attention_mask[i, :len(row)] = 1`.",
    ),
)

# 4. The price of padding


def _batches_of(lengths: list[int], batch_size: int) -> list[list[int]]:
    return [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]


def _places(lengths: list[int], batch_size: int) -> int:
    return sum(max(batch) * len(batch) for batch in _batches_of(lengths, batch_size))


def padding_share(lengths: list[int], batch_size: int) -> float:
    places = _places(lengths, batch_size)
    return (places - sum(lengths)) / places


def _lengths_and_size(generator: Generator) -> tuple[list[int], int]:
    size = whole(generator, 2, 5)
    rows = size * whole(generator, 1, 3) + whole(generator, 1, size - 1)  # the last one is short
    return torch.randint(3, 90, (rows,), generator=generator).tolist(), size


def _mean_share(lengths: list[int], batch_size: int) -> float:
    batches = _batches_of(lengths, batch_size)
    return sum(1 - sum(b) / (max(b) * len(b)) for b in batches) / len(batches)


def _full_batches(lengths: list[int], batch_size: int) -> float:
    places = sum(max(batch) * batch_size for batch in _batches_of(lengths, batch_size))
    return 1 - sum(lengths) / places


def _without_last(lengths: list[int], batch_size: int) -> float:
    kept = lengths[: len(lengths) // batch_size * batch_size]
    return 1 - sum(kept) / _places(kept, batch_size)


padding_share = Exercise(
    solution=padding_share,
    inputs=_lengths_and_size,
    mistakes=(
        Mistake(
            "every row is padded to the longest of all; padding per batch goes to the longest row "
            "of its own batch",
            lambda lengths, batch_size: 1 - sum(lengths) / (max(lengths) * len(lengths)),
        ),
        Mistake(
            "this is the mean of the batches' shares; a batch with many places counts more: add up "
            "the places first, divide once",
            _mean_share,
        ),
        Mistake(
            "the last batch is short and counts as full: its places are its own rows times its "
            "longest",
            _full_batches,
        ),
        Mistake(
            "the last batch is left out because it is short; its rows are computed as well",
            _without_last,
        ),
        Mistake(
            "this is padding for each real token; the share asks for padding among all places",
            lambda lengths, batch_size: (_places(lengths, batch_size) / sum(lengths)) - 1,
        ),
        Mistake(
            "this is the share of real tokens; what is left of 1 is the padding",
            lambda lengths, batch_size: sum(lengths) / _places(lengths, batch_size),
        ),
    ),
    hints=(
        "`lengths[i : i + batch_size]` is the batch that begins at row i, also the short last one.",
        "A batch has `max(batch) * len(batch)` places; add these up over the batches.",
        "`(places - sum(lengths)) / places`.",
    ),
)

# 5. Spot the flaw: a mask that does not fit


def _wrong_places(attention_mask: Tensor, lengths: Tensor) -> tuple[int, int]:
    real = torch.arange(attention_mask.shape[1]) < lengths[:, None]
    read = attention_mask == 1
    return int((read & ~real).sum()), int((~read & real).sum())


def audit_mask(attention_mask: Tensor, lengths: Tensor) -> tuple[int, int]:
    return _wrong_places(attention_mask, lengths)


def _mask_and_lengths(generator: Generator) -> tuple[Tensor, Tensor]:
    rows, width = whole(generator, 2, 4), whole(generator, 5, 8)
    lengths = torch.randint(2, width, (rows,), generator=generator)
    mask = (torch.arange(width) < lengths[:, None]).long()
    wrong = torch.rand(rows, width, generator=generator) < 0.35
    return torch.where(wrong, 1 - mask, mask), lengths


audit_mask = Exercise(
    solution=audit_mask,
    inputs=_mask_and_lengths,
    mistakes=(
        Mistake(
            "the two counts have changed places: first the padding that is read",
            lambda attention_mask, lengths: _wrong_places(attention_mask, lengths)[::-1],
        ),
        Mistake(
            "only the totals are compared: errors in both directions cancel. Compare place by "
            "place",
            lambda attention_mask, lengths: (
                max(0, int(attention_mask.sum() - lengths.sum())),
                max(0, int(lengths.sum() - attention_mask.sum())),
            ),
        ),
        Mistake(
            "the last real token counts as padding: place t is real while t < length, counted "
            "from 0",
            lambda attention_mask, lengths: _wrong_places(attention_mask, lengths - 1),
        ),
        Mistake(
            "the first padding counts as real: place t is real while t < length, counted from 0",
            lambda attention_mask, lengths: _wrong_places(attention_mask, lengths + 1),
        ),
        Mistake(
            "these are the places that are read and those that are not, right or wrong; compare "
            "each with the row's length",
            lambda attention_mask, lengths: (
                int((attention_mask == 1).sum()),
                int((attention_mask == 0).sum()),
            ),
        ),
    ),
    hints=(
        "Make the mask that would be right, from the lengths.",
        "`torch.arange(T) < lengths[:, None]` is True at real tokens, (B, T).",
        "Read padding is `(attention_mask == 1) & ~real`; hidden tokens are the other way round.",
    ),
)

# 6. Spot the flaw: test rows in train

OPENINGS = (
    *("A slow start", "The songs are fine", "I laughed once", "Nobody can act here"),
    *("What a set", "The ending saves it", "Two hours of rain", "My son loved it"),
)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _leaks(train: list[str], test: list[str], form=_plain) -> list[bool]:
    seen = {form(text) for text in train}
    return [form(text) in seen for text in test]


def _score(train, test, right, form=_plain) -> tuple[int, float]:
    leaks = _leaks(train, test, form)
    kept = [hit for hit, leak in zip(right, leaks, strict=True) if not leak]
    return sum(leaks), sum(kept) / len(kept)


def clean_score(train: list[str], test: list[str], right: list[bool]) -> tuple[int, float]:
    return _score(train, test, right)


def _texts_and_right(generator: Generator) -> tuple[list[str], list[str], list[bool]]:
    order = [OPENINGS[i] for i in torch.randperm(len(OPENINGS), generator=generator).tolist()]
    test, train = [f"{text}." for text in order[:6]], [f"{text}." for text in order[6:]]
    first, *rest = order[3].split()
    # Copies: an exact one, twice; two in capitals; one with other punctuation, inside too.
    train += [test[0], test[0].lower(), test[1].upper(), test[2].upper()]
    train += [f"{first}, {' '.join(rest)}!"]
    # No copies: a test text that goes on, and the words of one in another order.
    train += [f"{order[4]}, they said.", " ".join(reversed(order[5].split()))]
    right = [True, True, True, True, *(torch.rand(2, generator=generator) < 0.5).tolist()]
    right[whole(generator, 4, 5)] = False  # so that the clean score differs
    mixed = torch.randperm(6, generator=generator).tolist()
    return train, [test[i] for i in mixed], [right[i] for i in mixed]


def _all_rows(train, test, right) -> tuple[int, float]:
    return _score(train, test, right)[0], sum(right) / len(right)


def _leaks_as_wrong(train, test, right) -> tuple[int, float]:
    leaks = _leaks(train, test)
    hits = [hit and not leak for hit, leak in zip(right, leaks, strict=True)]
    return sum(leaks), sum(hits) / len(hits)


def _leaks_alone(train, test, right) -> tuple[int, float]:
    leaks = _leaks(train, test)
    return sum(leaks), sum(hit for hit, leak in zip(right, leaks, strict=True) if leak) / sum(leaks)


clean_score = Exercise(
    solution=clean_score,
    inputs=_texts_and_right,
    mistakes=(
        Mistake(
            "only exact copies are found: compare lower case and without punctuation, such as "
            '`re.findall(r"\\w+", text.lower())`',
            lambda train, test, right: _score(train, test, right, form=str),
        ),
        Mistake(
            "lower case is not enough: a copy with a comma more, or ! for ., is the same text",
            lambda train, test, right: _score(train, test, right, form=str.lower),
        ),
        Mistake(
            "without punctuation, but upper and lower case still make two texts of one",
            lambda train, test, right: _score(
                train, test, right, form=lambda text: " ".join(re.findall(r"\w+", text))
            ),
        ),
        Mistake(
            "the accuracy is that of all test rows: take the mean over the rows that do not leak",
            _all_rows,
        ),
        Mistake(
            "a leaked row counts as wrong here; leave it out, it says nothing in either direction",
            _leaks_as_wrong,
        ),
        Mistake(
            "this is the accuracy of the rows that leak; that of the others is asked for",
            _leaks_alone,
        ),
    ),
    hints=(
        "Bring every text into one form first: lower case, words only.",
        "Put the forms of the training texts into a set, and ask for each test text whether its "
        "form is in it.",
        "Count those that are; the accuracy is the mean of `right` over those that are not.",
    ),
)

# 7. Spot the flaw: which split does a score come from?


def possible_splits(reported: float, rows: list[int], digits: int) -> list[bool]:
    half = 0.5 * 10**-digits + 1e-12  # a tie may have been rounded up or down
    return [abs(round(reported * n) / n - reported) <= half for n in rows]


def _reported(generator: Generator) -> tuple[float, list[int], int]:
    digits = whole(generator, 3, 4)
    source = whole(generator, 20, 159)
    reported = round(whole(generator, source // 2, source - 1) / source, digits)

    def off(n: int) -> float:
        """How far the nearest k / n is from the report, in units of its last digit."""
        return abs(round(reported * n) / n - reported) * 10**digits

    # One misses by a little; one can give it as well, but is not as near; one is far off.
    near = [n for n in range(20, 1200) if 0.55 < off(n) < 0.95]
    other = [n for n in range(20, 1200) if off(n) < 0.45 and abs(off(n) - off(source)) > 0.02]
    far = [n for n in range(20, 160) if off(n) > 1.05]
    rows = [source, pick(generator, near), pick(generator, other), pick(generator, far)]
    return reported, [rows[i] for i in torch.randperm(4, generator=generator).tolist()], digits


possible_splits = Exercise(
    solution=possible_splits,
    inputs=_reported,
    mistakes=(
        Mistake(
            "the number of right rows is rounded down: 0.9917 × 120 is a little above 119, but "
            "0.9833 × 120 a little below 118. Take the nearest whole number",
            lambda reported, rows, digits: [
                round(int(reported * n) / n, digits) == reported for n in rows
            ],
        ),
        Mistake(
            "the reported number is rounded: ask whether some k / n rounds to it, not whether "
            "reported × n is a whole number",
            lambda reported, rows, digits: [round(reported * n) / n == reported for n in rows],
        ),
        Mistake(
            "a rounded number is off by at most half a unit of its last digit, and this allows a "
            "whole one",
            lambda reported, rows, digits: [
                abs(round(reported * n) / n - reported) < 10**-digits for n in rows
            ],
        ),
        Mistake(
            "k / n is compared with fewer digits than were reported",
            lambda reported, rows, digits: [
                round(round(reported * n) / n, digits - 2) == round(reported, digits - 2)
                for n in rows
            ],
        ),
        Mistake(
            "every split can give some score; can it give this one?",
            lambda reported, rows, digits: [True] * len(rows),
        ),
    ),
    hints=(
        "An accuracy over n rows is k / n with a whole k. Which k comes nearest?",
        "`k = round(reported * n)`, for each split's n.",
        "`round(k / n, digits) == reported`.",
    ),
)
