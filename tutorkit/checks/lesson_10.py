"""The exercises of lesson 10: what each expects, its known mistakes, and its hints."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from tutorkit import comparison, losses, students
from tutorkit.checks.exercise import Exercise, Mistake
from tutorkit.checks.inputs import between, normal, pick, whole

# 1. What softening leaves open


def _entropy(probabilities: Callable, read: Callable = lambda h: h) -> Callable:
    """The entropy of each row of some probabilities, or what is read from it."""

    def softened_entropy(logits: Tensor, temperature: float) -> Tensor:
        return read(torch.special.entr(probabilities(logits, temperature)).sum(dim=1))

    return softened_entropy


def _soft(logits: Tensor, temperature: float, dim: int = 1) -> Tensor:
    return (logits / temperature).softmax(dim=dim)


def softened_entropy(logits: Tensor, temperature: float) -> Tensor:
    return _entropy(_soft)(logits, temperature)


def _of_a_teacher(generator: Generator) -> tuple[Tensor, float]:
    rows, classes = whole(generator, 3, 5), whole(generator, 2, 5)
    logits = normal(generator, rows, classes, scale=4)
    # A teacher that is sure of a row: the others' probabilities are 0 in floating point.
    logits[0, 0] += 5000
    return logits, pick(generator, (2.0, 3.0, 5.0))


softened_entropy = Exercise(
    solution=softened_entropy,
    inputs=_of_a_teacher,
    mistakes=(
        Mistake(
            "the temperature is missing: divide the logits by T before the softmax",
            _entropy(lambda logits, temperature: logits.softmax(dim=1)),
        ),
        Mistake(
            "the logits are multiplied by T, which sharpens; softening divides by it",
            _entropy(lambda logits, temperature: _soft(logits, 1 / temperature)),
        ),
        Mistake(
            "the probabilities are divided by T; the logits have to be, before the softmax",
            _entropy(lambda logits, temperature: logits.softmax(dim=1) / temperature),
        ),
        Mistake(
            "the sign is missing: log p is never above 0, so the entropy is minus the sum",
            _entropy(_soft, lambda h: -h),
        ),
        Mistake(
            "this is in bits; nats take the natural logarithm",
            _entropy(_soft, lambda h: h / math.log(2)),
        ),
        Mistake(
            "the softmax runs over the rows; it belongs over the classes, dim=1",
            _entropy(lambda logits, temperature: _soft(logits, temperature, dim=0)),
        ),
        Mistake(
            "this is the mean over the classes: the entropy is a sum",
            lambda logits, temperature: (
                torch.special.entr(_soft(logits, temperature)).mean(dim=1)
            ),
        ),
    ),
    hints=(
        "First the softened probabilities, (N, C); then one number a row.",
        "Where p is 0 in floating point, p.log() is -∞ and 0 · -∞ is NaN. The logarithm of a "
        "softmax can be computed without that.",
        "`log_p = torch.log_softmax(logits / temperature, dim=1)`, then −Σ p log p with "
        "`log_p.exp()`.",
    ),
)

# 2. The loss


def _kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p ‖ q) of each row."""
    log_p, log_q = (z.log_softmax(dim=1) for z in (p_logits, q_logits))
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _mixed(soft: Callable, hard: Callable | None = None, weights: Callable | None = None):
    """A loss from its two parts; those not given are right."""
    right = lambda z, y, t: losses.cross_entropy(z, y)  # noqa: E731
    shares = weights or (lambda alpha: (alpha, 1 - alpha))

    def taught_loss(
        student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float,
        alpha: float,
    ) -> Tensor:
        a, b = shares(alpha)
        first = soft(student_logits, teacher_logits, temperature)
        return a * first + b * (hard or right)(student_logits, labels, temperature)

    return taught_loss


def _right_soft(z: Tensor, v: Tensor, t: float) -> Tensor:
    return t**2 * _kl(v / t, z / t).mean()


def taught_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, alpha: float
) -> Tensor:
    return losses.distillation_loss(student_logits, teacher_logits, labels, temperature, alpha)


def _two_models(generator: Generator) -> tuple[Tensor, Tensor, Tensor, float, float]:
    rows, classes = whole(generator, 2, 5), whole(generator, 3, 5)
    student, teacher = (normal(generator, rows, classes, scale=3) for _ in range(2))
    labels = torch.randint(classes, (rows,), generator=generator)
    return student, teacher, labels, between(generator, 1.5, 5), pick(generator, (0.3, 0.6, 0.8))


taught_loss = Exercise(
    solution=taught_loss,
    inputs=_two_models,
    mistakes=(
        Mistake(
            "the factor T² is missing: without it a high temperature switches the teacher off",
            _mixed(lambda z, v, t: _kl(v / t, z / t).mean()),
        ),
        Mistake(
            "the factor is T; it is T² (see the table of section 2)",
            _mixed(lambda z, v, t: t * _kl(v / t, z / t).mean()),
        ),
        Mistake(
            "the factor T² stands before the labels' part as well; that part has no temperature",
            _mixed(_right_soft, lambda z, y, t: t**2 * losses.cross_entropy(z, y)),
        ),
        Mistake(
            "the divergence is the wrong way round: the teacher's probabilities weigh the "
            "difference of the logarithms, KL(teacher ‖ student). F.kl_div takes the student first",
            _mixed(lambda z, v, t: t**2 * _kl(z / t, v / t).mean()),
        ),
        Mistake(
            "the labels' part is softened too; a label has no temperature: cross-entropy of z",
            _mixed(_right_soft, lambda z, y, t: losses.cross_entropy(z / t, y)),
        ),
        Mistake(
            "the teacher is not softened: divide its logits by T as well",
            _mixed(lambda z, v, t: t**2 * _kl(v, z / t).mean()),
        ),
        Mistake(
            "the student is not softened in the teacher's part: divide its logits by T as well",
            _mixed(lambda z, v, t: t**2 * _kl(v / t, z).mean()),
        ),
        Mistake(
            "the weights have changed places: α is the teacher's",
            _mixed(_right_soft, weights=lambda alpha: (1 - alpha, alpha)),
        ),
        Mistake(
            "the weight 1 - α of the labels' part is missing",
            _mixed(_right_soft, weights=lambda alpha: (alpha, 1)),
        ),
        Mistake(
            "this is the cross-entropy with the teacher: the teacher's entropy more than the "
            "divergence. Its gradient is right, its value is not",
            _mixed(lambda z, v, t: -t**2 * ((v / t).softmax(1) * (z / t).log_softmax(1)).sum(1)
                   .mean()),
        ),
        Mistake(
            "divided by N times C, as F.kl_div with the reduction mean does; the mean is over the "
            "N rows: reduction='batchmean'",
            _mixed(lambda z, v, t: _right_soft(z, v, t) / z.shape[1]),
        ),
        Mistake(
            "the divergence is summed over the batch; the formula has the mean over its rows",
            _mixed(lambda z, v, t: _right_soft(z, v, t) * len(z)),
        ),
    ),
    hints=(
        "Two parts: one looks at the teacher and has the temperature, one at the labels and has "
        "none.",
        "Σ_c p_c (log p_c - log q_c) for each row: p and log p of the teacher, log q of the "
        "student, all with T; then the mean over the rows.",
        "`alpha * temperature**2 * divergence + (1 - alpha) * F.cross_entropy(student_logits, "
        "labels)`",
    ),
)  # fmt: skip

# 3. Which layer is matched with which


def _layers(number: Callable) -> Callable:
    """A mapping from (m, L, M) of each student layer m."""

    def matched_layers(teacher_layers: int, student_layers: int) -> list[int]:
        return [number(m, teacher_layers, student_layers) for m in range(1, student_layers + 1)]

    return matched_layers


def matched_layers(teacher_layers: int, student_layers: int) -> list[int]:
    return list(students.every_kth(teacher_layers, student_layers))


def _depths(generator: Generator) -> tuple[int, int]:
    few = whole(generator, 3, 7)
    return few + whole(generator, 2, 17), few


matched_layers = Exercise(
    solution=matched_layers,
    inputs=_depths,
    mistakes=(
        Mistake("rounded down; the layers are rounded up", _layers(lambda m, L, M: m * L // M)),
        Mistake(
            "rounded to the nearest; the layers are rounded up",
            _layers(lambda m, L, M: round(m * L / M)),
        ),
        Mistake(
            "the step is rounded before it is multiplied, so the last layer is missed: take "
            "m · L / M first, then round",
            _layers(lambda m, L, M: m * (L // M)),
        ),
        Mistake(
            "the step is rounded up before it is multiplied: take m · L / M first, then round",
            _layers(lambda m, L, M: m * -(-L // M)),
        ),
        Mistake(
            "counted from 0; the layers are counted from 1",
            _layers(lambda m, L, M: -(-m * L // M) - 1),
        ),
        Mistake(
            "m runs from 0: the first student layer has m = 1, and the last is matched with the "
            "teacher's last",
            _layers(lambda m, L, M: -(-(m - 1) * L // M)),
        ),
        Mistake(
            "these are the teacher's first layers: they have to be spread over all of them",
            _layers(lambda m, L, M: m),
        ),
        Mistake(
            "these are the teacher's last layers: they have to be spread over all of them",
            _layers(lambda m, L, M: L - M + m),
        ),
    ),
    hints=(
        "One number for each student layer m = 1, …, M.",
        "n = m · L / M, rounded up. For m = M that is L, the last layer.",
        "`-(-a // b)` is a / b rounded up, for whole numbers; so is `math.ceil(a / b)`.",
    ),
)

# 4. Latency


def _times(kept: Callable, middle: Callable = np.median, high: Callable | None = None, unit=1000):
    """[median, p95] from the times that are kept."""
    p95 = high or (lambda times: np.percentile(times, 95))

    def median_and_p95(seconds: list[float], warm_up: int) -> list[float]:
        times = kept(seconds, warm_up)
        return [float(unit * middle(times)), float(unit * p95(times))]

    return median_and_p95


def _after(seconds: list[float], warm_up: int) -> list[float]:
    return seconds[warm_up:]


def median_and_p95(seconds: list[float], warm_up: int) -> list[float]:
    return _times(_after)(seconds, warm_up)


def _nearest_rank(times: list[float]) -> float:
    return sorted(times)[math.ceil(0.95 * len(times)) - 1]


def _calls(generator: Generator) -> tuple[list[float], int]:
    count, warm_up = pick(generator, (20, 24, 31, 36, 42)), whole(generator, 2, 4)
    usual = (0.01 * torch.exp(normal(generator, count, scale=0.5))).tolist()
    # The first calls load what the others find there; one of them is quick all the same.
    first = [0.2 * (1 + k) for k in range(warm_up - 1)] + [0.0004]
    return [round(t, 6) for t in first + usual], warm_up


median_and_p95 = Exercise(
    solution=median_and_p95,
    inputs=_calls,
    tolerance=1e-6,
    mistakes=(
        Mistake(
            "the first calls are counted: they load what the others find there, so drop them",
            _times(lambda seconds, warm_up: seconds),
        ),
        Mistake(
            "sorted before the first calls are dropped: this drops the quickest ones. Drop first, "
            "then sort",
            _times(lambda seconds, warm_up: sorted(seconds)[warm_up:]),
        ),
        Mistake(
            "the slowest calls are dropped, whenever they came: these belong to the tail. Drop the "
            "first ones",
            _times(lambda seconds, warm_up: sorted(seconds)[:-warm_up]),
        ),
        Mistake(
            "the last calls are dropped; the first ones have to be",
            _times(lambda seconds, warm_up: seconds[:-warm_up]),
        ),
        Mistake(
            "the times are in seconds: make them milliseconds", _times(_after, unit=1)
        ),
        Mistake(
            "this is the mean; a few slow calls move it. Asked for is the median",
            _times(_after, middle=np.mean),
        ),
        Mistake(
            "with an even number of calls the median is the mean of the middle two",
            _times(_after, middle=lambda times: sorted(times)[len(times) // 2]),
        ),
        Mistake(
            "with an even number of calls the median is the mean of the middle two; torch.median "
            "takes the lower one",
            _times(_after, middle=lambda times: sorted(times)[(len(times) - 1) // 2]),
        ),
        Mistake(
            "this is the slowest call; p95 is the time that 95 % of the calls stay below",
            _times(_after, high=max),
        ),
        Mistake(
            "this is 95 % of the slowest call; p95 is a place among the sorted calls",
            _times(_after, high=lambda times: 0.95 * max(times)),
        ),
        Mistake(
            "this is one of the calls; between two neighbours of the place 0.95 (n - 1) the way is "
            "straight",
            _times(_after, high=_nearest_rank),
        ),
        Mistake(
            "this is one of the calls; between two neighbours of the place 0.95 (n - 1) the way is "
            "straight, so do not round the place",
            _times(_after, high=lambda times: sorted(times)[int(0.95 * (len(times) - 1))]),
        ),
    ),
    hints=(
        "`seconds[warm_up:]` are the calls that count; sort them after that.",
        "p95: with place = 0.95 (n - 1) and i its whole part, go the rest of the way from the "
        "sorted call i to the next one.",
        "`torch.quantile` does both, as does `np.percentile` of NumPy. Then times 1000.",
    ),
)  # fmt: skip

# 5. The same, or as good?


def _answers(*parts: Callable) -> Callable:
    """An answer from three functions of the teacher's, the student's and the right classes."""

    def same_or_as_good(teacher: Tensor, student: Tensor, labels: Tensor) -> list[float]:
        return [float(part(teacher, student, labels)) for part in parts]

    return same_or_as_good


def _share(found: Tensor) -> float:
    return found.double().mean().item()


def _same(t: Tensor, s: Tensor, y: Tensor) -> float:
    return comparison.agreement(t.numpy(), s.numpy())["share"]


def _kept(t: Tensor, s: Tensor, y: Tensor) -> float:
    return _share(s == y) / _share(t == y)


def _repeated(t: Tensor, s: Tensor, y: Tensor) -> float:
    return _share(s[t != y] == t[t != y])


def same_or_as_good(teacher: Tensor, student: Tensor, labels: Tensor) -> list[float]:
    return _answers(_same, _kept, _repeated)(teacher, student, labels)


def _three_lists(generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    count, classes = whole(generator, 24, 40), 4
    labels = torch.randint(classes, (count,), generator=generator)
    teacher, student = labels.clone(), labels.clone()

    def draw(most: int) -> Tensor:
        return torch.randperm(count, generator=generator)[:most]

    wrong = draw(8)
    teacher[wrong] = (labels[wrong] + 1) % classes
    student[wrong[:3]] = teacher[wrong[:3]]  # the same mistake
    student[wrong[3:5]] = (labels[wrong[3:5]] + 2) % classes  # another mistake on the same row
    own = draw(whole(generator, 4, 9))
    student[own] = (student[own] + 1) % classes
    return teacher, student, labels


same_or_as_good = Exercise(
    solution=same_or_as_good,
    inputs=_three_lists,
    tolerance=1e-6,
    mistakes=(
        Mistake(
            "the first number is the student's accuracy: agreement asks the teacher, not the label",
            _answers(lambda t, s, y: _share(s == y), _kept, _repeated),
        ),
        Mistake(
            "the first number counts the rows that both get right; two models agree on rows that "
            "both get wrong in the same way, too",
            _answers(lambda t, s, y: _share((s == y) & (t == y)), _kept, _repeated),
        ),
        Mistake(
            "the first number counts as agreement that both are wrong, whatever they say",
            _answers(lambda t, s, y: _share((s == y) == (t == y)), _kept, _repeated),
        ),
        Mistake(
            "the second number is the student's accuracy; divide it by the teacher's",
            _answers(_same, lambda t, s, y: _share(s == y), _repeated),
        ),
        Mistake(
            "the second number is turned round; asked for is the student's accuracy divided by the "
            "teacher's",
            _answers(_same, lambda t, s, y: 1 / _kept(t, s, y), _repeated),
        ),
        Mistake(
            "the second number is a difference; asked for is a share: divide",
            _answers(_same, lambda t, s, y: _share(s == y) - _share(t == y), _repeated),
        ),
        Mistake(
            "the third number counts any mistake of the student's on those rows: it repeats the "
            "teacher's only where it says the same class",
            _answers(_same, _kept, lambda t, s, y: _share(s[t != y] != y[t != y])),
        ),
        Mistake(
            "the third number is a share of all rows; divide by the number of the teacher's "
            "mistakes",
            _answers(_same, _kept, lambda t, s, y: _share((t != y) & (s == t))),
        ),
        Mistake(
            "the third number is a share of the student's mistakes; divide by the number of the "
            "teacher's",
            _answers(_same, _kept, lambda t, s, y: _share(s[s != y] == t[s != y])),
        ),
        Mistake(
            "the third number is the share of the teacher's mistakes that the student does not "
            "repeat",
            _answers(_same, _kept, lambda t, s, y: 1 - _repeated(t, s, y)),
        ),
    ),
    hints=(
        "`teacher == student` is true where they say the same; its mean is the agreement.",
        "`wrong = teacher != labels` picks the rows of the third number: `student[wrong]`.",
        "`(student[wrong] == teacher[wrong]).double().mean().item()`",
    ),
)

# 6. Spot the flaw: a teacher that has seen the answers


def _of(chosen: Callable, mean: Callable = lambda rows: np.mean(rows, axis=0)) -> Callable:
    """For every row the mean of the logits of the teachers that are chosen for it."""

    def unseen_logits(rows: list[str], teachers: list[dict]) -> list[list[float]]:
        return [[float(z) for z in mean([t["logits"][row] for t in chosen(row, teachers)])]
                for row in rows]  # fmt: skip

    return unseen_logits


def _unseen(row: str, teachers: list[dict]) -> list[dict]:
    return [t for t in teachers if row not in t["train"]]


def unseen_logits(rows: list[str], teachers: list[dict]) -> list[list[float]]:
    return _of(_unseen)(rows, teachers)


def _some_teachers(generator: Generator) -> tuple[list[str], list[dict]]:
    count, number = whole(generator, 8, 12), whole(generator, 3, 4)
    rows = [f"r{k:02d}" for k in torch.randperm(count, generator=generator).tolist()]
    kept_out = [{k, *torch.randperm(number, generator=generator)[:1].tolist()}
                for k in (j % number for j in range(count))]  # fmt: skip
    teachers = []
    for k in range(number):
        train = [row for row, out in zip(rows, kept_out, strict=True) if k not in out]
        logits = normal(generator, count, 2, scale=2)
        seen = torch.tensor([row in train for row in rows])
        logits[seen] *= 4  # sure of what it has learned by heart
        order = torch.randperm(count, generator=generator).tolist()  # not that of the rows
        teachers.append({"train": train,
                         "logits": {rows[j]: [round(z, 4) for z in logits[j].tolist()]
                                    for j in order}})  # fmt: skip
    return rows, teachers


def _softmax_mean(rows: list[list[float]]) -> np.ndarray:
    return torch.tensor(rows, dtype=torch.float64).softmax(dim=1).mean(dim=0).numpy()


unseen_logits = Exercise(
    solution=unseen_logits,
    inputs=_some_teachers,
    tolerance=1e-6,  # a mean in float32 is right as well
    mistakes=(
        Mistake(
            "this is the mean over all teachers, and some have learned the row by heart: that is "
            "the flaw. Leave out those that trained on it",
            _of(lambda row, teachers: teachers),
        ),
        Mistake(
            "these are the teachers that trained on the row; take the others",
            _of(lambda row, teachers: [t for t in teachers if row in t["train"]] or teachers[:1]),
        ),
        Mistake(
            "this is one teacher for all rows: each row needs those that have not seen it",
            _of(lambda row, teachers: teachers[:1]),
        ),
        Mistake(
            "this is the first teacher that has not seen the row; there may be more: take the mean",
            _of(lambda row, teachers: _unseen(row, teachers)[:1]),
        ),
        Mistake(
            "this is the last teacher that has not seen the row; there may be more: take the mean",
            _of(lambda row, teachers: _unseen(row, teachers)[-1:]),
        ),
        Mistake(
            "this is the sum; divide by the number of teachers that have not seen the row",
            _of(_unseen, lambda rows: np.sum(rows, axis=0)),
        ),
        Mistake(
            "these are probabilities; asked for are logits, so that any temperature can follow",
            _of(_unseen, _softmax_mean),
        ),
    ),
    hints=(
        "What has a teacher learned about a row of its own training set? Whose word on the row "
        "would you take?",
        "For each row: the teachers with `row not in teacher[\"train\"]`.",
        "`[sum(column) / len(column) for column in zip(*found)]` is the mean of a list of lists, "
        "column by column.",
    ),
)  # fmt: skip
