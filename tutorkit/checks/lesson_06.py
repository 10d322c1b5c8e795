"""The exercises of lesson 06: what each expects, its known mistakes, and its hints."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from tutorkit import transfer
from tutorkit.checks.exercise import Exercise, Mistake
from tutorkit.checks.inputs import between, normal, pick, whole

# 1. The learning rate of every layer


def _by_depth(rate) -> object:
    """A function of (peak, layers, decay) from a rate by depth; the depth of the head is 0."""

    def layer_rates(peak: float, layers: int, decay: float) -> Tensor:
        rates = [rate(peak, layers, decay, depth) for depth in range(layers + 1, -1, -1)]
        return torch.tensor(rates, dtype=torch.float64)

    return layer_rates


_right_rates = _by_depth(lambda peak, layers, decay, depth: peak * decay**depth)


def layer_rates(peak: float, layers: int, decay: float) -> Tensor:
    return _right_rates(peak, layers, decay)


def _stack(generator: Generator) -> tuple[float, int, float]:
    return pick(generator, (1.0, 3e-4, 0.01)), whole(generator, 2, 7), between(generator, 0.3, 0.9)


layer_rates = Exercise(
    solution=layer_rates,
    inputs=_stack,
    # A peak of 3e-4 makes a mistake small beside 1, which differences are measured by.
    tolerance=1e-12,
    mistakes=(
        Mistake(
            "the order is turned round: the first rate is that of the embeddings, the last one is "
            "the head's",
            lambda peak, layers, decay: _right_rates(peak, layers, decay).flip(0),
        ),
        Mistake(
            "the last layer has the full rate; the head has, and the last layer learns at decay "
            "times that",
            _by_depth(lambda peak, layers, decay, depth: peak * decay ** max(depth - 1, 0)),
        ),
        Mistake(
            "the embeddings have the rate of the first layer; they count as one layer more",
            _by_depth(lambda peak, layers, decay, depth: peak * decay ** min(depth, layers)),
        ),
        Mistake(
            "the rates fall along a straight line; each is a fixed share of the one above, which "
            "makes them powers",
            _by_depth(lambda peak, layers, decay, depth: peak * (1 - (1 - decay) * depth)),
        ),
        Mistake(
            "the rates grow towards the embeddings: on the way down, multiply by decay",
            _by_depth(lambda peak, layers, decay, depth: peak / decay**depth),
        ),
    ),
    hints=(
        "Begin with the head: depth 0. The last layer has depth 1, the embeddings layers + 1.",
        "A depth d has the rate peak * decay**d.",
        "`depths = torch.arange(layers + 1, -1, -1, dtype=torch.float64)` goes from the embeddings "
        "up.",
    ),
)

# 2. A difference over seeds


def _interval(half, centre=lambda first, second: first.mean() - second.mean()) -> object:
    """An answer from the half width and, where it is not the right one, the middle."""

    def paired_interval(first: Tensor, second: Tensor, t: float) -> Tensor:
        middle, width = centre(first, second), half(first, second, t, len(first))
        return torch.stack([middle - width, middle + width])

    return paired_interval


def _half(first: Tensor, second: Tensor, t: float, k: int) -> Tensor:
    return t * (first - second).std() / math.sqrt(k)


def paired_interval(first: Tensor, second: Tensor, t: float) -> Tensor:
    return _interval(_half)(first, second, t)


def _two_ways(generator: Generator) -> tuple[Tensor, Tensor, float]:
    k = whole(generator, 3, 8)
    luck = normal(generator, k, scale=0.05)  # of the draw, the same for both
    first = 0.8 + luck + normal(generator, k, scale=0.01)
    second = 0.77 + luck + normal(generator, k, scale=0.01)
    quantile = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}[k]
    return first, second, quantile


paired_interval = Exercise(
    solution=paired_interval,
    inputs=_two_ways,
    mistakes=(
        Mistake(
            "the spreads of the two ways are added up as if their seeds had nothing in common. "
            "Take the difference seed by seed first, then its spread",
            _interval(
                lambda a, b, t, k: t * torch.sqrt(a.var() + b.var()) / math.sqrt(k)
            ),
        ),
        Mistake(
            "this is the spread of single differences; that of their mean is smaller by √k",
            _interval(lambda a, b, t, k: t * (a - b).std()),
        ),
        Mistake(
            "the standard deviation has k in it; with so few seeds k - 1 matters: `.std()` does so",
            _interval(lambda a, b, t, k: t * (a - b).std(correction=0) / math.sqrt(k)),
        ),
        Mistake(
            "1.96 is for many seeds; with few of them the interval is wider: use t",
            _interval(lambda a, b, t, k: 1.96 * (a - b).std() / math.sqrt(k)),
        ),
        Mistake(
            "the second way minus the first; asked for is the first minus the second",
            _interval(_half, lambda first, second: second.mean() - first.mean()),
        ),
        Mistake(
            "the variance stands where the standard deviation should: take its root",
            _interval(lambda a, b, t, k: t * (a - b).var() / math.sqrt(k)),
        ),
    ),
    hints=(
        "`difference = first - second`: one number a seed. All else is about these k numbers.",
        "Half the width: t · s / √k, with s the standard deviation of the differences.",
        "`torch.stack([mean - half, mean + half])`",
    ),
)

# 3. What a curve is worth in labels


def _crossing(reading) -> object:
    def labels_for(budgets: list[int], accuracies: list[float], accuracy: float) -> float:
        i = next(k for k, a in enumerate(accuracies) if a >= accuracy)
        if i == 0:
            return float(budgets[0])
        share = (accuracy - accuracies[i - 1]) / (accuracies[i] - accuracies[i - 1])
        return float(reading(budgets[i - 1], budgets[i], share))

    return labels_for


def labels_for(budgets: list[int], accuracies: list[float], accuracy: float) -> float:
    return transfer.labels_worth(budgets, accuracies, accuracy)


def _last_crossing(budgets: list[int], accuracies: list[float], accuracy: float) -> float:
    below = [k for k, a in enumerate(accuracies[:-1]) if a < accuracy <= accuracies[k + 1]]
    if not below:
        return float(budgets[0])
    i = below[-1] + 1
    share = (accuracy - accuracies[i - 1]) / (accuracies[i] - accuracies[i - 1])
    return float(budgets[i - 1] * (budgets[i] / budgets[i - 1]) ** share)


def _a_curve(generator: Generator) -> tuple[list[int], list[float], float]:
    count = whole(generator, 4, 6)
    budgets = [whole(generator, 8, 40)]
    for _ in range(count - 1):
        budgets.append(budgets[-1] * whole(generator, 2, 5))
    rises = [between(generator, 0.03, 0.12) for _ in range(count)]
    accuracies = [0.5 + sum(rises[: k + 1]) for k in range(count)]
    # Some curves fall once, back below the accuracy asked for, and rise again.
    place = whole(generator, 0, count - 3)
    accuracy = between(generator, accuracies[place] + 0.005, accuracies[place + 1])
    kind = pick(generator, ("plain", "falls", "falls", "at once"))
    if kind == "falls":
        accuracies[place + 2] = accuracy - 0.01
        accuracies[place + 3 :] = [max(a, accuracy + 0.02) for a in accuracies[place + 3 :]]
    elif kind == "at once":
        accuracy = accuracies[0] - 0.01
    return budgets, accuracies, accuracy


labels_for = Exercise(
    solution=labels_for,
    inputs=_a_curve,
    mistakes=(
        Mistake(
            "between two budgets the way is straight over n; over log n it is halfway at the "
            "geometric mean, √(n₁ n₂)",
            _crossing(lambda low, high, share: low + share * (high - low)),
        ),
        Mistake(
            "this is the first budget that reaches the accuracy; it is reached before, between "
            "that budget and the one below it",
            _crossing(lambda low, high, share: high),
        ),
        Mistake(
            "this is the last budget below the accuracy; go on from there to where it is reached",
            _crossing(lambda low, high, share: low),
        ),
        Mistake(
            "the curve falls and rises again, and the last crossing is taken: asked for is the "
            "first",
            _last_crossing,
        ),
        Mistake(
            "this is the logarithm of the answer: undo it at the end",
            _crossing(lambda low, high, share: math.log(low) + share * math.log(high / low)),
        ),
    ),
    hints=(
        "Find the first budget whose accuracy is high enough. If it is the smallest, return it.",
        "share = (accuracy − a₁) / (a₂ − a₁): 1 is the budget below, 2 the one that reaches it.",
        "`n1 * (n2 / n1) ** share` is the place at that share of the way from log n₁ to log n₂.",
    ),
)

# 4. Weights between two models


def _mixed(mix, of_head) -> object:
    def mixed(before: dict, after: dict, alpha: float, head: list[str]) -> dict:
        return {
            name: (of_head if name in head else mix)(before[name], after[name], alpha)
            for name in after
        }

    return mixed


def _between(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return (1 - alpha) * a + alpha * b


def _of_after(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return b.clone()


def mixed(before: dict, after: dict, alpha: float, head: list[str]) -> dict:
    return transfer.mixed_weights(before, after, alpha, head)


def _two_models(generator: Generator) -> tuple[dict, dict, float, list[str]]:
    width, layers = whole(generator, 2, 4), whole(generator, 1, 3)
    shapes = {f"layer.{k}.weight": (width, width) for k in range(layers)}
    shapes |= {f"layer.{k}.bias": (width,) for k in range(layers)}
    shapes |= {"classifier.weight": (2, width), "classifier.bias": (2,)}
    before, after = ({name: normal(generator, *shape) for name, shape in shapes.items()}
                     for _ in range(2))  # fmt: skip
    return before, after, pick(generator, (0.25, 0.6, 0.9)), [
        "classifier.weight", "classifier.bias",
    ]  # fmt: skip


mixed = Exercise(
    solution=mixed,
    inputs=_two_models,
    mistakes=(
        Mistake(
            "the head is mixed as well: its first weights were random, so keep the fine-tuned ones",
            _mixed(_between, _between),
        ),
        Mistake(
            "the two models have changed places: α is the share of the fine-tuned weights",
            _mixed(lambda a, b, alpha: _between(b, a, alpha), _of_after),
        ),
        Mistake(
            "the head is the pretrained model's, which was random: take the fine-tuned one's",
            _mixed(_between, lambda a, b, alpha: a.clone()),
        ),
        Mistake(
            "the backbone's weights stay the fine-tuned ones and the head is mixed; it should be "
            "the other way round",
            _mixed(_of_after, _between),
        ),
        Mistake(
            "the shares do not add up to 1: (1 − α) of the one and α of the other",
            _mixed(lambda a, b, alpha: a + alpha * b, _of_after),
        ),
    ),
    hints=(
        "Go through the names of one dict and build a new one.",
        "A name in `head` takes `after[name]`; every other one (1 − α) `before` + α `after`.",
        "`{name: … if name in head else … for name in after}`",
    ),
)

# 5. What is remembered


def _nearest(nearness, own: bool = False) -> object:
    def right_neighbours(vectors: Tensor, kinds: list[str]) -> float:
        near = nearness(vectors)
        if not own:
            near = near.clone().fill_diagonal_(-math.inf)
        found = near.argmax(dim=1).tolist()
        return sum(kinds[i] == kinds[j] for i, j in enumerate(found)) / len(kinds)

    return right_neighbours


def _cosine(vectors: Tensor) -> Tensor:
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    return unit @ unit.T


def right_neighbours(vectors: Tensor, kinds: list[str]) -> float:
    return transfer.same_kind(vectors, kinds, [True] * len(kinds))


def _texts(generator: Generator) -> tuple[Tensor, list[str]]:
    count, width = whole(generator, 12, 20), whole(generator, 4, 8)
    middles = normal(generator, 4, width, scale=1.0)
    numbers = [whole(generator, 0, 3) for _ in range(count)]
    vectors = middles[numbers] + normal(generator, count, width, scale=0.9)
    # Lengths that differ, so that a scalar product and a cosine do not agree.
    lengths = torch.exp(normal(generator, count, 1, scale=0.8))
    return vectors * lengths, [("film", "book", "news", "note")[k] for k in numbers]


right_neighbours = Exercise(
    solution=right_neighbours,
    inputs=_texts,
    mistakes=(
        Mistake(
            "every text is its own nearest neighbour here: rule the diagonal out",
            _nearest(_cosine, own=True),
        ),
        Mistake(
            "the scalar product prefers long vectors: divide each vector by its length first",
            _nearest(lambda vectors: vectors @ vectors.T),
        ),
        Mistake(
            "this is the nearest by distance; the cosine leaves lengths aside: divide each vector "
            "by its length first",
            _nearest(lambda vectors: -torch.cdist(vectors, vectors)),
        ),
        Mistake(
            "this is the farthest text: take the largest cosine",
            _nearest(lambda vectors: -_cosine(vectors)),
        ),
        Mistake(
            "this counts how many are right; divide by the number of texts",
            lambda vectors, kinds: _nearest(_cosine)(vectors, kinds) * len(kinds),
        ),
    ),
    hints=(
        "`unit @ unit.T` holds all cosines, if the rows of `unit` have length 1.",
        "`fill_diagonal_(-2)` on it: no cosine is that small, so no text finds itself.",
        "`nearest = cosines.argmax(dim=1)`; then compare `kinds[i]` with `kinds[nearest[i]]`.",
    ),
)

# 6. Spot the flaw: how many labels?


def _read(count) -> object:
    def labels_read(runs: list[dict]) -> list[int]:
        return [count(run) for run in runs]

    return labels_read


def labels_read(runs: list[dict]) -> list[int]:
    return _read(
        lambda run: len(set(run["train"]) | (set(run["validation"]) if run["chosen"] else set()))
    )(runs)


def _some_runs(generator: Generator) -> tuple[list[dict]]:
    runs = []
    for number in range(whole(generator, 4, 6)):
        n, v = pick(generator, (4, 6, 8)), pick(generator, (5, 7, 10))
        order = torch.randperm(40, generator=generator).tolist()
        shared = 0 if number % 2 else whole(generator, 1, 3)  # rows that stand in both
        validation = order[:shared] + order[n : n + v - shared]
        # Every kind comes at least once: chosen with and without shared rows, and nothing chosen.
        chosen = [["epoch"], ["learning rate", "epoch"], [], ["template"]][number % 4]
        runs.append({"train": order[:n], "validation": validation, "chosen": chosen})
    return (runs,)


labels_read = Exercise(
    solution=labels_read,
    inputs=_some_runs,
    mistakes=(
        Mistake(
            "this counts the training rows alone, as the table does: that is the flaw. Labels that "
            "something was chosen by were used too",
            _read(lambda run: len(run["train"])),
        ),
        Mistake(
            "the validation rows count only where something was chosen by them",
            _read(lambda run: len({*run["train"], *run["validation"]})),
        ),
        Mistake(
            "a row that stands in both parts is counted twice: it is one label",
            _read(lambda run: len(run["train"]) + len(run["validation"]) * bool(run["chosen"])),
        ),
        Mistake(
            "validation rows are counted once for every choice; looking at a label again costs no "
            "new one",
            _read(lambda run: len(run["train"]) + len(run["validation"]) * len(run["chosen"])),
        ),
        Mistake(
            "validation rows count where anything was chosen by them, not only the epoch",
            _read(
                lambda run: len(
                    {*run["train"], *(run["validation"] if "epoch" in run["chosen"] else ())}
                )
            ),
        ),
    ),
    hints=(
        "Which rows would have to be labelled before this run could be made?",
        "The training rows; and the validation rows, if `chosen` is not empty.",
        "`set(train) | set(validation)` counts a row once.",
    ),
)
