"""The exercises of lesson 00: what each expects, its known mistakes, and its hints."""

from __future__ import annotations

import torch
from torch import Generator

from tutorkit.checks.exercise import Exercise, Mistake
from tutorkit.checks.inputs import between, pick, whole

# 1. Accuracy by hand


def accuracy(labels: list[int], predictions: list[int]) -> float:
    pairs = zip(labels, predictions, strict=True)
    return sum(label == prediction for label, prediction in pairs) / len(labels)


def _positives_found(labels: list[int], predictions: list[int]) -> int:
    return sum(a == b == 1 for a, b in zip(labels, predictions, strict=True))


def _answers(generator: Generator) -> tuple[list[int], list[int]]:
    n = whole(generator, 9, 16)
    labels = [1, 0, 0] + torch.randint(2, (n,), generator=generator).tolist()
    # Of the first three rows one positive and one negative are right. In all most are, so that
    # the share of right ones is not the share of wrong ones.
    flipped = [0, 0, 1] + (torch.rand(n, generator=generator) < 0.25).int().tolist()
    return labels, [abs(label - wrong) for label, wrong in zip(labels, flipped, strict=True)]


accuracy = Exercise(
    solution=accuracy,
    inputs=_answers,
    mistakes=(
        Mistake(
            "this is the share of wrong answers; accuracy is the share of right ones",
            lambda labels, predictions: 1 - accuracy.solution(labels, predictions),
        ),
        Mistake(
            "this is how many are right; divide by the number of rows",
            lambda labels, predictions: sum(
                a == b for a, b in zip(labels, predictions, strict=True)
            ),
        ),
        Mistake(
            "this is in per cent; an accuracy is a number from 0 to 1",
            lambda labels, predictions: 100 * accuracy.solution(labels, predictions),
        ),
        Mistake(
            "`//` cuts the fraction off: divide by `/`",
            lambda labels, predictions: int(accuracy.solution(labels, predictions)),
        ),
        Mistake(
            "only the right positives are counted; a right negative counts as well",
            lambda labels, predictions: _positives_found(labels, predictions) / len(labels),
        ),
        Mistake(
            "this is the share of the positives that were found, their recall; accuracy asks "
            "about all rows",
            lambda labels, predictions: _positives_found(labels, predictions) / sum(labels),
        ),
        Mistake(
            "this compares how many positives there are in each list; compare row by row",
            lambda labels, predictions: 1 - abs(sum(labels) - sum(predictions)) / len(labels),
        ),
    ),
    hints=(
        "`zip(labels, predictions)` gives the pairs. In how many are both equal?",
        "`sum(a == b for a, b in zip(labels, predictions))` counts them. Divide by `len(labels)`.",
    ),
)

# 2. The steps of a run


def steps_in_run(rows: int, batch_size: int, epochs: int) -> int:
    return -(-rows // batch_size) * epochs


# One run in three has no short batch. Elsewhere the short ones of all epochs would fill a batch.
def _run(generator: Generator) -> tuple[int, int, int]:
    batch_size, full = pick(generator, (8, 16, 32)), whole(generator, 3, 30)
    short = pick(generator, (0, batch_size // 2 + 1, batch_size // 4))
    return full * batch_size + short, batch_size, whole(generator, 2, 5)


steps_in_run = Exercise(
    solution=steps_in_run,
    inputs=_run,
    mistakes=(
        Mistake(
            "the last batch of an epoch is left out where it is short; it is a step as well. "
            "Round up",
            lambda rows, batch_size, epochs: rows // batch_size * epochs,
        ),
        Mistake(
            "a step is added to each epoch even where the rows fill the last batch: round up "
            "instead of adding 1",
            lambda rows, batch_size, epochs: (rows // batch_size + 1) * epochs,
        ),
        Mistake(
            "the rows of all epochs are cut into batches as if they were one long epoch; each "
            "epoch ends with its own short batch. Round up first, then multiply",
            lambda rows, batch_size, epochs: -(-rows * epochs // batch_size),
        ),
        Mistake(
            "these are the steps of one epoch: multiply by the epochs",
            lambda rows, batch_size, epochs: -(-rows // batch_size),
        ),
        Mistake(
            "these are rows, not steps: a step takes a whole batch",
            lambda rows, batch_size, epochs: rows * epochs,
        ),
        Mistake(
            "there are no parts of a step: round the batches of an epoch up to a whole number",
            lambda rows, batch_size, epochs: rows / batch_size * epochs,
        ),
    ),
    hints=(
        "First the batches of one epoch. 33 rows in batches of 16 are 3.",
        "`math.ceil(rows / batch_size)`, times the epochs.",
    ),
)

# 3. Which score is higher, judged by intervals


def higher(first: list[float], second: list[float]) -> str:
    if first[0] > second[1]:
        return "first"
    return "second" if second[0] > first[1] else "open"


def _by(first_is_higher) -> object:
    """A wrong answer that never says "open"."""

    def higher(first: list[float], second: list[float]) -> str:
        return "first" if first_is_higher(first, second) else "second"

    return higher


# The order of the kinds makes the six inputs of a check hold them all, apart and overlapping ones
# in both directions.
def _intervals(generator: Generator) -> tuple[list[float], list[float]]:
    first = whole(generator, 0, 1)
    kind = pick(generator, ("apart", "apart", "inside", "overlap"))
    low = between(generator, 0.5, 0.6)
    high = low + between(generator, 0.05, 0.15)
    if kind == "apart":
        other = [high + 0.02, high + 0.02 + between(generator, 0.05, 0.15)]
    elif kind == "overlap":
        other = [(low + high) / 2 + 0.01, high + 0.05]
    else:
        other = [low + 0.01, high - 0.02]
    pair = [[round(end, 3) for end in each] for each in ([low, high], other)]
    return pair[first], pair[1 - first]


higher = Exercise(
    solution=higher,
    inputs=_intervals,
    mistakes=(
        Mistake(
            'every difference counts here; where the intervals overlap the answer is "open". '
            "Compare the lower end of one with the upper end of the other",
            _by(lambda first, second: sum(first) > sum(second)),
        ),
        Mistake(
            "the lower ends are compared with each other; compare the lower end of one with the "
            "upper end of the other",
            _by(lambda first, second: first[0] > second[0]),
        ),
        Mistake(
            "the answers are the wrong way round: the higher score is asked for",
            lambda first, second: higher.solution(second, first),
        ),
        Mistake(
            "only one direction is looked at: the second score can be the higher one as well",
            lambda first, second: "first" if first[0] > second[1] else "open",
        ),
        Mistake(
            "only one direction is looked at: the first score can be the higher one as well",
            lambda first, second: "second" if second[0] > first[1] else "open",
        ),
        Mistake(
            "one interval with a higher lower end and a higher upper end is not enough: the two "
            "may overlap",
            lambda first, second: (
                "first" if first[0] > second[0] and first[1] > second[1]
                else "second" if first[0] < second[0] and first[1] < second[1] else "open"
            ),
        ),
    ),
    hints=(
        "Two intervals don't overlap if one of them begins above the end of the other.",
        '`first[0] > second[1]`: then the first is higher. The same the other way round, else '
        '"open".',
    ),
)  # fmt: skip

# 4. The memory of training


def _bytes(of_all: int, of_trained: int) -> object:
    """The answer of who keeps so many numbers for each parameter and for each trained one."""

    def training_bytes(parameters: int, trained: int, bytes_each: int) -> int:
        return (of_all * parameters + of_trained * trained) * bytes_each

    return training_bytes


training_bytes = Exercise(
    solution=_bytes(1, 3),
    inputs=lambda generator: (
        (n := 1000 * whole(generator, 100, 900)),
        n // whole(generator, 2, 5),
        pick(generator, (2, 4, 8)),
    ),
    mistakes=(
        Mistake("these are the weights alone; a gradient and two running means are missing",
                _bytes(1, 0)),
        Mistake("a gradient is missing, or a running mean: AdamW keeps two means for each trained "
                "parameter, of the gradient and of its square", _bytes(1, 2)),
        Mistake("the two running means that AdamW keeps for each trained parameter are missing",
                _bytes(1, 1)),
        Mistake("every parameter is counted as trained; a frozen one has no gradient and no "
                "running means", _bytes(4, 0)),
        Mistake("the frozen weights are missing: they are in memory as well", _bytes(0, 4)),
        Mistake("the weights of the trained parameters are counted twice: they are among "
                "`parameters`", _bytes(1, 4)),
        Mistake("this is the number of values: multiply by the bytes of each",
                lambda parameters, trained, bytes_each: parameters + 3 * trained),
    ),
    hints=(
        "How many numbers are kept for a frozen parameter, and how many for a trained one?",
        "One for each parameter; for each trained one three more: gradient and two means.",
        "`(parameters + 3 * trained) * bytes_each`",
    ),
)  # fmt: skip

# 5. A lesson's time on another machine


def seconds_here(training_s: float, rest_s: float, step_there: float, step_here: float) -> float:
    return training_s * step_here / step_there + rest_s


def _times(generator: Generator) -> tuple[float, float, float, float]:
    there = between(generator, 0.1, 0.4)
    factor = pick(generator, (0.1, 0.5, 1.7, 3.0))
    seconds = (between(generator, 20, 60), between(generator, 5, 15))
    return tuple(round(value, 3) for value in (*seconds, there, there * factor))


seconds_here = Exercise(
    solution=seconds_here,
    inputs=_times,
    mistakes=(
        Mistake(
            "the ratio is upside down: where a step takes twice as long, so does training",
            lambda training_s, rest_s, step_there, step_here: (
                training_s * step_there / step_here + rest_s
            ),
        ),
        Mistake(
            "the rest is scaled as well; here it takes as long as there",
            lambda training_s, rest_s, step_there, step_here: (
                (training_s + rest_s) * step_here / step_there
            ),
        ),
        Mistake(
            "the rest is scaled and the training is not: it is the other way round",
            lambda training_s, rest_s, step_there, step_here: (
                training_s + rest_s * step_here / step_there
            ),
        ),
        Mistake(
            "the rest is missing: add it, unchanged",
            lambda training_s, rest_s, step_there, step_here: training_s * step_here / step_there,
        ),
        Mistake(
            "this is the time on the other machine: training is not scaled yet",
            lambda training_s, rest_s, step_there, step_here: training_s + rest_s,
        ),
    ),
    hints=(
        "A step that takes twice as long here makes training take twice as long.",
        "`training_s * step_here / step_there`, plus the rest.",
    ),
)
