"""The exercises of lesson 08: what each expects, its known mistakes, and its hints."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from tutorkit import losses as formulas
from tutorkit import multitask_figures as figures
from tutorkit.checks.exercise import Exercise, Mistake
from tutorkit.checks.inputs import between, normal, pick, whole
from tutorkit.metrics import mean_interval

# 1. Whose turn


def _turns(share: Callable) -> Callable:
    def turn_shares(sizes: list[int], temperature: float) -> Tensor:
        return share(torch.tensor(sizes, dtype=torch.float64), temperature)

    return turn_shares


def _share(n: Tensor, temperature: float) -> Tensor:
    return torch.softmax(n.log() / temperature, dim=0)


def turn_shares(sizes: list[int], temperature: float) -> Tensor:
    return _turns(_share)(sizes, temperature)


def _task_sizes(generator: Generator) -> tuple[list[int], float]:
    sizes = [whole(generator, 20, 200) * 10 ** whole(generator, 0, 2) for _ in range(3)]
    if whole(generator, 0, 1):
        sizes.append(whole(generator, 20, 5000))
    return sizes, pick(generator, (0.5, 2.0, 3.0, 5.0, math.inf))


turn_shares = Exercise(
    solution=turn_shares,
    inputs=_task_sizes,
    mistakes=(
        Mistake(
            "the exponent is τ; it is 1/τ, so that a high temperature makes tasks equal",
            _turns(lambda n, t: (n**t) / (n**t).sum()),
        ),
        Mistake(
            "the powers do not add up to 1: divide each by their sum",
            _turns(lambda n, t: n ** (1 / t)),
        ),
        Mistake(
            "the powers are divided by the sum of the sizes; divide by the sum of the powers",
            _turns(lambda n, t: n ** (1 / t) / n.sum()),
        ),
        Mistake(
            "a softmax of the sizes gives all to the largest task; it would be right with their "
            "logarithms",
            _turns(lambda n, t: torch.softmax(n / t, dim=0)),
        ),
        Mistake(
            "the temperature has no effect: these are the proportional shares",
            _turns(lambda n, t: n / n.sum()),
        ),
        Mistake(
            "these are numbers of rows; asked for are shares, which add up to 1",
            _turns(lambda n, t: n.sum() * _share(n, t)),
        ),
        Mistake(
            "the sizes are divided by τ; they are raised to the power 1/τ",
            _turns(lambda n, t: n / t / (n / t).sum()),
        ),
    ),
    hints=(
        "First the powers n_k^(1/τ), then divide all by their sum.",
        "Make a tensor of the sizes: `torch.tensor(sizes, dtype=torch.float64)`.",
        "`1 / math.inf` is 0, and anything to the power 0 is 1: the infinite case needs no `if`.",
    ),
)

# 2. Each head on its rows


def _joint(gather: Callable) -> Callable:
    """A joint loss from a function of the row losses of each task, the weights, and B."""

    def joint_loss(outputs: list[Tensor], labels: Tensor, task: Tensor, weights: Tensor) -> Tensor:
        own = [
            formulas.cross_entropy(scores[task == k], labels[task == k], reduction="none")
            for k, scores in enumerate(outputs)
        ]
        return gather(own, weights, len(task))

    return joint_loss


def _sums(own: list[Tensor]) -> Tensor:
    return torch.stack([each.sum() for each in own])


def _weighted(own: list[Tensor], weights: Tensor, b: int) -> Tensor:
    return formulas.multitask_loss(_sums(own), weights) / b


def _means(own: list[Tensor]) -> list[Tensor]:
    return [each.mean() if len(each) else each.sum() for each in own]


def joint_loss(outputs: list[Tensor], labels: Tensor, task: Tensor, weights: Tensor) -> Tensor:
    return _joint(_weighted)(outputs, labels, task, weights)


def _all_rows(outputs: list[Tensor], labels: Tensor, task: Tensor, weights: Tensor) -> Tensor:
    """Every head on every row, with labels that its classes do not have cut off."""
    found = [
        formulas.cross_entropy(scores, labels.clamp(max=scores.shape[1] - 1)) for scores in outputs
    ]
    return formulas.multitask_loss(torch.stack(found), weights)


def _mixed_batch(generator: Generator) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    rows = whole(generator, 7, 10)
    classes = [2, whole(generator, 3, 5), whole(generator, 2, 4)]
    task = torch.randint(3, (rows,), generator=generator)
    task[:3] = torch.tensor([0, 1, 1])
    if whole(generator, 0, 1):
        task[task == 2] = 1  # a task without rows
    highest = torch.tensor(classes)[task]
    draws = torch.rand(rows, generator=generator, dtype=torch.float64)
    labels = (draws * highest).long()
    outputs = [normal(generator, rows, c, scale=2.0) for c in classes]
    weights = torch.tensor([between(generator, 0.2, 2.0) for _ in classes], dtype=torch.float64)
    return outputs, labels, task, weights


joint_loss = Exercise(
    solution=joint_loss,
    inputs=_mixed_batch,
    mistakes=(
        Mistake(
            "the mean of a task without rows is 0 / 0. Sum the losses of a task's rows, and divide "
            "by B at the end",
            _joint(
                lambda own, w, b: sum(len(x) / b * w[k] * x.mean() for k, x in enumerate(own))
            ),
        ),
        Mistake(
            "a task with one row counts as much as a task with many: the mean L_k has to be "
            "multiplied by n_k / n",
            _joint(lambda own, w, b: torch.stack(_means(own)) @ w),
        ),
        Mistake(
            "the tasks' means are averaged; each counts by its share of the rows, n_k / n",
            _joint(lambda own, w, b: torch.stack(_means(own)) @ w / len(own)),
        ),
        Mistake(
            "this divides by the weights of the rows, as `F.cross_entropy(…, weight=…)` does; n is "
            "the number of rows",
            _joint(lambda own, w, b: _sums(own) @ w / sum(len(x) * w[k] for k, x in
                                                          enumerate(own))),
        ),
        Mistake("the weights are left out", _joint(lambda own, w, b: _sums(own).sum() / b)),
        Mistake(
            "this is the sum over the rows; divide it by B",
            _joint(lambda own, w, b: _sums(own) @ w),
        ),
        Mistake(
            "every head is scored on every row; head k counts on the rows with `task == k` alone",
            _all_rows,
        ),
    ),
    hints=(
        "Go through the heads. `mine = task == k` says which rows are head k's.",
        "Sum the row losses of `outputs[k][mine]` against `labels[mine]`; an empty sum is 0, an "
        "empty mean is NaN.",
        "`total = total + weights[k] * F.cross_entropy(outputs[k][mine], labels[mine], "
        "reduction='sum')`, and at the end `total / len(task)`.",
    ),
)  # fmt: skip

# 3. Learned weights


def _uncertain(part: Callable | None = None, best: Callable | None = None) -> Callable:
    """An answer from a task's part of the loss and its best s, both of c, L and s."""
    part = part or (lambda c, L, s: c * torch.exp(-s) * L + s / 2)
    best = best or (lambda c, L: torch.log(2 * c * L))

    def uncertainty(
        losses: Tensor, log_variances: Tensor, kinds: list[str]
    ) -> tuple[Tensor, Tensor]:
        c = losses.new_tensor([0.5 if kind == "regression" else 1.0 for kind in kinds])
        return part(c, losses, log_variances).sum(), best(c, losses)

    return uncertainty


def uncertainty(losses: Tensor, log_variances: Tensor, kinds: list[str]) -> tuple[Tensor, Tensor]:
    loss = formulas.uncertainty_weighted_loss(losses, log_variances, kinds)
    weights = formulas.uncertainty_weighted_loss_grad(
        losses, torch.zeros_like(losses), kinds
    ).losses  # at s = 0 these are c
    return loss, torch.log(2 * weights * losses)


def _tasks(generator: Generator) -> tuple[Tensor, Tensor, list[str]]:
    count = whole(generator, 2, 4)
    kinds = [pick(generator, formulas.tasks.KINDS) for _ in range(count)]
    kinds[:2] = ["regression", "classification"][:: pick(generator, (1, -1))]
    losses = torch.exp(normal(generator, count)) + 0.01
    return losses, normal(generator, count), kinds


uncertainty = Exercise(
    solution=uncertainty,
    inputs=_tasks,
    mistakes=(
        Mistake(
            "the squared error is taken as a cross-entropy is: its c is ½",
            lambda losses, log_variances, kinds: _uncertain()(
                losses, log_variances, ["classification"] * len(kinds)
            ),
        ),
        Mistake(
            "the two kinds have changed places: c is 1 for a cross-entropy and ½ for a squared "
            "error",
            lambda losses, log_variances, kinds: _uncertain()(
                losses, log_variances,
                ["classification" if kind == "regression" else "regression" for kind in kinds],
            ),
        ),
        Mistake(
            "the term that keeps s from growing is s / 2, not s",
            _uncertain(part=lambda c, L, s: c * torch.exp(-s) * L + s),
        ),
        Mistake(
            "the term s / 2 is missing: without it s grows without end",
            _uncertain(part=lambda c, L, s: c * torch.exp(-s) * L),
        ),
        Mistake(
            "the sign of s in the exponential: a noisy task, with a large s, gets little weight",
            _uncertain(part=lambda c, L, s: c * torch.exp(s) * L + s / 2),
        ),
        Mistake(
            "s is log σ² already, so the weight is e^(-s), not e^(-2s)",
            _uncertain(part=lambda c, L, s: c * torch.exp(-2 * s) * L + s / 2),
        ),
        Mistake(
            "the ½ of s / 2 is lost in the best s: set ½ - c e^(-s) L to 0",
            _uncertain(best=lambda c, L: torch.log(c * L)),
        ),
        Mistake(
            "the c is lost in the best s: set ½ - c e^(-s) L to 0",
            _uncertain(best=lambda c, L: torch.log(2 * L)),
        ),
        Mistake(
            "the best variances are returned; asked for are their logarithms",
            _uncertain(best=lambda c, L: 2 * c * L),
        ),
        Mistake(
            "the best weights 1/(2L) are returned; asked for are the log variances",
            _uncertain(best=lambda c, L: 1 / (2 * L)),
        ),
    ),
    hints=(
        "Make a tensor of the c_k first: 1 for classification, 0.5 for regression.",
        "The loss is the sum of c e^(-s) L + s / 2. Its slope by s is ½ - c e^(-s) L.",
        "Where that slope is 0: `torch.log(2 * c * losses)`.",
    ),
)  # fmt: skip

# 4. Do they pull the same way?


def _flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients])


def _angle(measure: Callable) -> Callable:
    def cosine(first: list[Tensor], second: list[Tensor]) -> Tensor:
        return measure(_flat(first), _flat(second))

    return cosine


def cosine(first: list[Tensor], second: list[Tensor]) -> Tensor:
    return _angle(lambda a, b: torch.nn.functional.cosine_similarity(a, b, dim=0))(first, second)


def _of_each(first: list[Tensor], second: list[Tensor]) -> Tensor:
    return torch.stack([cosine.solution([a], [b]) for a, b in zip(first, second, strict=True)])


def _gradients(generator: Generator) -> tuple[list[Tensor], list[Tensor]]:
    shapes = [(3, 4), (whole(generator, 2, 5),), (2, 2)]
    scales = [10.0 ** whole(generator, -1, 1) for _ in shapes]  # one parameter may outweigh others
    pull = between(generator, -1.0, 1.0)
    first = [normal(generator, *shape, scale=k) for shape, k in zip(shapes, scales, strict=True)]
    second = [pull * g + normal(generator, *g.shape, scale=0.5 * k)
              for g, k in zip(first, scales, strict=True)]  # fmt: skip
    return first, second


cosine = Exercise(
    solution=cosine,
    inputs=_gradients,
    mistakes=(
        Mistake(
            "this is the mean of the cosines of single parameters; all entries together are one "
            "vector, with one length",
            lambda first, second: _of_each(first, second).mean(),
        ),
        Mistake(
            "cosines of single parameters can't be added up",
            lambda first, second: _of_each(first, second).sum(),
        ),
        Mistake(
            "this is the scalar product; divide it by both lengths",
            _angle(lambda a, b: a @ b),
        ),
        Mistake(
            "this divides by one length only; divide by both",
            _angle(lambda a, b: a @ b / a.norm()),
        ),
        Mistake(
            "this divides by the squares of the lengths: their roots are missing",
            _angle(lambda a, b: a @ b / ((a @ a) * (b @ b))),
        ),
        Mistake(
            "the sign is gone, and with it all that tells conflict from agreement",
            _angle(lambda a, b: (a @ b / (a.norm() * b.norm())).abs()),
        ),
        Mistake(
            "only the first parameter is looked at",
            lambda first, second: _of_each(first, second)[0],
        ),
        Mistake(
            "the lengths of the parameters are added up; the length of the whole is the root of "
            "the sum of their squares",
            lambda first, second: _flat(first) @ _flat(second)
            / (sum(g.norm() for g in first) * sum(g.norm() for g in second)),
        ),
    ),
    hints=(
        "Make one long vector of each list, or add up over the parameters what is needed.",
        "`torch.cat([g.flatten() for g in first])` is the vector.",
        "`a @ b / (a.norm() * b.norm())`",
    ),
)  # fmt: skip

# 5. The gain at each budget


def _gain(summary: Callable) -> Callable:
    """An answer from the paired differences, and the accuracies of both settings, of a budget."""

    def gains(lines: list[dict], t: float) -> dict[int, tuple]:
        found = {}
        for n in sorted({line["n"] for line in lines}):
            here = [line for line in lines if line["n"] == n]
            joint, single = ([x for x in here if x["setting"] == name]
                             for name in ("joint", "single"))  # fmt: skip
            mean, half = summary(joint, single, t)
            found[n] = (mean, mean - half, mean + half)
        return found

    return gains


def _paired(joint: list[dict], single: list[dict]) -> list[float]:
    of = {line["seed"]: line["accuracy"] for line in single}
    return [x["accuracy"] - of[x["seed"]] for x in joint if x["seed"] in of]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _accuracies(lines: list[dict]) -> list[float]:
    return [line["accuracy"] for line in lines]


def _spread(d: list[float], correction: int = 1) -> float:
    return math.sqrt(sum((x - _mean(d)) ** 2 for x in d) / (len(d) - correction))


def _of_pairs(half: Callable, mean: Callable = _mean) -> Callable:
    def summary(joint: list[dict], single: list[dict], t: float) -> tuple[float, float]:
        d = _paired(joint, single)
        return mean(d), half(d, t)

    return _gain(summary)


def _half(d: list[float], t: float) -> float:
    return t * _spread(d) / math.sqrt(len(d))


def gains(lines: list[dict], t: float) -> dict[int, tuple]:
    found = {}
    placed = [line | {"domain": "one"} for line in lines]
    for n, d in figures.differences(placed, "joint", "single", "one").items():
        low, high = mean_interval(d)
        mean, scale = (low + high) / 2, t / QUANTILES[len(d)]
        found[n] = (mean, mean + scale * (low - mean), mean + scale * (high - mean))
    return found


def _unpaired(joint: list[dict], single: list[dict], t: float) -> tuple[float, float]:
    a, b = _accuracies(joint), _accuracies(single)
    half = t * math.sqrt(_spread(a) ** 2 / len(a) + _spread(b) ** 2 / len(b))
    return _mean(a) - _mean(b), half


def _all_runs(joint: list[dict], single: list[dict], t: float) -> tuple[float, float]:
    d = _paired(joint, single)
    return _mean(_accuracies(joint)) - _mean(_accuracies(single)), _half(d, t)


def _in_order(joint: list[dict], single: list[dict], t: float) -> tuple[float, float]:
    pairs = zip(_accuracies(joint), _accuracies(single), strict=False)
    d = [a - b for a, b in pairs]
    return _mean(d), _half(d, t)


# Student's, for 95 % of 3, 4 and 5 pairs; the reference takes it out again and puts `t` in.
QUANTILES = {3: 4.302652729911275, 4: 3.182446305284263, 5: 2.776445105197793}


def _a_record(generator: Generator) -> tuple[list[dict], float]:
    seeds, lines = whole(generator, 4, 5), []
    for n in (32, 128, 512)[: whole(generator, 2, 3)]:
        gain = between(generator, -0.04, 0.04)
        for seed in range(seeds):
            luck = between(generator, -0.06, 0.06)  # of the draw, the same for both
            for setting, more in (("single", 0.0), ("joint", gain)):
                accuracy = 0.7 + luck + more + between(generator, -0.01, 0.01)
                lines.append({"setting": setting, "n": n, "seed": seed, "accuracy": accuracy})
        if whole(generator, 0, 2):  # one run of this budget failed
            lines.pop(len(lines) - 1 - whole(generator, 0, 2 * seeds - 1))
    order = torch.randperm(len(lines), generator=generator).tolist()
    return [lines[i] for i in order], pick(generator, (2.0, 3.182, 4.303))


gains = Exercise(
    solution=gains,
    inputs=_a_record,
    mistakes=(
        Mistake(
            "the runs are paired in the order in which they stand; pair those of the same seed",
            _gain(_in_order),
        ),
        Mistake(
            "the difference of the two means, with both spreads added up: the luck of the draw is "
            "still in it. Take the difference seed by seed first",
            _gain(_unpaired),
        ),
        Mistake(
            "the mean holds runs whose partner failed: only seeds that have both count",
            _gain(_all_runs),
        ),
        Mistake(
            "single minus joint; the gain is joint minus single",
            _of_pairs(_half, lambda d: -_mean(d)),
        ),
        Mistake(
            "this is the spread of single differences; that of their mean is smaller by √k",
            _of_pairs(lambda d, t: t * _spread(d)),
        ),
        Mistake(
            "the standard deviation has k in it; with so few seeds k - 1 matters",
            _of_pairs(lambda d, t: t * _spread(d, 0) / math.sqrt(len(d))),
        ),
        Mistake(
            "the quantile is not 1.96 with few seeds: use t",
            _of_pairs(lambda d, t: _half(d, 1.96)),
        ),
        Mistake(
            "the variance stands where the standard deviation should: take its root",
            _of_pairs(lambda d, t: t * _spread(d) ** 2 / math.sqrt(len(d))),
        ),
    ),
    hints=(
        "A dict from (setting, n, seed) to the accuracy finds a run's partner, whatever the order.",
        "For one n, list the differences of the seeds for which both keys are in that dict.",
        "Then `mean`, `half = t * s / math.sqrt(k)`, and the tuple `(mean, mean - half, mean + "
        "half)`.",
    ),
)

# 6. Spot the flaw: one table or three models?


def _report(choose: Callable) -> Callable:
    """An answer from the function that chooses the look for each task."""

    def scores_of_one_model(looks: list[dict]) -> dict[str, float]:
        return {name: choose(looks, name)["test"][name] for name in looks[0]["test"]}

    return scores_of_one_model


def _average(look: dict, part: str = "validation") -> float:
    return _mean(list(look[part].values()))


def scores_of_one_model(looks: list[dict]) -> dict[str, float]:
    entries = [
        (at, {"score": _average(look), "loss": 0.0, "tasks": {}}) for at, look in enumerate(looks)
    ]
    return dict(looks[figures.best_step(entries)]["test"])


def _some_looks(generator: Generator) -> tuple[list[dict]]:
    names = ["sentiment", "aspect", "count"][: whole(generator, 2, 3)]
    looks, count, early = [], whole(generator, 5, 7), whole(generator, 0, 1)
    for k in range(count):
        # The tasks are best at different steps: the first one early, the second one late.
        validation = {
            name: 0.8 - 0.01 * (k - peak) ** 2 + between(generator, 0, 0.01)
            for name, peak in zip(names, (early, count - 1, 1), strict=False)
        }
        test = {name: between(generator, 0.5, 0.8) for name in names}
        looks.append({"step": 10 * (k + 1), "validation": validation, "test": test})
    if count != 6:  # two equals, the second one at the end
        looks[-1]["validation"] = dict(max(looks[:-1], key=_average)["validation"])
    return (looks,)


scores_of_one_model = Exercise(
    solution=scores_of_one_model,
    inputs=_some_looks,
    mistakes=(
        Mistake(
            "each score is taken at the step that is best for its task: that is the flaw. These "
            "are several models; choose one step for all",
            _report(lambda looks, name: max(looks, key=lambda x: x["validation"][name])),
        ),
        Mistake(
            "each score is the highest on the test rows: chosen by the test, and for each task "
            "another model",
            _report(lambda looks, name: max(looks, key=lambda x: x["test"][name])),
        ),
        Mistake(
            "the step is chosen by the test scores; choose by validation, and look at the test "
            "rows once",
            _report(lambda looks, name: max(looks, key=lambda x: _average(x, "test"))),
        ),
        Mistake(
            "this is the last step; the best one by the mean validation score is asked for",
            _report(lambda looks, name: looks[-1]),
        ),
        Mistake(
            "of equal means the latest is taken; asked for is the earliest",
            _report(lambda looks, name: max(reversed(looks), key=_average)),
        ),
        Mistake(
            "the step is right, but these are its validation scores: by them it was chosen, so "
            "they are too high",
            lambda looks: dict(max(looks, key=_average)["validation"]),
        ),
        Mistake(
            "these are the best validation scores of each task; asked for are the test scores of "
            "one step",
            lambda looks: {
                name: max(x["validation"][name] for x in looks) for name in looks[0]["test"]
            },
        ),
        Mistake(
            "the step is chosen by one task alone; the mean of all of them decides",
            _report(
                lambda looks, name: max(
                    looks, key=lambda x: x["validation"][next(iter(x["validation"]))]
                )
            ),
        ),
    ),
    hints=(
        "First find the look, then take its test scores: one look for all tasks.",
        "`max(looks, key=…)` takes the first of equals.",
        "The key is the mean of `look['validation'].values()`.",
    ),
)

# 7. Spot the flaw: the mean over tasks


def _behind(gain: Callable, worst: Callable | None = None) -> Callable:
    """An answer from the gain of a task, and the task that is named."""

    def behind_the_mean(alone: dict, together: dict) -> tuple[float, str, float]:
        found = {name: gain(alone[name], together[name]) for name in alone}
        name = worst(alone, together, found) if worst else min(found, key=found.get)
        return _mean(list(found.values())), name, found[name]

    return behind_the_mean


def _difference(alone: list[float], together: list[float]) -> float:
    return _mean([b - a for a, b in zip(alone, together, strict=True)])


def behind_the_mean(alone: dict, together: dict) -> tuple[float, str, float]:
    lines = [
        {"setting": setting, "domain": name, "n": 0, "seed": seed, "accuracy": value}
        for setting, scores in (("single", alone), ("joint", together))
        for name, values in scores.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    found = {name: _mean(figures.differences(lines, "joint", "single", name)[0]) for name in alone}
    worst = min(found, key=found.get)
    return _mean(list(found.values())), worst, found[worst]


def _some_tasks(generator: Generator) -> tuple[dict, dict]:
    names = ["films", "products", "news", "tweets"][: whole(generator, 3, 4)]
    seeds = whole(generator, 3, 5)
    alone, together = {}, {}
    for name in names:
        level, gain = between(generator, 0.6, 0.9), between(generator, -0.03, 0.05)
        alone[name] = [level + between(generator, -0.03, 0.03) for _ in range(seeds)]
        together[name] = [x + gain + between(generator, -0.02, 0.02) for x in alone[name]]
    return alone, together


behind_the_mean = Exercise(
    solution=behind_the_mean,
    inputs=_some_tasks,
    mistakes=(
        Mistake(
            "alone minus together; the gain is together minus alone",
            _behind(lambda a, b: -_difference(a, b)),
        ),
        Mistake(
            "the task with the lowest accuracy is named; asked for is the one with the lowest gain",
            _behind(_difference, lambda a, b, found: min(b, key=lambda name: _mean(b[name]))),
        ),
        Mistake(
            "the task with the highest gain is named; a mean hides the lowest",
            _behind(_difference, lambda a, b, found: max(found, key=found.get)),
        ),
        Mistake(
            "the gains are in shares of the accuracy alone; asked for is the plain difference",
            _behind(lambda a, b: _mean(b) / _mean(a) - 1),
        ),
        Mistake(
            "the best seeds are compared; take the mean over the seeds",
            _behind(lambda a, b: max(b) - max(a)),
        ),
        Mistake(
            "one seed is looked at; take the mean over the seeds",
            _behind(lambda a, b: b[0] - a[0]),
        ),
        Mistake(
            "the lowest difference of a single seed is taken as the gain of a task; take the mean",
            _behind(lambda a, b: min(y - x for x, y in zip(a, b, strict=True))),
        ),
        Mistake(
            "the gains are added up; their mean over the tasks is asked for",
            lambda alone, together: (
                len(alone) * behind_the_mean.solution(alone, together)[0],
                *behind_the_mean.solution(alone, together)[1:],
            ),
        ),
    ),
    hints=(
        "First a dict from each task to its gain: two means over the seeds, and their difference.",
        "`min(gain, key=gain.get)` is the name of the task with the lowest gain.",
        "`sum(gain.values()) / len(gain), worst, gain[worst]`",
    ),
)
