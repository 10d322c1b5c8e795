"""The exercises of lesson 03: what each expects, its known mistakes, and its hints."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from tutorkit import heads
from tutorkit.checks.exercise import Exercise, Mistake
from tutorkit.checks.inputs import normal, whole
from tutorkit.losses import IGNORE_INDEX


def _mask(generator: Generator, rows: int, tokens: int, side: str = "right") -> Tensor:
    """Rows of different lengths from 2 tokens; the longest one sometimes has padding as well."""
    lengths = torch.randint(2, tokens - 1, (rows,), generator=generator)
    lengths[-1] = tokens - whole(generator, 0, 1)
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    return mask.flip(1) if side == "left" else mask


def _batch(generator: Generator, side: str = "right") -> tuple[Tensor, Tensor]:
    """Hidden states (B, T, H), also on padding, and the mask (B, T)."""
    rows, tokens = whole(generator, 2, 4), whole(generator, 5, 8)
    return normal(generator, rows, tokens, 3), _mask(generator, rows, tokens, side)


# 1. The mean over real tokens


def masked_mean(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return heads.pool(hidden, attention_mask, "mean")


masked_mean = Exercise(
    solution=masked_mean,
    inputs=_batch,
    tolerance=1e-6,  # a mask in float32 is right all the same
    mistakes=(
        Mistake(
            "this is the mean over all T positions: padding counts as if it were text. Leave it "
            "out of the sum and of the number that you divide by",
            lambda hidden, attention_mask: hidden.mean(dim=1),
        ),
        Mistake(
            "padding is left out of the sum, but the sum is divided by T; divide by the number of "
            "real tokens of the row",
            lambda hidden, attention_mask: (hidden * attention_mask[:, :, None]).mean(dim=1),
        ),
        Mistake(
            "this is the sum over the real tokens; divide it by their number",
            lambda hidden, attention_mask: (hidden * attention_mask[:, :, None]).sum(dim=1),
        ),
        Mistake(
            "all rows are divided by the same number; each row has its own number of real tokens",
            lambda hidden, attention_mask: (
                (hidden * attention_mask[:, :, None]).sum(dim=1) / attention_mask.sum(1).max()
            ),
        ),
        Mistake(
            "one vector for the whole batch comes out; take the mean in each row: dim=1",
            lambda hidden, attention_mask: hidden[attention_mask == 1].mean(dim=0),
        ),
    ),
    hints=(
        "Multiplied by its mask, a padding vector becomes 0 and adds nothing to a sum.",
        "`attention_mask[:, :, None]` has the shape (B, T, 1) and multiplies all H entries.",
        "Sum over dim=1, and divide by `attention_mask.sum(dim=1, keepdim=True)`, (B, 1).",
    ),
)

# 2. The last real token


def last_real_token(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    return heads.pool(hidden, attention_mask, "last")


def _either_side(generator: Generator) -> tuple[Tensor, Tensor]:
    return _batch(generator, "left" if whole(generator, 0, 1) else "right")


def _at(hidden: Tensor, positions: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden)), positions]


last_real_token = Exercise(
    solution=last_real_token,
    inputs=_either_side,
    mistakes=(
        Mistake(
            "this takes position -1 of every row, which is padding where a row is padded on the "
            "right; look for the last 1 of the row's mask",
            lambda hidden, attention_mask: hidden[:, -1],
        ),
        Mistake(
            "the number of real tokens minus 1 is right for padding on the right; where padding "
            "stands on the left the tokens begin later. Look for the last 1 of the mask",
            lambda hidden, attention_mask: _at(hidden, attention_mask.sum(dim=1) - 1),
        ),
        Mistake(
            "this takes position 0 of every row, where an encoder's [CLS] stands; the last real "
            "token is asked for. Look for the last 1 of the row's mask",
            lambda hidden, attention_mask: hidden[:, 0],
        ),
        Mistake(
            "this is the first real token; the text has not been read there yet",
            lambda hidden, attention_mask: _at(hidden, attention_mask.argmax(dim=1)),
        ),
        Mistake(
            "this is the token before the last real one: positions are counted from 0",
            lambda hidden, attention_mask: _at(hidden, heads.last_positions(attention_mask) - 1),
        ),
        Mistake(
            "this gives every row the last position of the longest one; each row has its own",
            lambda hidden, attention_mask: hidden[
                :, int(heads.last_positions(attention_mask).max())
            ],
        ),
    ),
    hints=(
        "Which position t is the largest of those where the mask is 1?",
        "`torch.arange(T) * attention_mask` is t at real tokens and 0 at padding.",
        "Its `argmax(dim=1)` is a position for each row; `hidden[torch.arange(B), position]`.",
    ),
)

# 3. A tag for each first piece


def labels_of_pieces(word_ids: list, word_tags: list) -> list:
    return heads.first_piece_labels(word_ids, word_tags)


def _words_in_pieces(generator: Generator) -> tuple[list, list]:
    words = whole(generator, 3, 5)
    pieces = [1 + whole(generator, 0, 2) for _ in range(words)]
    pieces[0], pieces[-1] = 1, 3
    ids: list[int | None] = [word for word in range(words) for _ in range(pieces[word])]
    padding = [None] * whole(generator, 0, 2)
    tags = [whole(generator, 0, 2) for _ in range(words)]
    tags[0], tags[-1] = 2, 1
    return [None, *ids, None, *padding], tags


def _every_piece(word_ids: list, word_tags: list) -> list:
    return [IGNORE_INDEX if word is None else word_tags[word] for word in word_ids]


def _inside_on_further_pieces(word_ids: list, word_tags: list) -> list:
    first = heads.first_piece_labels(word_ids, word_tags)
    further = [IGNORE_INDEX if word is None else 2 * (word_tags[word] > 0) for word in word_ids]
    return [f if label == IGNORE_INDEX else label for label, f in zip(first, further, strict=True)]


labels_of_pieces = Exercise(
    solution=labels_of_pieces,
    inputs=_words_in_pieces,
    mistakes=(
        Mistake(
            "every piece of a word carries its tag, so that a long word counts several times and "
            "one B becomes several; tag the first piece only",
            _every_piece,
        ),
        Mistake(
            "special tokens and padding got the tag 0, which is a tag like any other; give them "
            "-100, so that the loss leaves them out",
            lambda word_ids, word_tags: [
                0 if word is None else label
                for word, label in zip(
                    word_ids, heads.first_piece_labels(word_ids, word_tags), strict=True
                )
            ],
        ),
        Mistake(
            "the further pieces of a word got the tag 0, as if they were outside; give them -100",
            lambda word_ids, word_tags: [
                0 if word is not None and label == IGNORE_INDEX else label
                for word, label in zip(
                    word_ids, heads.first_piece_labels(word_ids, word_tags), strict=True
                )
            ],
        ),
        Mistake(
            "the further pieces of a tagged word got I, as if they were words of their own; give "
            "them -100",
            _inside_on_further_pieces,
        ),
        Mistake(
            "this tags the last piece of each word; the first one carries the tag",
            lambda word_ids, word_tags: heads.first_piece_labels(word_ids[::-1], word_tags)[::-1],
        ),
        Mistake(
            "the tags were given out in the order of the tokens, so they slip by one at [CLS] and "
            "at every further piece; look a token's word up in `word_ids`",
            lambda word_ids, word_tags: [*word_tags, *[IGNORE_INDEX] * len(word_ids)][
                : len(word_ids)
            ],
        ),
    ),
    hints=(
        "Walk through `word_ids` and remember the word of the token before.",
        "None, or the same word as the token before: -100. A new word: its tag.",
        "`zip([None, *word_ids], word_ids)` gives each token the word before it and its own.",
    ),
)

# 4. Labels for the next token


def labels_for_generation(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    return heads.next_token_labels(input_ids, attention_mask)


def _texts_that_end(generator: Generator) -> tuple[Tensor, Tensor]:
    """Ids where 4 is the end of a text and the padding, as in `tiny-decoder`."""
    rows, tokens = whole(generator, 2, 4), whole(generator, 5, 8)
    mask = _mask(generator, rows, tokens)
    ids = torch.randint(5, 50, (rows, tokens), generator=generator)
    ids[torch.arange(rows), heads.last_positions(mask)] = 4
    return ids.where(mask == 1, 4), mask


labels_for_generation = Exercise(
    solution=labels_for_generation,
    inputs=_texts_that_end,
    mistakes=(
        Mistake(
            "the labels are left out by the id 4, which is padding and also the end of a text: the "
            "model would never learn to stop. Let the mask decide",
            lambda input_ids, attention_mask: input_ids.masked_fill(input_ids == 4, IGNORE_INDEX),
        ),
        Mistake(
            "padding keeps its id, so the model is trained to write padding; give it -100",
            lambda input_ids, attention_mask: input_ids.clone(),
        ),
        Mistake(
            "the labels are shifted already, and the loss shifts once more: position t would be "
            "scored on token t + 2. Return the sequence as it stands",
            lambda input_ids, attention_mask: torch.cat(
                [
                    heads.next_token_labels(input_ids, attention_mask)[:, 1:],
                    torch.full((len(input_ids), 1), IGNORE_INDEX),
                ],
                dim=1,
            ),
        ),
        Mistake(
            "the labels are shifted already, and by `roll`, which also carries each row's first "
            "token to its end. The loss shifts by one itself: return the sequence as it stands",
            lambda input_ids, attention_mask: heads.next_token_labels(
                input_ids, attention_mask
            ).roll(-1, 1),
        ),
        Mistake(
            "the first token is cut off, which is half of a shift, and the loss does the whole of "
            "it. Return the sequence as it stands, all T positions",
            lambda input_ids, attention_mask: heads.next_token_labels(input_ids, attention_mask)[
                :, 1:
            ],
        ),
        Mistake(
            "padding got the label 0, which is a token like any other; give it -100",
            lambda input_ids, attention_mask: input_ids * attention_mask,
        ),
        Mistake(
            "the mask is turned round: the text is left out and the padding is learned",
            lambda input_ids, attention_mask: input_ids.masked_fill(
                attention_mask == 1, IGNORE_INDEX
            ),
        ),
    ),
    hints=(
        "The text is its own label; only padding has to go.",
        "A real end token has mask 1, a pad token mask 0, and both have the same id.",
        "`input_ids.masked_fill(attention_mask == 0, -100)`.",
    ),
)

# 5. The best span


def find_span(start_scores: Tensor, end_scores: Tensor, attention_mask: Tensor):
    return heads.best_span(start_scores, end_scores, attention_mask)


def _span_scores(generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    rows, tokens = whole(generator, 3, 4), whole(generator, 6, 8)
    mask = _mask(generator, rows, tokens)
    start, end = normal(generator, rows, tokens), normal(generator, rows, tokens)
    end[0, 0] += 6.0  # the best end stands before the best start
    start[0, 2] += 6.0
    start[-1, 1] += 4.0  # here it does not, and the span is long
    end[-1, tokens - 2] += 4.0
    mask[-1, 0] = 0  # as a question in front of the text: no answer may start there
    outside = (start + 5).where(mask == 0, start), (end + 5).where(mask == 0, end)
    return *outside, mask


def _span_without(mask: bool = True, order: bool = True) -> Callable:
    """The best span with one of its two conditions left out."""

    def find(start_scores: Tensor, end_scores: Tensor, attention_mask: Tensor):
        real = attention_mask == 1 if mask else torch.ones_like(attention_mask, dtype=torch.bool)
        allowed = real[:, :, None] & real[:, None, :]
        allowed = allowed.triu() if order else allowed
        sums = start_scores[:, :, None] + end_scores[:, None, :]
        best = sums.masked_fill(~allowed, -torch.inf).flatten(1).argmax(dim=1)
        return best // start_scores.shape[1], best % start_scores.shape[1]

    return find


def _ends_masked_only(start_scores: Tensor, end_scores: Tensor, attention_mask: Tensor):
    everywhere = torch.ones_like(attention_mask)
    only_ends = end_scores.masked_fill(attention_mask == 0, -torch.inf)
    return heads.best_span(start_scores, only_ends, everywhere)


def _end_after_start(start_scores: Tensor, end_scores: Tensor, attention_mask: Tensor):
    start = start_scores.masked_fill(attention_mask == 0, -torch.inf).argmax(dim=1)
    before = torch.arange(start_scores.shape[1]) < start[:, None]
    end = end_scores.masked_fill(before | (attention_mask == 0), -torch.inf).argmax(dim=1)
    return start, end


find_span = Exercise(
    solution=find_span,
    inputs=_span_scores,
    mistakes=(
        Mistake(
            "start and end are chosen each for itself, so an end can stand before its start; "
            "choose the pair s ≤ e with the largest sum",
            _span_without(order=False),
        ),
        Mistake(
            "start and end are chosen each for itself, and padding is among the choices; choose "
            "the pair s ≤ e on real tokens with the largest sum",
            lambda start_scores, end_scores, attention_mask: (
                start_scores.argmax(dim=1),
                end_scores.argmax(dim=1),
            ),
        ),
        Mistake(
            "padding is among the choices; only positions with mask 1 can be an answer",
            _span_without(mask=False),
        ),
        Mistake(
            "the mask is applied to the ends only, and an answer starts where none may stand, in "
            "front of the text; both of a pair must have mask 1",
            _ends_masked_only,
        ),
        Mistake(
            "the best start is chosen first and then the best end after it; a weaker start with a "
            "stronger end can have the larger sum. Compare all pairs",
            _end_after_start,
        ),
    ),
    hints=(
        "`start_scores[:, :, None] + end_scores[:, None, :]` holds the sums of all pairs (s, e).",
        "`.triu()` keeps the pairs with s ≤ e; both of a pair must have mask 1. Set the others to "
        "-inf.",
        "After `.flatten(1).argmax(dim=1)` the start is the result `// T`, the end `% T`.",
    ),
)

# 6. Lab: a listing that classifies at position -1


def position_lab(hidden: Tensor, attention_mask: Tensor, weight: Tensor):
    return 4, heads.pool(hidden, attention_mask, "last") @ weight.T


def _classified(generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    return *_batch(generator), normal(generator, 2, 3)


def _line_with(line: int, pooling: Callable) -> Callable:
    return lambda hidden, attention_mask, weight: (
        line,
        pooling(hidden, attention_mask) @ weight.T,
    )


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    return heads.pool(hidden, mask, "last")


position_lab = Exercise(
    solution=position_lab,
    inputs=_classified,
    mistakes=(
        Mistake(
            "the line is found; but these are still the listing's logits: take the hidden state of "
            "each row's last real token instead of position -1",
            _line_with(4, lambda hidden, mask: hidden[:, -1]),
        ),
        Mistake(
            "the line is found; but this takes the mean over all positions, padding among them, "
            "and an average is not what a decoder's head was given",
            _line_with(4, lambda hidden, mask: hidden.mean(dim=1)),
        ),
        Mistake(
            "the line is found; but this is the mean over real tokens: the listing's head reads "
            "the last one, so mend the position and leave the pooling",
            _line_with(4, lambda hidden, mask: heads.pool(hidden, mask, "mean")),
        ),
        Mistake(
            "the logits are right. But line 1 alone does no harm, and with padding on the left "
            "line 3, which has no mask, would read it in front of every text. Which line takes a "
            "pad token for the text's last one?",
            _line_with(1, _last),
        ),
        Mistake(
            "the logits are right. But line 2 is not the flaw: padding on the right is fine as "
            "long as nobody reads it. Which line reads it?",
            _line_with(2, _last),
        ),
        Mistake(
            "the logits are right. Line 3 leaves the mask out, and for a decoder that changes no "
            "real token's state: padding stands after them all. Which line reads padding?",
            _line_with(3, _last),
        ),
        Mistake(
            "the logits are right. But line 5 maps whatever it is given; which line gives it "
            "padding?",
            _line_with(5, _last),
        ),
        *(
            Mistake(
                f"these are still the listing's logits, and line {line} is not the flaw. Follow a "
                "short row from line to line: which one takes a pad token for the text's last one?",
                _line_with(line, lambda hidden, mask: hidden[:, -1]),
            )
            for line in (1, 2, 3, 5)
        ),
    ),
    hints=(
        "Follow a short row through the listing: what stands at its position -1?",
        "The hidden states of real tokens are right in every line; one line picks the wrong one.",
        "Return 4 and `hidden[torch.arange(B), last] @ weight.T`, `last` as in exercise 2.",
    ),
)

# 7. Lab: a test that finds the poolings which look at padding


class Pooling:
    """A pooling with a name that a message can show."""

    def __init__(self, name: str, function: Callable) -> None:
        self.name, self.function = name, function

    def __call__(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return self.function(hidden, attention_mask)

    def __repr__(self) -> str:
        return f"<{self.name}>"


# All of them are found in published code. The last two read nothing from a pad position and depend
# on padding all the same.
POOLINGS = (
    Pooling("mean over real tokens", lambda hidden, mask: heads.pool(hidden, mask, "mean")),
    Pooling("last real token", lambda hidden, mask: heads.pool(hidden, mask, "last")),
    Pooling("first token", lambda hidden, mask: hidden[:, 0]),
    Pooling("mean over all positions", lambda hidden, mask: hidden.mean(dim=1)),
    Pooling("position -1", lambda hidden, mask: hidden[:, -1]),
    Pooling("masked sum divided by T", lambda hidden, mask: (hidden * mask[:, :, None]).mean(1)),
    Pooling(
        "maximum with padding set to 0", lambda hidden, mask: (hidden * mask[:, :, None]).amax(1)
    ),
)


# The answer says True or False of every pooling: of a list of the flawed ones a message on its
# length would print the names.
def flawed_poolings(poolings: dict, hidden: Tensor, attention_mask: Tensor) -> dict:
    lengths = attention_mask.sum(dim=1).tolist()
    found = {}
    for name, pooling in poolings.items():
        alone = [
            pooling(hidden[row : row + 1, :length], attention_mask[row : row + 1, :length])
            for row, length in enumerate(lengths)
        ]
        found[name] = not torch.allclose(torch.cat(alone), pooling(hidden, attention_mask))
    return found


def _some_poolings(generator: Generator) -> tuple[dict, Tensor, Tensor]:
    """Two poolings that are right, two that read padding, two that depend on its length."""
    hidden, mask = _batch(generator)
    if whole(generator, 0, 1):  # the longest row, perhaps without padding, stands first
        hidden, mask = hidden.flip(0), mask.flip(0)
    right = torch.randperm(3, generator=generator)[:2].tolist()
    order = torch.randperm(6, generator=generator).tolist()
    chosen = [POOLINGS[n] for n in [*right, 3, 4, 5, 6]]
    # Below 0, so that a zero on padding is the maximum.
    return {chosen[n].name: chosen[n] for n in order}, hidden - 4, mask


def _found_by(differs: Callable) -> Callable:
    """For each pooling whether differs(pooling, hidden, mask) holds."""
    return lambda poolings, hidden, attention_mask: {
        name: differs(pooling, hidden, attention_mask) for name, pooling in poolings.items()
    }


def _by_content(pooling: Callable, hidden: Tensor, mask: Tensor) -> bool:
    other = hidden.masked_fill(mask[:, :, None] == 0, 1e3)
    return not torch.allclose(pooling(other, mask), pooling(hidden, mask))


def _by_real_tokens(pooling: Callable, hidden: Tensor, mask: Tensor) -> bool:
    return not torch.allclose(pooling(hidden + 1, mask), pooling(hidden, mask))


def _by_more_padding(pooling: Callable, hidden: Tensor, mask: Tensor) -> bool:
    longer = torch.cat([hidden, torch.zeros_like(hidden[:, :3])], dim=1)
    its_mask = torch.cat([mask, torch.zeros_like(mask[:, :3])], dim=1)
    return not torch.allclose(pooling(longer, its_mask), pooling(hidden, mask))


def _by_first_row(pooling: Callable, hidden: Tensor, mask: Tensor) -> bool:
    length = int(mask[0].sum())
    alone = pooling(hidden[:1, :length], mask[:1, :length])
    return not torch.allclose(alone, pooling(hidden, mask)[:1])


def _by_uncut_row(pooling: Callable, hidden: Tensor, mask: Tensor) -> bool:
    return not torch.allclose(pooling(hidden[-1:], mask[-1:]), pooling(hidden, mask)[-1:])


flawed_poolings = Exercise(
    solution=flawed_poolings,
    inputs=_some_poolings,
    mistakes=(
        Mistake(
            "your test changes what stands on padding and finds the poolings that read it; two "
            "more depend on how much padding there is. Pool each row also alone, cut to its real "
            "tokens",
            _found_by(_by_content),
        ),
        Mistake(
            "your test adds padding to a batch that has some already, and one flaw shows only "
            "against a row with none. Pool each row also alone, cut to its real tokens",
            _found_by(_by_more_padding),
        ),
        Mistake(
            "only the first row is tested, and it may be the one without padding; test each row",
            _found_by(_by_first_row),
        ),
        Mistake(
            "this calls every pooling flawed: the test changes real tokens too, and a pooling has "
            "to depend on those",
            _found_by(_by_real_tokens),
        ),
        Mistake(
            "this finds none: a row that keeps its padding gives the same vector alone as in the "
            "batch. Cut it to its real tokens",
            _found_by(_by_uncut_row),
        ),
        Mistake(
            "this is turned round: True is for a pooling that gives some row another vector",
            _found_by(
                lambda pooling, hidden, mask: pooling.name in {each.name for each in POOLINGS[:3]}
            ),
        ),
    ),
    hints=(
        "A row's pooled vector must be the same whether the row stands in the batch or alone.",
        "Alone means without padding: `hidden[[row], :length]` and `attention_mask[[row], "
        ":length]`, with `length` the number of ones in its mask.",
        "A pooling is flawed if `torch.allclose(alone, in_the_batch)` is False for any row.",
    ),
)

# 8. Lab: sizes of models, typed by hand


def wrong_sizes(typed: dict, models: dict) -> dict:
    counts = {name: _count(model.parameters()) for name, model in models.items()}
    return {n: count for n, count in counts.items() if abs(typed[n] - count) > 0.05 * count}


def _count(parameters) -> int:
    return sum(parameter.numel() for parameter in parameters)


class Model(torch.nn.Sequential):
    """Layers in a row that a message can show in one word."""

    def __init__(self, name: str, *layers: torch.nn.Module) -> None:
        super().__init__(*layers)
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


def _typed_table(generator: Generator) -> tuple[dict, dict]:
    """Four small models, two of them with a wrong number typed beside."""
    width, words = whole(generator, 60, 90), whole(generator, 400, 600)
    nn, at = torch.nn, {"device": "meta"}  # no memory and no random numbers
    read, write = nn.Embedding(words, width, **at), nn.Linear(width, words, bias=False, **at)
    write.weight = read.weight
    frozen = Model("frozen", nn.Linear(width, 20, **at), nn.Linear(20, 2, **at))
    frozen[0].requires_grad_(False)
    models = {
        "tied": Model("tied", read, write),
        "frozen": frozen,
        "normed": Model("normed", nn.Linear(width, 9, **at), nn.BatchNorm1d(9, **at)),
        "plain": Model("plain", nn.Linear(width, width, **at), nn.Linear(width, 3, **at)),
    }
    order = torch.randperm(4, generator=generator).tolist()
    names = [list(models)[n] for n in order]
    typed = {name: _count(models[name].parameters()) for name in names}
    # One far too large, one somewhat too small, two less than 5 % of the count off: the first of
    # these is more than 5 % of the typed number off.
    for name, factor in zip(names, (3.1, 0.94, 0.9513, 1.04), strict=True):
        typed[name] = round(typed[name] * factor)
    return typed, {name: models[name] for name in typed}


def _wrong_by(count: Callable) -> Callable:
    """The answer with another way to count."""

    def audit(typed: dict, models: dict) -> dict:
        counts = {name: count(model) for name, model in models.items()}
        return {n: c for n, c in counts.items() if abs(typed[n] - c) > 0.05 * c}

    return audit


_right_sizes = wrong_sizes  # the function: the name means the exercise later

wrong_sizes = Exercise(
    solution=wrong_sizes,
    inputs=_typed_table,
    mistakes=(
        Mistake(
            "`state_dict()` holds a shared table twice, and buffers that no optimizer touches; "
            "count over `parameters()`",
            _wrong_by(lambda model: _count(model.state_dict().values())),
        ),
        Mistake(
            "frozen parameters are missing: they are part of the model's size, trained or not",
            _wrong_by(lambda model: _count(p for p in model.parameters() if p.requires_grad)),
        ),
        Mistake(
            "this counts the tensors; add up their entries: `parameter.numel()`",
            _wrong_by(lambda model: len(list(model.parameters()))),
        ),
        Mistake(
            "the biases are missing: count every parameter, not only the weights",
            _wrong_by(
                lambda model: _count(
                    {id(p): p for n, p in model.named_parameters() if "bias" not in n}.values()
                )
            ),
        ),
        Mistake(
            "these are the numbers as they were typed; return those that you counted",
            lambda typed, models: {name: typed[name] for name in _right_sizes(typed, models)},
        ),
        Mistake(
            "this is the count of every model; printed sizes are rounded, so return only those "
            "that are more than 5 % off",
            lambda typed, models: {n: _count(model.parameters()) for n, model in models.items()},
        ),
        Mistake(
            "5 % of the typed number is the measure here; take 5 % of the count, which is right",
            lambda typed, models: {
                name: count
                for name, model in models.items()
                if abs(typed[name] - (count := _count(model.parameters()))) > 0.05 * typed[name]
            },
        ),
        Mistake(
            "only numbers that are too large were found; too small is wrong as well: take the "
            "absolute difference",
            lambda typed, models: {
                name: count
                for name, count in _right_sizes(typed, models).items()
                if typed[name] > count
            },
        ),
    ),
    hints=(
        "A model's size is the sum of `parameter.numel()` over `model.parameters()`, which names "
        "a shared tensor once.",
        "A row is wrong where the typed number is more than 5 % of the count away from it.",
        "Collect `{name: count}` for the rows with `abs(typed[name] - count) > 0.05 * count`.",
    ),
)
