"""An exercise and its check: names the learner's mistake, and lets nothing wrong pass.

A check that only looks for known mistakes passes every other wrong answer. So the last step always
compares with the solution on several fresh inputs; the steps before it are there for the message.
"""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tutorkit.checks.answers import (
    clone,
    describe,
    dtype_problem,
    finite_problem,
    largest_difference,
    same,
    structure_problem,
    with_values,
)

SEEDS = (11, 22, 33, 44, 55, 66)  # of the inputs; fixed, so that a check always says the same


class CheckFailed(AssertionError):
    """An answer is not right; the message is for the learner."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback, which would lead into this package."""
        return [str(self)]


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that learners are known to give.

    Attributes:
        says: what the learner is told.
        wrong: the function with that mistake in it, with the parameters of the solution. It
            returns its wrong answer: one that stops or changes its inputs is refused without it.
    """

    says: str
    wrong: Callable


@dataclass(frozen=True)
class Exercise:
    """A function to be written by a learner, and what is needed to check it.

    Attributes:
        solution: the right function; its name and the names of its parameters are the task.
        inputs: makes fresh inputs from a generator: tensors, numbers, lists of tensors.
        mistakes: the known wrong answers, each told apart by its own message.
        hints: one to three, from a nudge to nearly the answer.
        tolerance: how far a number may be off, relative to the largest one of the right answer or
            to 1, whichever is more. Whole numbers are compared exactly.

    Raises:
        ValueError: if there is no mistake, no hint or a fourth one, an empty or repeated text, a
            mistake with other parameters than the solution, or a tolerance outside (0, 1).
    """

    solution: Callable
    inputs: Callable[[torch.Generator], tuple]
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, ...]
    tolerance: float = 1e-9
    _hints_shown: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.hints) <= 3:
            raise ValueError(f"{self.name}: expected one to three hints, found {len(self.hints)}.")
        if not self.mistakes:
            raise ValueError(f"{self.name}: expected at least one Mistake, found none.")
        for what, texts in (("hint", self.hints), ("says", [m.says for m in self.mistakes])):
            if len({text.strip() for text in texts} - {""}) < len(texts):
                raise ValueError(f"{self.name}: a {what} is empty or stands there twice: {texts}.")
        for mistake in self.mistakes:
            if parameters(mistake.wrong) != parameters(self.solution):
                raise ValueError(
                    f"{self.name}: the mistake {mistake.says!r} takes {parameters(mistake.wrong)}, "
                    f"expected the solution's parameters, {parameters(self.solution)}."
                )
        if not 0 < self.tolerance < 1:
            raise ValueError(f"{self.name}: expected 0 < tolerance < 1, found {self.tolerance}.")

    @property
    def name(self) -> str:
        """The name of the function to be written."""
        return self.solution.__name__

    def check(self, learner: Any) -> None:
        """Print one line if the learner's function is right.

        Args:
            learner: what the learner wrote.

        Raises:
            CheckFailed: with the first thing that is wrong and, where it can be told, why.
        """
        self._check_parameters(learner)
        fresh = [self.inputs(torch.Generator().manual_seed(seed)) for seed in SEEDS]
        state = torch.get_rng_state()
        try:
            found = [self._run(learner, *case) for case in zip(SEEDS, fresh, strict=True)]
            expected = answers(self.solution, fresh)
            self._compare(fresh, expected, found)
        finally:
            torch.set_rng_state(state)
        print(f"✓ {self.name}: right on {len(SEEDS)} fresh inputs")

    def hint(self) -> None:
        """Print the next hint; after the last one, where the solution is."""
        shown, total = len(self._hints_shown), len(self.hints)
        if shown == total:
            print("There are no more hints. The folded solution stands in the lesson.")
        else:
            self._hints_shown.append(self.hints[shown])
            print(f"Hint {shown + 1} of {total}: {self.hints[shown]}")

    def _failed(self, text: str) -> CheckFailed:
        return CheckFailed(f"✗ {self.name}: {text}")

    def _named(self, inputs: tuple) -> str:
        pairs = zip(inspect.signature(self.solution).parameters, inputs, strict=True)
        return ", ".join(f"{name} = {with_values(value)}" for name, value in pairs)

    def _check_parameters(self, learner: Any) -> None:
        if not callable(learner):
            raise self._failed(
                f"expected the function itself, found {describe(learner)}. "
                f"Call the check as in the cell that was given: check({self.name})."
            )
        if parameters(learner) != parameters(self.solution):
            raise self._failed(
                f"expected the parameters {parameters(self.solution)}, found {parameters(learner)}."
                " Put the first line of the function back as it was given."
            )

    def _run(self, learner: Callable, seed: int, inputs: tuple) -> Any:
        """The learner's answer on a copy of the inputs."""
        given = clone(inputs)
        try:
            # A warning on stderr would count as a failed check in nbgrader.
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                answer = call(learner, given, seed)
        except (Exception, SystemExit) as error:  # a cell that only exits would count as passed
            if is_stub(error, learner):
                raise self._failed(
                    "not written yet: put your code in the place of `raise NotImplementedError`."
                ) from None
            lines = own_lines(error, learner)
            line = f", in the line `{lines[-1]}`" if lines and lines[-1] else ""
            raise self._failed(
                f"stopped with {type(error).__name__}: {error}{line}\n"
                f"This was with {self._named(inputs)}."
            ) from None
        if seed == SEEDS[0]:
            for text in sorted({f"{w.category.__name__}: {w.message}" for w in caught}):
                print(f"! {self.name}: {text}")
        if answer is None:
            raise self._failed("returned None: is a `return` missing?")
        names = inspect.signature(self.solution).parameters
        for name, before, after in zip(names, inputs, given, strict=True):
            if not same(before, after, tolerance=0.0):
                of_a_list = " Of a list: `sorted(x)`, not `x.sort()`."
                raise self._failed(
                    f"changed its input `{name}` in place, and whoever calls it still needs that. "
                    "Make a new tensor: `x = x + 1`, not `x += 1`, `x[0] = 1` or `x.add_(1)`."
                    + (of_a_list if isinstance(before, list) else "")
                )
        return answer

    def _compare(self, fresh: list[tuple], expected: list, found: list) -> None:
        """Refuse answers that are not the solution's, by a known mistake's name if one fits."""
        cases = list(zip(fresh, expected, found, strict=True))
        for problem in (structure_problem, dtype_problem, finite_problem):
            for inputs, right, answer in cases:
                if text := problem(right, answer):
                    says, _ = self._known_mistake(fresh, expected, found)
                    because = f"\nA known mistake does that: {says}" if says else ""
                    raise self._failed(f"{text}\nThis was with {self._named(inputs)}.{because}")
        wrong = []
        for inputs, right, answer in cases:
            if difference := largest_difference(right, answer, self.tolerance):
                wrong.append((*difference, inputs))
        if not wrong:
            return
        says, always = self._known_mistake(fresh, expected, found)
        if always:
            raise self._failed(says)
        _, text, inputs = max(wrong, key=lambda each: each[0])
        because = f"\nOn some inputs it is what a known mistake gives: {says}" if says else ""
        raise self._failed(
            f"wrong on {len(wrong)} of {len(SEEDS)} fresh inputs. {text}\n"
            f"This was with {self._named(inputs)}.{because}"
        )

    def _known_mistake(self, fresh: list[tuple], expected: list, found: list) -> tuple[str, bool]:
        """What the mistake says that gives the learner's answers, and whether it gives them all."""
        sometimes = ""
        for mistake in self.mistakes:
            try:
                wrong = answers(mistake.wrong, fresh)
            except Exception:
                continue  # the learner's function did not stop, so it is not this mistake
            alike = [same(*pair, self.tolerance) for pair in zip(wrong, found, strict=True)]
            right = [same(*pair, self.tolerance) for pair in zip(expected, wrong, strict=True)]
            explained = [a and not r for a, r in zip(alike, right, strict=True)]
            if any(explained) and all(alike):
                return mistake.says, True
            if any(explained):
                sometimes = sometimes or mistake.says
        return sometimes, False


def parameters(function: Callable) -> str:
    """The names of the parameters in order, such as `(logits, labels)`."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have none
        return "(not known)"
    bare = [
        each.replace(annotation=each.empty, default=each.empty)
        for each in signature.parameters.values()
    ]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def call(function: Callable, inputs: tuple, seed: int) -> Any:
    """A copy of what the function returns; the seed is that of the global random numbers."""
    torch.default_generator.manual_seed(seed)
    return clone(function(*inputs))


def answers(function: Callable, fresh: list[tuple]) -> list[Any]:
    """What the function returns on a copy of each of the inputs."""
    return [call(function, clone(each), seed) for seed, each in zip(SEEDS, fresh, strict=True)]


def own_lines(error: BaseException, learner: Callable) -> list[str]:
    """The lines of the learner's own source that the error passed through, innermost last."""
    code = getattr(inspect.unwrap(learner), "__code__", None)
    trace = traceback.extract_tb(error.__traceback__)
    return [each.line or "" for each in trace if code and each.filename == code.co_filename]


def is_stub(error: BaseException, learner: Callable) -> bool:
    """Whether the error is the stub's own; PyTorch raises the same type for a dtype it lacks."""
    line = (own_lines(error, learner) or ["elsewhere"])[-1]
    # Without a source (a function made by exec) the type has to do.
    return isinstance(error, NotImplementedError) and (line == "" or line.startswith("raise"))
