"""The exercises of lesson 09: what each expects, its known mistakes, and its hints."""

from __future__ import annotations

import re
from dataclasses import astuple

import torch
from torch import Generator, Tensor

from tutorkit import adversarial, losses
from tutorkit.checks.exercise import Exercise, Mistake
from tutorkit.checks.inputs import between, normal, pick, whole

# 1. One step of FGM


def _step(change) -> object:
    """A function of the exercise's inputs from one of (gradient, real, unit, epsilon)."""

    def worst_change(gradient: Tensor, mask: Tensor, unit: Tensor, epsilon: float) -> Tensor:
        real = mask[:, :, None].to(gradient)
        return change(gradient, real, unit[:, None, None], epsilon)

    return worst_change


def _over(t: Tensor, dims: tuple[int, ...]) -> Tensor:
    """t over its length along some dimensions; 0 where all is 0."""
    length = t.pow(2).sum(dims, keepdim=True).sqrt()
    return t / length.where(length > 0, 1)


def worst_change(gradient: Tensor, mask: Tensor, unit: Tensor, epsilon: float) -> Tensor:
    real = mask[:, :, None].to(gradient)
    return unit[:, None, None] * losses.fgm_perturbation(gradient * real, epsilon)


def _a_batch(generator: Generator) -> tuple[Tensor, Tensor, Tensor, float]:
    B, T, D = whole(generator, 3, 5), whole(generator, 4, 7), whole(generator, 2, 4)
    gradient = normal(generator, B, T, D) * torch.exp(normal(generator, B, 1, 1))
    lengths = torch.randint(1, T, (B,), generator=generator)
    lengths[whole(generator, 0, B - 1)] = T
    gradient[whole(generator, 0, B - 1)] = 0.0  # a row that the loss does not depend on
    mask = (torch.arange(T) < lengths[:, None]).long()
    unit = torch.exp(normal(generator, B, scale=0.4))
    return gradient, mask, unit, pick(generator, (0.1, 0.5, 2.0))


worst_change = Exercise(
    solution=worst_change,
    inputs=_a_batch,
    tolerance=1e-6,  # room for a small number added to the length
    mistakes=(
        Mistake(
            "a row without a gradient gives 0 / 0: put 1 in the place of a length of 0",
            _step(lambda g, real, unit, e: unit * e * (g * real)
                  / (g * real).pow(2).sum((1, 2), keepdim=True).sqrt()),
        ),
        Mistake(
            "one length is taken over the whole batch, so that a row's change depends on the other "
            "rows: sum the squares over tokens and entries, `dim=(1, 2)`",
            _step(lambda g, real, unit, e: unit * e * _over(g * real, (0, 1, 2))),
        ),
        Mistake(
            "each token has a length of its own, so that a text of T tokens moves by √T times the "
            "radius: one length for a row, over tokens and entries",
            _step(lambda g, real, unit, e: unit * e * _over(g * real, (2,))),
        ),
        Mistake(
            "padding is moved: multiply the gradient by the mask before all else",
            _step(lambda g, real, unit, e: unit * e * _over(g, (1, 2))),
        ),
        Mistake(
            "padding is taken out after the length was measured, so that a row moves less than the "
            "radius: mask the gradient first",
            _step(lambda g, real, unit, e: unit * e * _over(g, (1, 2)) * real),
        ),
        Mistake(
            "the radius is ε itself; asked for is ε times the row's unit",
            _step(lambda g, real, unit, e: e * _over(g * real, (1, 2))),
        ),
        Mistake(
            "these are the signs of the gradient, the step for the largest single entry; here the "
            "length of the row's change is bounded: g / ‖g‖",
            _step(lambda g, real, unit, e: unit * e * (g * real).sign()),
        ),
        Mistake(
            "this goes down the loss: the worst change goes along +g",
            _step(lambda g, real, unit, e: -unit * e * _over(g * real, (1, 2))),
        ),
        Mistake(
            "the gradient is not divided by its length: every row has the radius, however steep "
            "its loss is",
            _step(lambda g, real, unit, e: unit * e * g * real),
        ),
    ),
    hints=(
        "Begin with `g = gradient * mask[:, :, None]`: from here on padding is 0.",
        "One length for each row, kept as (B, 1, 1): "
        "`length = g.pow(2).sum(dim=(1, 2), keepdim=True).sqrt()`.",
        "`epsilon * unit[:, None, None] * g / length.where(length > 0, 1)`",
    ),
)  # fmt: skip

# 2. Back onto the ball


def onto_ball(delta: Tensor, epsilon: float) -> Tensor:
    return losses.project(delta, epsilon)


def _norm(t: Tensor, dims: tuple[int, ...] = (1, 2)) -> Tensor:
    return t.pow(2).sum(dims, keepdim=True).sqrt()


def _ball(projected) -> object:
    def onto_ball(delta: Tensor, epsilon: float) -> Tensor:
        return projected(delta, epsilon)

    return onto_ball


def _some_changes(generator: Generator) -> tuple[Tensor, float]:
    B, T, D = whole(generator, 4, 6), whole(generator, 2, 4), whole(generator, 2, 4)
    epsilon = pick(generator, (0.3, 1.0, 2.5))
    sizes = torch.tensor([between(generator, 0.2, 0.9) if row % 2 else
                          between(generator, 1.1, 3.0) for row in range(B)])  # fmt: skip
    directions = _over(normal(generator, B, T, D), (1, 2))
    delta = directions * (epsilon * sizes)[:, None, None]
    delta[1] = 0.0
    return delta, epsilon


onto_ball = Exercise(
    solution=onto_ball,
    inputs=_some_changes,
    tolerance=1e-6,
    mistakes=(
        Mistake(
            "rows inside the ball are blown up to its edge: they are their own nearest point and "
            "stay. The factor is min(1, ε / ‖δ‖)",
            _ball(lambda d, e: e * _over(d, (1, 2))),
        ),
        Mistake(
            "one length is taken over the whole batch; every row has its own",
            _ball(lambda d, e: d * (e / _norm(d, (0, 1, 2))).clamp(max=1)),
        ),
        Mistake(
            "each token is projected by itself; the ball is one for the row, over all its entries",
            _ball(lambda d, e: torch.where(_norm(d, (2,)) > e, e * _over(d, (2,)), d)),
        ),
        Mistake(
            "each entry is cut to [−ε, ε]: that is the cube of the largest single entry, not the "
            "ball of the length",
            _ball(lambda d, e: d.clamp(-e, e)),
        ),
        Mistake(
            "rows outside the ball become 0; the nearest point of the ball is on its edge, in the "
            "same direction",
            _ball(lambda d, e: torch.where(_norm(d) > e, torch.zeros_like(d), d)),
        ),
        Mistake(
            "a row of zeros gives 0 · ∞ or 0 / 0: it lies inside, so its factor is 1",
            _ball(lambda d, e: torch.where(_norm(d) > 0, torch.where(
                _norm(d) > e, e * _over(d, (1, 2)), d), torch.nan)),
        ),
        Mistake(
            "the length is compared without its root: ‖δ‖² against ε",
            _ball(lambda d, e: torch.where(_norm(d) ** 2 > e, e * _over(d, (1, 2)), d)),
        ),
    ),
    hints=(
        "A row keeps its direction; only its length is cut to at most ε.",
        "`length = delta.pow(2).sum(dim=(1, 2), keepdim=True).sqrt()`, one number a row.",
        "`delta * (epsilon / length.clamp(min=epsilon))`: the factor is 1 where length ≤ ε.",
    ),
)  # fmt: skip

# 3. Pairs


def _scores(*parts) -> object:
    """A function of the exercise's inputs from three of (right, predictions)."""

    def pair_scores(predictions: Tensor, labels: Tensor) -> Tensor:
        right = predictions == labels
        return torch.stack([part(right, predictions).double() for part in parts])

    return pair_scores


def _texts_right(right: Tensor, predictions: Tensor) -> Tensor:
    return right.double().mean()


def _pairs_right(right: Tensor, predictions: Tensor) -> Tensor:
    return right.all(dim=1).double().mean()


def _one_answer(right: Tensor, predictions: Tensor) -> Tensor:
    return (predictions[:, 0] == predictions[:, 1]).double().mean()


_right_scores = _scores(_texts_right, _pairs_right, _one_answer)


def pair_scores(predictions: Tensor, labels: Tensor) -> Tensor:
    return _right_scores(predictions, labels)


def _some_pairs(generator: Generator) -> tuple[Tensor, Tensor]:
    P = whole(generator, 14, 24)
    first = torch.randint(0, 2, (P,), generator=generator)
    labels = torch.stack([first, 1 - first], dim=1)
    # Both right, one answer for both, both wrong: each comes, and no two equally often.
    kinds = torch.tensor([0] * whole(generator, 5, 6) + [1] * whole(generator, 2, 3) + [2])
    kinds = torch.cat([kinds, torch.full((P - len(kinds),), 3)])
    kinds = kinds[torch.randperm(P, generator=generator)]
    one = torch.stack([torch.randint(0, 2, (P,), generator=generator)] * 2, dim=1)
    predictions = torch.where((kinds == 0)[:, None], labels, one)
    predictions = torch.where((kinds == 2)[:, None], 1 - labels, predictions)
    return predictions, labels


pair_scores = Exercise(
    solution=pair_scores,
    inputs=_some_pairs,
    mistakes=(
        Mistake(
            "the second number counts pairs with one member right or more: both have to be",
            _scores(_texts_right, lambda r, p: r.any(dim=1).double().mean(), _one_answer),
        ),
        Mistake(
            "the second number is the first one squared, as if the two members of a pair had "
            "nothing in common: count the pairs",
            _scores(_texts_right, lambda r, p: r.double().mean() ** 2, _one_answer),
        ),
        Mistake(
            "the third number counts pairs with both members wrong; asked for are those with the "
            "same answer twice, of which one is right and one wrong",
            _scores(_texts_right, _pairs_right, lambda r, p: (~r).all(dim=1).double().mean()),
        ),
        Mistake(
            "the third number counts pairs that are right or wrong together; asked for is whether "
            "the two predictions are equal",
            _scores(_texts_right, _pairs_right, lambda r, p: (r[:, 0] == r[:, 1]).double().mean()),
        ),
        Mistake(
            "the first number looks at the first members alone: there are two texts a pair",
            _scores(lambda r, p: r[:, 0].double().mean(), _pairs_right, _one_answer),
        ),
        Mistake(
            "these are counts: divide by the number of texts or of pairs",
            _scores(lambda r, p: r.sum(), lambda r, p: r.all(dim=1).sum(),
                    lambda r, p: (p[:, 0] == p[:, 1]).sum()),
        ),
    ),
    hints=(
        "`right = predictions == labels` is (P, 2): the mean of all of it is the first number.",
        "Both members of a pair: `right.all(dim=1)`.",
        "`torch.stack([a, b, c])` of three means, each after `.double()`; the third one is about "
        "`predictions[:, 0] == predictions[:, 1]`.",
    ),
)  # fmt: skip

# 4. How often through the model

METHODS = ("FGM", "PGD", "FreeLB", "VAT")


def passes(method: str, steps: int) -> tuple[int, int, int]:
    made = {
        "FGM": lambda: adversarial.FGM(),
        "PGD": lambda: adversarial.PGD(steps=steps),
        "FreeLB": lambda: adversarial.FreeLB(steps=steps),
        "VAT": lambda: adversarial.VAT(iterations=steps),
    }[method]()
    return astuple(made.passes)


_right_passes = passes


def _except(wrong_for: str, answer) -> object:
    def passes(method: str, steps: int) -> tuple[int, int, int]:
        return answer(steps) if method == wrong_for else _right_passes(method, steps)

    return passes


def _a_method(generator: Generator) -> tuple[str, int]:
    # The seeds of a check are multiples of 11 in turn: so each method comes.
    method = METHODS[generator.initial_seed() // 11 % len(METHODS)]
    return method, whole(generator, 2, 9)


passes = Exercise(
    solution=passes,
    inputs=_a_method,
    mistakes=(
        Mistake(
            "FGM: g comes with the clean pass, which is trained on as well, so that there are two "
            "forward and two full backward passes, and no inner one",
            _except("FGM", lambda k: (3, 2, 1)),
        ),
        Mistake(
            "FGM: the clean texts count too, not the moved ones alone",
            _except("FGM", lambda k: (2, 1, 1)),
        ),
        Mistake(
            "FGM has one step, whatever K is",
            _except("FGM", lambda k: (k + 1, k + 1, 0)),
        ),
        Mistake(
            "PGD: after the K steps the loss at the last place is what the weights learn from: one "
            "forward pass more",
            _except("PGD", lambda k: (k, 1, k)),
        ),
        Mistake(
            "PGD: its K gradients are for the embeddings alone: inner ones",
            _except("PGD", lambda k: (k + 1, k + 1, 0)),
        ),
        Mistake(
            "FreeLB: each backward pass serves the weights and the next step at once; none is an "
            "inner one",
            _except("FreeLB", lambda k: (k + 1, 1, k)),
        ),
        Mistake(
            "FreeLB: K passes in all; the first of them is at the random start",
            _except("FreeLB", lambda k: (k + 1, k + 1, 0)),
        ),
        Mistake(
            "VAT: p(x) needs a forward pass of its own, before the K of the power method and the "
            "last one",
            _except("VAT", lambda k: (k + 1, 2, k)),
        ),
        Mistake(
            "VAT: the weights learn from the labels and from the divergence: two backward passes",
            _except("VAT", lambda k: (k + 2, 1, k)),
        ),
    ),
    hints=(
        "Write down for each method what a step does, pass after pass, as sections 4 and 5 do.",
        "An inner backward pass serves the search alone: FGM and FreeLB have none.",
        '"PGD": (K + 1, 1, K). "VAT": one pass for p(x), K for the power method, one at the end.',
    ),
)

# 5. How many typos

_RUN = r"[A-Za-z]{4,}"


def _typo_table(count, expected=lambda n, r: n * r, untouched=lambda n, r: (1 - r) ** n) -> object:
    def expected_typos(texts: list[str], rate: float) -> Tensor:
        rows = [[expected(count(t), rate), untouched(count(t), rate)] for t in texts]
        return torch.tensor(rows, dtype=torch.float64)

    return expected_typos


def _long_words(text: str) -> int:
    return len(re.findall(_RUN, text))


_right_typos = _typo_table(_long_words)


def expected_typos(texts: list[str], rate: float) -> Tensor:
    return _right_typos(texts, rate)


_PIECES = ("a film", "wonderful", "it wasn't", "wouldn't", "the end.", "dull", "slow, slow",
           "well-made", "1994", "(really)", "I saw", "songs!", "great", "no", "boring;",
           "MUSIC", "been there", "so-so")  # fmt: skip


def _some_texts(generator: Generator) -> tuple[list[str], float]:
    texts = [" ".join(pick(generator, _PIECES) for _ in range(whole(generator, 3, 7)))
             for _ in range(3)]  # fmt: skip
    # What answers trip over; the last text has no word that is long enough.
    texts = [f"isn't, wouldn't end. {texts[0]}", f"well-made, {texts[1]} (wry)", texts[2], "so it"]
    return texts, pick(generator, (0.05, 0.1, 0.3))


expected_typos = Exercise(
    solution=expected_typos,
    inputs=_some_texts,
    mistakes=(
        Mistake(
            "every word counts here; only those of four letters or more can be misspelled",
            _typo_table(lambda t: len(t.split())),
        ),
        Mistake(
            "every run of letters counts here; only those of four letters or more can be "
            "misspelled",
            _typo_table(lambda t: len(re.findall(r"[A-Za-z]+", t))),
        ),
        Mistake(
            "punctuation counts as letters: “end.” has three. Look for runs of letters, not for "
            "what white space separates",
            _typo_table(lambda t: sum(len(w) >= 4 for w in t.split())),
        ),
        Mistake(
            "words of four letters are left out: four or more",
            _typo_table(lambda t: len(re.findall(r"[A-Za-z]{5,}", t))),
        ),
        Mistake(
            "the chance that nothing happens is a product over the words, (1 − rate)ⁿ, not "
            "1 − n · rate",
            _typo_table(_long_words, untouched=lambda n, r: 1 - n * r),
        ),
        Mistake(
            "the second number is the chance of one typo or more; asked for is that of none",
            _typo_table(_long_words, untouched=lambda n, r: 1 - (1 - r) ** n),
        ),
        Mistake(
            "the second number is the chance that every word is hit: (1 − rate)ⁿ is that of none",
            _typo_table(_long_words, untouched=lambda n, r: r**n),
        ),
        Mistake(
            "the first number is how many words can be hit: each is so with the chance `rate`",
            _typo_table(_long_words, expected=lambda n, r: n),
        ),
    ),
    hints=(
        "`re.findall(r'[A-Za-z]{4,}', text)` lists the words that can be misspelled.",
        "With n of them: on average n · rate typos.",
        "Each stays with chance 1 − rate, independently of the others: (1 − rate) ** n for all.",
    ),
)

# 6. Spot the flaw: what an attack did


def _attack(*parts) -> object:
    """A function of (before, after) from the three numbers."""

    def attack_report(before: Tensor, after: Tensor) -> Tensor:
        return torch.stack([part(before, after).double() for part in parts])

    return attack_report


def _clean(before: Tensor, after: Tensor) -> Tensor:
    return before.double().mean()


def _held(before: Tensor, after: Tensor) -> Tensor:
    return (before & after).double().mean()


def _success(before: Tensor, after: Tensor) -> Tensor:
    return (before & ~after).sum().double() / before.sum()


_right_report = _attack(_clean, _held, _success)


def attack_report(before: Tensor, after: Tensor) -> Tensor:
    return _right_report(before, after)


def _attacked_rows(generator: Generator) -> tuple[Tensor, Tensor]:
    # Of each kind some: held, flipped, wrong and still wrong, wrong and made right.
    counts = [whole(generator, 5, 9), whole(generator, 6, 9), whole(generator, 3, 5),
              whole(generator, 1, 2)]  # fmt: skip
    kinds = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    kinds = kinds[torch.randperm(len(kinds), generator=generator)]
    return kinds < 2, (kinds == 0) | (kinds == 3)


attack_report = Exercise(
    solution=attack_report,
    inputs=_attacked_rows,
    mistakes=(
        Mistake(
            "the success rate is the report's flaw: rows that were wrong already count as its "
            "successes. Count the rows that were right and are wrong now, among those that were "
            "right",
            _attack(_clean, _held, lambda b, a: (~a).double().mean()),
        ),
        Mistake(
            "the success rate divides by all rows: a row that is wrong as it stands can't be "
            "flipped, so divide by those that were right",
            _attack(_clean, _held, lambda b, a: (b & ~a).double().mean()),
        ),
        Mistake(
            "the second number counts rows that the attack made right: a row is right under attack "
            "if it was right before and still is",
            _attack(_clean, lambda b, a: a.double().mean(), _success),
        ),
        Mistake(
            "this is the report itself, with both of its flaws: rows that were wrong already are "
            "successes, and rows that the attack made right count as right",
            _attack(_clean, lambda b, a: a.double().mean(), lambda b, a: (~a).double().mean()),
        ),
        Mistake(
            "the success rate is taken from the fall in accuracy; rows that the attack made right "
            "hide some of its successes",
            _attack(_clean, _held, lambda b, a: (b.sum() - a.sum()) / b.sum()),
        ),
        Mistake(
            "the second number is a share of the rows that were right before; asked for is one of "
            "all rows, to stand beside the clean accuracy",
            _attack(_clean, lambda b, a: (b & a).sum().double() / b.sum(), _success),
        ),
    ),
    hints=(
        "There are four kinds of rows: right or wrong before, right or wrong after.",
        "Flipped: `before & ~after`. Right under attack: `before & after`.",
        "The success rate: flipped rows over `before.sum()`; the other two: over all rows.",
    ),
)  # fmt: skip

# 7. Spot the flaw: a change that leaks


def _recipe(of_table, masked: bool = True) -> object:
    """The size of each row's change from what happens to the table: (V, D) of its gradient."""

    def row_sizes(input_ids: Tensor, mask: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
        real = mask[:, :, None].to(gradient)
        by_word = gradient.new_zeros(int(input_ids.max()) + 1, gradient.shape[2])
        by_word.index_add_(0, input_ids.flatten(), (gradient * real).flatten(0, 1))
        moved = of_table(by_word, gradient * real, epsilon)[input_ids]  # (B, T, D)
        return _norm(moved * real if masked else moved).flatten()

    return row_sizes


_right_sizes = _recipe(lambda table, g, e: e * table / _norm(table, (0, 1)))


def row_sizes(input_ids: Tensor, mask: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    return _right_sizes(input_ids, mask, gradient, epsilon)


def _intended(input_ids: Tensor, mask: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    return torch.full((len(mask),), epsilon, dtype=gradient.dtype)


def _not_summed(input_ids: Tensor, mask: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    g = gradient * mask[:, :, None]
    return epsilon * _norm(g).flatten() / _norm(g, (0, 1, 2)).flatten()


def _no_repeats(input_ids: Tensor, mask: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    """Each word of a row counts once."""
    g = gradient * mask[:, :, None]
    by_word = g.new_zeros(int(input_ids.max()) + 1, g.shape[2])
    by_word.index_add_(0, input_ids.flatten(), g.flatten(0, 1))
    step = epsilon * by_word / _norm(by_word, (0, 1))
    sizes = []
    for ids, real in zip(input_ids, mask, strict=True):
        sizes.append(step[ids[real == 1].unique()].pow(2).sum().sqrt())
    return torch.stack(sizes)


def _a_table_batch(generator: Generator) -> tuple[Tensor, Tensor, Tensor, float]:
    B, T, D = whole(generator, 3, 4), whole(generator, 5, 7), whole(generator, 2, 3)
    input_ids = torch.randint(1, 7, (B, T), generator=generator)  # few words: some come again
    input_ids[0, 0] = input_ids[0, 1]
    lengths = torch.randint(2, T, (B,), generator=generator)
    lengths[whole(generator, 0, B - 1)] = T
    mask = (torch.arange(T) < lengths[:, None]).long()
    # As in some tokenizers, padding is a word that real places may hold as well.
    input_ids = torch.where(mask == 1, input_ids, 3)
    gradient = normal(generator, B, T, D) * torch.exp(normal(generator, B, 1, 1))
    return input_ids, mask, gradient * mask[:, :, None], pick(generator, (0.5, 1.0))


row_sizes = Exercise(
    solution=row_sizes,
    inputs=_a_table_batch,
    mistakes=(
        Mistake(
            "this is what the recipe means to do, ε for every row. Follow what it does: the rows "
            "share one table, and one length",
            _intended,
        ),
        Mistake(
            "the gradient of a word is the sum over all its places in the batch, and each of these "
            "places is moved by the whole of it",
            _not_summed,
        ),
        Mistake(
            "a word that stands twice in a row is moved in both places, so it counts twice",
            _no_repeats,
        ),
        Mistake(
            "every word's step has the length ε: divide by one length, that of the whole table's "
            "gradient",
            _recipe(lambda table, g, e: e * _over(table, (1,))),
        ),
        Mistake(
            "places that hold padding count: the model does not look at them",
            _recipe(lambda table, g, e: e * table / _norm(table, (0, 1)), masked=False),
        ),
        Mistake(
            "the length is that of the single places' gradients; the table's gradient holds their "
            "sums by word",
            _recipe(lambda table, g, e: e * table / _norm(g, (0, 1, 2))[0]),
        ),
        Mistake(
            "these are the squares of the sizes: take the root",
            lambda input_ids, mask, gradient, epsilon: _right_sizes(
                input_ids, mask, gradient, epsilon) ** 2,
        ),
    ),
    hints=(
        "First the table's gradient G, (V, D): row v is the sum of `gradient` over the places "
        "where `input_ids` is v. A loop over rows and places will do.",
        "The recipe's step is `epsilon * G / G.pow(2).sum().sqrt()`, one length for all of G; a "
        "place with the word v gets its row v.",
        "`moved = step[input_ids] * mask[:, :, None]`, then the root of the sum of its squares "
        "over dim (1, 2).",
    ),
)  # fmt: skip
