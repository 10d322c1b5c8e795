"""The exercises of lesson 04: what each expects, its known mistakes, and its hints."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Generator, Tensor

from tutorkit import losses, metrics
from tutorkit.checkpoints import Keeper
from tutorkit.checks.answers import describe
from tutorkit.checks.exercise import Exercise, Mistake
from tutorkit.checks.inputs import pick, whole

# 1. The learning rate of every step


def _rates(factor) -> object:
    """A function of (peak, total, warmup) from a factor of (step, total, warmup)."""

    def learning_rates(peak: float, total: int, warmup: int) -> Tensor:
        factors = [factor(step, total, warmup) for step in range(total)]
        return peak * torch.tensor(factors, dtype=torch.float64)

    return learning_rates


def learning_rates(peak: float, total: int, warmup: int) -> Tensor:
    return _rates(lambda t, T, w: losses.lr_schedule("linear", t, T, w))(peak, total, warmup)


def _run_length(generator: Generator) -> tuple[float, int, int]:
    total = whole(generator, 8, 30)
    return pick(generator, (1.0, 0.25, 3e-4)), total, whole(generator, 2, total // 2)


learning_rates = Exercise(
    solution=learning_rates,
    inputs=_run_length,
    # A peak of 3e-4 makes a mistake small beside 1, which differences are measured by.
    tolerance=1e-12,
    mistakes=(
        Mistake(
            "the warm-up begins at 0, so the first step changes nothing: it should be peak / "
            "warmup. Use step + 1",
            _rates(lambda t, T, w: t / w if t < w else 1 - (t - w) / (T - w)),
        ),
        Mistake(
            "after the warm-up the rate jumps: the way down is measured from step 0. It begins "
            "where the warm-up ends and takes total - warmup steps",
            _rates(lambda t, T, w: (t + 1) / w if t < w else 1 - t / T),
        ),
        Mistake(
            "the last step has the rate 0, so it changes nothing: the way down takes total - "
            "warmup steps and reaches 0 after the last one",
            _rates(lambda t, T, w: (t + 1) / w if t < w else 1 - (t - w) / max(1, T - 1 - w)),
        ),
        Mistake(
            "there is no warm-up in it: while step < warmup the rate rises",
            _rates(lambda t, T, w: 1 - t / T),
        ),
        Mistake(
            "the rate stays at its peak after the warm-up; it should fall",
            _rates(lambda t, T, w: min(1.0, (t + 1) / w)),
        ),
    ),
    hints=(
        "Two straight lines: one for step < warmup, one for the rest. `torch.where` chooses, or a "
        "loop fills a list: `torch.tensor(values, dtype=torch.float64)`.",
        "Up: (step + 1) / warmup. Down: 1 at step = warmup, 0 at step = total.",
        "Down: `1 - (step - warmup) / (total - warmup)`.",
    ),
)

# 2. A step in micro-batches


def _gradient(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the mean loss, (C, H)."""
    bias = torch.zeros(len(weight), dtype=weight.dtype)
    return losses.linear_head_grads(states, weight, bias, labels).weight


def _of_parts(combine) -> object:
    """A wrong answer from the gradients of the micro-batches' means and their sizes."""

    def accumulated_gradient(states: Tensor, weight: Tensor, labels: Tensor, sizes: list) -> Tensor:
        parts = zip(states.split(sizes), labels.split(sizes), strict=True)
        return combine([_gradient(h, weight, y) for h, y in parts], sizes)

    return accumulated_gradient


def accumulated_gradient(states: Tensor, weight: Tensor, labels: Tensor, sizes: list) -> Tensor:
    return _gradient(states, weight, labels)


def _micro_batches(generator: Generator) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    sizes = [whole(generator, 3, 6) for _ in range(whole(generator, 2, 4))]
    sizes[-1] = whole(generator, 1, 2)  # the last one is short
    rows, classes = sum(sizes), whole(generator, 2, 3)
    states = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, 4, generator=generator, dtype=torch.float64)
    return states, weight, torch.randint(classes, (rows,), generator=generator), sizes


accumulated_gradient = Exercise(
    solution=accumulated_gradient,
    inputs=_micro_batches,
    mistakes=(
        Mistake(
            "this is the mean of the micro-batches' means: a row of a short one weighs more than "
            "the others. Take sums, divided by all rows",
            _of_parts(lambda grads, sizes: sum(grads) / len(grads)),
        ),
        Mistake(
            "the micro-batches' means are added up: divide sums by the rows of the whole step",
            _of_parts(lambda grads, sizes: sum(grads)),
        ),
        Mistake(
            "this is the gradient of the sum over all rows: divide by their number",
            _of_parts(lambda grads, sizes: sum(g * n for g, n in zip(grads, sizes, strict=True))),
        ),
        Mistake(
            "the sum over all rows is divided by the number of micro-batches: divide by the rows",
            _of_parts(
                lambda grads, sizes: (
                    sum(g * n for g, n in zip(grads, sizes, strict=True)) / len(grads)
                )
            ),
        ),
        Mistake(
            "only the last micro-batch is left in the gradient: it is cleared, or written over, "
            "for each one. Clear once, before the first",
            _of_parts(lambda grads, sizes: grads[-1] * sizes[-1] / sum(sizes)),
        ),
        Mistake(
            "this is the gradient of the last micro-batch's own mean: the others are cleared, or "
            "written over. Clear once, before the first, and divide each sum by all rows",
            _of_parts(lambda grads, sizes: grads[-1]),
        ),
    ),
    hints=(
        "Give a copy of the weight `requires_grad_(True)` and call `backward()` once for each "
        "micro-batch: gradients add up by themselves.",
        'Use `reduction="sum"` and divide by `len(labels)`.',
        "For each size: cut `states` and `labels` at start : start + size, loss, "
        "`(loss / len(labels)).backward()`, start += size. Return the copy's `.grad`.",
    ),
)

# 3. Early stopping


def early_stop(accuracies: list[float], patience: int) -> tuple[int, int]:
    keeper = Keeper(torch.nn.Linear(1, 1), None, None, None, {})
    state = SimpleNamespace(step=0, epoch=0.0, seconds=0.0, evaluations=[], best=None,
                            bad_evaluations=0)  # fmt: skip
    for made, accuracy in enumerate(accuracies, start=1):
        state.step = made - 1
        keeper.compare(state, SimpleNamespace(loss=0.5, accuracy=accuracy))
        if state.bad_evaluations >= patience:
            break
    return state.best["step"], made


def _stop(better, bad_after) -> object:
    """A wrong answer: when a score counts as a new best, and the count of bad ones at a best."""

    def early_stop(accuracies: list[float], patience: int) -> tuple[int, int]:
        best, bad = 0, 0
        for number in range(1, len(accuracies)):
            if better(accuracies, number, best):
                best, bad = number, bad_after(bad)
            else:
                bad += 1
            if bad >= patience:
                return best, number + 1
        return best, len(accuracies)

    return early_stop


def _higher(accuracies: list[float], number: int, best: int) -> bool:
    return accuracies[number] > accuracies[best]


def _right_but(change) -> object:
    def early_stop(accuracies: list[float], patience: int) -> tuple[int, int]:
        return change(accuracies, patience, *_stop(_higher, lambda bad: 0)(accuracies, patience))

    return early_stop


# Scores in twentieths, so that equal ones are common. One list in three only rises, some of them up
# to an equal score at the end, so that the run goes on to its end.
def _scores(generator: Generator) -> tuple[list[float], int]:
    count = whole(generator, 9, 14)
    if whole(generator, 0, 2) == 0:
        last = count - whole(generator, 1, 2)
        return [round(0.3 + 0.05 * min(k, last), 2) for k in range(count)], whole(generator, 1, 2)
    rise = [0.5 + 0.05 * (k // 2) for k in range(count)]
    noise = torch.randint(-3, 3, (count,), generator=generator).tolist()
    found = [min(1.0, max(0.0, round(a + 0.05 * n, 2))) for a, n in zip(rise, noise, strict=True)]
    return found, pick(generator, (2, 1, 3, 2))


early_stop = Exercise(
    solution=early_stop,
    inputs=_scores,
    mistakes=(
        Mistake(
            "an equal score is taken for a new best; only a higher one is",
            _stop(lambda scores, n, best: scores[n] >= scores[best], lambda bad: 0),
        ),
        Mistake(
            "the evaluations without a new best are counted over the whole run; the count starts "
            "anew at each best",
            _stop(_higher, lambda bad: bad),
        ),
        Mistake(
            "each score is compared with the one before it; compare it with the best so far",
            _stop(lambda scores, n, best: scores[n] > scores[n - 1], lambda bad: 0),
        ),
        Mistake(
            "the run ends one evaluation too late: at `patience` evaluations without a new best, "
            "not after one more",
            lambda accuracies, patience: _stop(_higher, lambda bad: 0)(accuracies, patience + 1),
        ),
        Mistake(
            "the first number is the last evaluation's; the weights that are kept are the best's",
            _right_but(lambda scores, patience, best, made: (made - 1, made)),
        ),
        Mistake(
            "the best is looked for among all scores, also those after the run has ended",
            _right_but(lambda scores, patience, best, made: (scores.index(max(scores)), made)),
        ),
        Mistake(
            "the second number is that of the last evaluation, counted from 0; expected is how "
            "many were made",
            _right_but(lambda scores, patience, best, made: (best, made - 1)),
        ),
    ),
    hints=(
        "Walk through the scores and remember the number of the best one so far.",
        "Evaluations since the best: the current number minus the best's number.",
        "`if number - best >= patience: return best, number + 1`; after the loop, "
        "`return best, len(accuracies)`.",
    ),
)

# 4. Spot the flaw: who chose the epoch?


class _LineLab(Exercise):
    """An exercise that asks for a line's number and a scalar.

    A wrong line is refused before the comparison, which would print the right one.
    """

    def _compare(self, fresh: list[tuple], expected: list, found: list) -> None:
        for answer in found:
            if not isinstance(answer, tuple) or len(answer) != 2 or type(answer[0]) is not int:
                raise self._failed(
                    "expected two values, the line's number (a whole one) and a scalar tensor, "
                    f"found {describe(answer)}."
                )
        wrong = [answer[0] for right, answer in zip(expected, found, strict=True)
                 if answer[0] != right[0]]  # fmt: skip
        if wrong and not self._known_mistake(fresh, expected, found)[1]:
            raise self._failed(
                f"line {wrong[0]} is not the flawed one. Which line hands over the rows that "
                "decide what is kept?"
            )
        super()._compare(fresh, expected, found)


def stopping_lab(validation: Tensor, test: Tensor) -> tuple[int, Tensor]:
    return 3, test[validation.argmax()]


def _two_curves(generator: Generator) -> tuple[Tensor, Tensor]:
    epochs = whole(generator, 6, 10)
    rise = 0.5 + 0.2 * (1 - torch.linspace(1, 0, epochs, dtype=torch.float64) ** 2)
    curves = []
    for peak in (whole(generator, 1, epochs - 3), epochs - 2):
        noise = 0.02 * torch.rand(epochs, generator=generator, dtype=torch.float64)
        curves.append(rise + noise)
        curves[-1][peak] += 0.25  # the two peak at different epochs, and not at the last one
    return curves[0], curves[1]


stopping_lab = _LineLab(
    solution=stopping_lab,
    inputs=_two_curves,
    mistakes=(
        Mistake(
            "this is what the listing prints: the highest of the test scores, chosen by itself. "
            "Choose the epoch by the validation scores",
            lambda validation, test: (3, test.max()),
        ),
        Mistake(
            "this is the validation score of the chosen epoch; it was chosen by that score, so it "
            "is too good as well. Return the test score of that epoch",
            lambda validation, test: (3, validation.max()),
        ),
        Mistake(
            "this is the test score after the last epoch; the weights kept are those of the epoch "
            "with the best validation score",
            lambda validation, test: (3, test[-1]),
        ),
        Mistake(
            "the number is right. The line is not 6: testing the kept weights once is what the "
            "test set is for. Which line lets it choose them?",
            lambda validation, test: (6, test[validation.argmax()]),
        ),
        Mistake(
            "the number is right. The line is not 4: comparing scores is what early stopping does. "
            "Where does that score come from?",
            lambda validation, test: (4, test[validation.argmax()]),
        ),
        Mistake(
            "the number is right. The line is not 5: it keeps what line 4 found. Where does that "
            "score come from?",
            lambda validation, test: (5, test[validation.argmax()]),
        ),
    ),
    hints=(
        "Which rows decide that one epoch's weights are kept?",
        "Line 3 should read other rows. Which epoch would have been kept then?",
        "`test[validation.argmax()]` is the test score of that epoch.",
    ),
)

# 5. Spot the flaw: two logs swapped


def _swap(best_of, report) -> object:
    """An answer from how a log's number is read, and from what is reported of the rows."""

    def swapped_rows(printed: dict, logs: dict) -> list[str]:
        return report(printed, {name: round(best_of(log), 3) for name, log in logs.items()})

    return swapped_rows


def _first_pair(printed: dict, alike) -> list[str]:
    names = list(printed)
    pairs = [[a, b] for i, a in enumerate(names) for b in names[i + 1 :] if alike(a, b)]
    return pairs[0] if pairs else []


def _crossed(printed: dict, best: dict) -> list[str]:
    return _first_pair(
        printed, lambda a, b: printed[a] == best[b] != best[a] and printed[b] == best[a]
    )


def swapped_rows(printed: dict, logs: dict) -> list[str]:
    return _swap(lambda log: max(log["accuracy"]), _crossed)(printed, logs)


def _table_and_logs(generator: Generator) -> tuple[dict, dict]:
    names = ["head only", "last layer", "all layers", "from scratch", "two epochs", "warm start"]
    names = names[: whole(generator, 4, 6)]
    # The best evaluation is the last one, the one with the lowest loss, or neither.
    order = pick(generator, ((0, 1, 3, 2), (0, 2, 1, 3), (0, 1, 2, 3)))
    logs = {}
    for place, name in enumerate(names):
        top = 0.6 + 0.05 * place + 0.01 * whole(generator, 0, 3) + 0.0001 * whole(generator, 1, 4)
        scores = [round(top + change, 4) for change in (-0.0312, -0.0123, 0.0, -0.0078)]
        logs[name] = {
            "accuracy": [scores[i] for i in order],
            "loss": [0.61, 0.52, 0.54, 0.57],
        }
    printed = {name: round(max(log["accuracy"]), 3) for name, log in logs.items()}
    first = whole(generator, 0, len(names) - 2)
    second = whole(generator, first + 1, len(names) - 1)
    wrong = next(n for k, n in enumerate(names) if k not in (first, second))
    # One of four tables holds no swap. In most, one more row is wrong: it prints a number that is
    # nobody's, or a copy of row b's (which b prints itself where nothing is swapped).
    a, b = names[first], names[second]
    right = dict(printed)
    if whole(generator, 0, 3):
        printed[a], printed[b] = printed[b], printed[a]
    also = pick(generator, ("nothing", "a wrong number", "a copy", "a copy"))
    if also == "a wrong number":
        printed[wrong] = round(printed[wrong] + 0.004, 3)
    elif also == "a copy":
        printed[wrong] = right[b]
    return printed, logs


swapped_rows = Exercise(
    solution=swapped_rows,
    inputs=_table_and_logs,
    mistakes=(
        Mistake(
            "the last evaluation of each log is compared; the table prints the best one",
            _swap(lambda log: log["accuracy"][-1], _crossed),
        ),
        Mistake(
            "the evaluation with the lowest loss is compared; the table prints the one with the "
            "highest accuracy",
            _swap(lambda log: log["accuracy"][log["loss"].index(min(log["loss"]))], _crossed),
        ),
        Mistake(
            "these are all rows whose number is wrong; a swap is two rows that print each other's "
            "number",
            _swap(
                lambda log: max(log["accuracy"]),
                lambda printed, best: [name for name in printed if printed[name] != best[name]],
            ),
        ),
        Mistake(
            "one row that prints the other's number is not enough: in a swap the other prints its "
            "number as well",
            _swap(
                lambda log: max(log["accuracy"]),
                lambda printed, best: _first_pair(printed, lambda a, b: printed[a] == best[b]),
            ),
        ),
        Mistake(
            "the two names stand in reverse; expected is the table's order",
            _swap(
                lambda log: max(log["accuracy"]),
                lambda printed, best: _crossed(printed, best)[::-1],
            ),
        ),
        Mistake(
            "the table's numbers are rounded to three digits and the logs' are not, so no two are "
            "equal: round before comparing",
            lambda printed, logs: [],
        ),
    ),
    hints=(
        'What should each row print? `round(max(log["accuracy"]), 3)`.',
        "Compare each pair of rows: does the first print the second's number, and the second the "
        "first's?",
        "Two nested loops over the names, the inner one over those after the outer one's.",
    ),
)

# 6. Spot the flaw: a ranking


def _places(resolved) -> object:
    """An answer from a function of (a, b, right answers of the first, of the second, rows)."""

    def resolved_places(leaderboard: list[Tensor]) -> list[bool]:
        found = []
        for first, second in zip(leaderboard, leaderboard[1:], strict=False):
            a, b = int((first & ~second).sum()), int((second & ~first).sum())
            found.append(bool(resolved(a, b, int(first.sum()), int(second.sum()), len(first))))
        return found

    return resolved_places


def resolved_places(leaderboard: list[Tensor]) -> list[bool]:
    pairs = zip(leaderboard, leaderboard[1:], strict=False)
    return [metrics.paired_test(a.numpy(), b.numpy())["resolved"] for a, b in pairs]


def _p_value(a: int, b: int, sides: int = 2) -> float:
    from scipy.stats import binom

    return min(1.0, sides * float(binom.cdf(min(a, b), a + b, 0.5)))


def _tail_at_b(a: int, b: int) -> float:
    from scipy.stats import binom

    return 2 * float(binom.cdf(b, a + b, 0.5))


def _intervals_apart(a: int, b: int, first: int, second: int, n: int) -> bool:
    worse, better = (metrics.accuracy_interval(hits, n) for hits in sorted((first, second)))
    return better[0] > worse[1]


# Rows that one of two models gets right and the other does not. In the first line the distance is
# resolved; in the second too, but not by the approximate test with a continuity correction; in the
# third the one-sided test alone would say so, in the fourth the approximate one as well; in the
# last none does.
COUNTS = (
    *((15, 5), (9, 1), (40, 18), (6, 0)),
    *((13, 4), (13, 4)),
    *((10, 3), (13, 5), (16, 7)),
    *((11, 3), (7, 1), (27, 14), (14, 5)),
    *((3, 1), (10, 8), (5, 1), (5, 1), (5, 5), (0, 0)),
)


def _leaderboard(generator: Generator) -> tuple[list[Tensor]]:
    n, models = whole(generator, 240, 360), whole(generator, 6, 9)
    board = [torch.rand(n, generator=generator) < 0.6]
    for _ in range(models - 1):
        only_first, only_second = pick(generator, COUNTS)
        if whole(generator, 0, 2) == 0:  # the order is not that of these rows
            only_first, only_second = only_second, only_first
        right, wrong = (board[-1] == value for value in (True, False))
        following = board[-1].clone()
        for where, count in ((right, only_first), (wrong, only_second)):
            rows = where.nonzero()[:, 0]
            chosen = rows[torch.randperm(len(rows), generator=generator)[:count]]
            following[chosen] = ~following[chosen]
        board.append(following)
    return (board,)


resolved_places = Exercise(
    solution=resolved_places,
    inputs=_leaderboard,
    mistakes=(
        Mistake(
            "every distance counts as real, however small: that is the flaw of the ranking. Ask "
            "how often a fair coin would give one as large",
            _places(lambda a, b, first, second, n: first != second),
        ),
        Mistake(
            "only one direction is counted: add the results that are as uneven the other way, "
            "which doubles the probability",
            _places(lambda a, b, first, second, n: _p_value(a, b, sides=1) < 0.05),
        ),
        Mistake(
            "whether two intervals overlap is too strict a question: both models were scored on "
            "the same rows, and the rows that both get right say nothing. Count the others",
            _places(_intervals_apart),
        ),
        Mistake(
            "this is the approximate test, (a - b)² / (a + b) against 3.84; with few rows it finds "
            "too much. Add up the coin's probabilities",
            _places(lambda a, b, first, second, n: (a - b) ** 2 > 3.841458820694124 * (a + b)),
        ),
        Mistake(
            "this is the approximate test with a continuity correction, (|a - b| - 1)² / (a + b) "
            "against 3.84; here it misses some. Add up the coin's probabilities",
            _places(
                lambda a, b, first, second, n: (
                    (abs(a - b) - 1) ** 2 > 3.841458820694124 * (a + b) > 0
                )
            ),
        ),
        Mistake(
            "the sum ends at b, which is the larger count where the first model is behind: it ends "
            "at min(a, b)",
            _places(lambda a, b, first, second, n: _tail_at_b(a, b) < 0.05),
        ),
        Mistake(
            "the answers are the wrong way round: True means that the distance is resolved",
            _places(lambda a, b, first, second, n: _p_value(a, b) >= 0.05),
        ),
    ),
    hints=(
        "a = rows where the first is right and the second is not; b the other way round.",
        "k heads in m tosses have the probability math.comb(m, k) / 2**m. Results at least as "
        "uneven: k from 0 to min(a, b), and as many at the other end.",
        "`2 * sum(math.comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b) < 0.05`",
    ),
)
