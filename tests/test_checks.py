"""Checks of exercises: each stage by its message, and nothing wrong gets through."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

import tutorkit.checks
from tutorkit.checks import CheckFailed, Exercise, Mistake
from tutorkit.checks.exercise import SEEDS
from tutorkit.notebooks import kernel_of_this_interpreter


def centred(values: Any, scale: float) -> Any:
    return (values - values.mean(-1, keepdim=True)) * scale


def inputs(generator: torch.Generator) -> tuple:
    values = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return values, 1.5 + torch.rand((), generator=generator, dtype=torch.float64).item()


def whole_mean(values: Any, scale: float) -> Any:
    return (values - values.mean()) * scale


def no_scale(values: Any, scale: float) -> Any:
    return values - values.mean(-1, keepdim=True)


def only_below(values: Any, scale: float) -> Any:
    """Wrong on some inputs only: those whose first number is negative."""
    return centred(values, -scale if values[0, 0] < 0 else scale)


def one_row(values: Any, scale: float) -> Any:
    return centred(values, scale)[0]


def in_float32(values: Any, scale: float) -> Any:
    return centred(values.float(), scale)


def by_zero(values: Any, scale: float) -> Any:
    return centred(values, scale) / torch.tensor([0.0, 1.0, 1.0])


MISTAKES = (
    Mistake("the mean is over the whole batch; it should be over each row", whole_mean),
    Mistake("you forgot the scale", no_scale),
    Mistake("the sign depends on the first number", only_below),
    Mistake("this is the first row alone", one_row),
    Mistake("you went to float32 and did not come back", in_float32),
    Mistake("you divide by a zero", by_zero),
)
SAMPLE = Exercise(centred, inputs, MISTAKES, ("Subtract something.", "The mean.", "Keep the dim."))


def sample(solution: Callable, make: Callable = inputs, **settings: Any) -> Exercise:
    """An exercise around another solution, with a mistake that nothing gives by chance."""

    def unlikely(*args: Any) -> Any:
        return "unlikely"

    unlikely.__signature__ = inspect.signature(solution)
    return Exercise(solution, make, (Mistake("unlikely", unlikely),), ("think",), **settings)


def refused(learner: Any, exercise: Exercise = SAMPLE) -> str:
    with pytest.raises(CheckFailed) as caught:
        exercise.check(learner)
    assert str(caught.value).startswith(f"✗ {exercise.name}: ")
    return str(caught.value)


def test_the_solution_passes_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    SAMPLE.check(centred)
    SAMPLE.check(lambda values, scale: scale * values - scale * values.mean(1)[:, None])
    line = f"✓ centred: right on {len(SEEDS)} fresh inputs\n"
    assert capsys.readouterr().out == line + line
    assert len(SEEDS) >= 3


# The stages, in their order.


def test_the_function_itself_is_asked_for() -> None:
    assert "expected the function itself, found a tensor of shape (2,)" in refused(torch.ones(2))


@pytest.mark.parametrize(
    ("learner", "found"),
    [
        (lambda scale, values: None, "(scale, values)"),
        (lambda values: None, "(values)"),
        (lambda values, scale, more=1: None, "(values, scale, more)"),
        (lambda *values: None, "(*values)"),
        (dict, "(not known)"),
    ],
)
def test_the_parameters_are_those_of_the_solution(learner: Callable, found: str) -> None:
    assert f"expected the parameters (values, scale), found {found}." in refused(learner)


def test_defaults_and_annotations_are_free() -> None:
    def learner(values: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return centred(values, scale)

    SAMPLE.check(learner)


def stub(values: Any, scale: float) -> Any:
    raise NotImplementedError("not written yet")


def test_a_stub_is_not_written_yet() -> None:
    assert "not written yet: put your code in the place of" in refused(stub)


def test_what_pytorch_does_not_implement_is_not_a_stub() -> None:
    text = refused(lambda values, scale: values.long().softmax(-1))
    assert "stopped with NotImplementedError: " in text
    assert "not implemented for 'Long', in the line" in text


def test_an_exit_is_refused() -> None:
    assert "stopped with SystemExit: 0" in refused(lambda values, scale: sys.exit(0))


def test_a_missing_return_is_named() -> None:
    assert "returned None: is a `return` missing?" in refused(lambda values, scale: None)


def test_an_exception_is_told_with_its_line_and_the_inputs() -> None:
    def learner(values: Any, scale: float) -> Any:
        weights = torch.ones(5, dtype=values.dtype)
        return values @ weights

    text = refused(learner)
    assert "stopped with RuntimeError: " in text
    assert "in the line `return values @ weights`" in text
    assert re.search(r"values = a tensor of shape \(4, 3\), scale = [\d.]+ \(number\)\.$", text)


def test_an_exception_on_a_later_input_is_found() -> None:
    def learner(values: Any, scale: float) -> Any:
        if values[0, 0] < 0:
            raise KeyError("below")
        return centred(values, scale)

    assert "stopped with KeyError: 'below'" in refused(learner)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.sub_(values.mean(-1, keepdim=True)),
        lambda values: values.squeeze_().unsqueeze_(0),
        lambda values: values.__setitem__((0, 0), float("nan")),
    ],
)
def test_inputs_may_not_be_changed(change: Callable) -> None:
    def learner(values: Any, scale: float) -> Any:
        answer = centred(values, scale)
        change(values)
        return answer

    assert "changed its input `values` in place" in refused(learner)


def test_a_list_among_the_inputs_may_not_be_changed() -> None:
    def total(rows: Any) -> Any:
        return torch.stack(rows).sum()

    def learner(rows: Any) -> Any:
        answer = total(rows)
        rows.pop()
        return answer

    exercise = sample(total, lambda g: ([torch.rand(2, generator=g) for _ in range(3)],))
    exercise.check(total)
    assert "changed its input `rows` in place" in refused(learner, exercise)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda v: list(v), r"expected a tensor of shape \(4, 3\), found a list of 4 \("),
        (lambda v: v.tolist(), "found a list of 4"),
        (lambda v: (v,), r"found a tuple of 1 \(a tensor of shape \(4, 3\)\)"),
        (lambda v: v.numpy(), r"found a ndarray of shape \(4, 3\)\. Stay with torch"),
        (lambda v: 1.0, r"found 1\.0 \(number\)"),
        (lambda v: v[:, :1], r"found a tensor of shape \(4, 1\)\. The shapes must be equal"),
        (lambda v: v.mean(), r"found a tensor of shape \(\)"),
        (lambda v: v[None], r"found a tensor of shape \(1, 4, 3\)"),
        (lambda v: v.T, r"found a tensor of shape \(3, 4\)"),
        (lambda v: v[:0], r"found a tensor of shape \(0, 3\)"),
    ],
)
def test_another_structure_or_shape_is_refused(answer: Callable, message: str) -> None:
    text = refused(lambda values, scale: answer(centred(values, scale)))
    assert re.search(message, text, re.DOTALL), text


@pytest.mark.parametrize("shape", [(1,), (4, 1), (1, 4), ()])
def test_what_would_broadcast_is_refused(shape: tuple[int, ...]) -> None:
    # The right answer is the same in every row, so a broadcast comparison would see no difference.
    def counts(values: Any) -> Any:
        return torch.full((len(values),), 3.0)

    exercise = sample(counts, lambda g: (torch.rand(4, 3, generator=g),))
    exercise.check(counts)
    text = refused(lambda values: torch.full(shape, 3.0), exercise)
    assert f"expected a tensor of shape (4,), found a tensor of shape {shape}." in text


def test_the_message_holds_a_short_list_in_full_and_says_how_not_to_sort_it() -> None:
    exercise = sample(lambda rows: sum(rows), lambda g: ([4, 3, 2, 1],))
    assert refused(lambda rows: 0, exercise).endswith("was with rows = a list of 4, [4, 3, 2, 1].")
    text = refused(lambda rows: rows.sort() or 10, exercise)
    assert text.endswith("or `x.add_(1)`. Of a list: `sorted(x)`, not `x.sort()`.")
    long = sample(lambda rows: sum(rows), lambda g: ([1] * 31,))
    assert "rows = a list of 31 (1 (number), 1 (number), 1 (number), …)" in refused(
        lambda rows: 0, long
    )


def test_another_dtype_is_refused() -> None:
    text = refused(lambda values, scale: centred(values, scale).to(torch.bfloat16))
    assert "expected dtype torch.float64, found torch.bfloat16" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_named_with_their_place(value: float) -> None:
    def learner(values: Any, scale: float) -> Any:
        answer = centred(values, scale)
        answer[2, 1] = value
        return answer

    assert re.search(rf"answer\[2, 1\] is {value}, expected -?\d\.\d+\.", refused(learner))


def test_nan_and_infinity_of_the_solution_are_asked_for() -> None:
    special = torch.tensor([float("nan"), float("-inf"), 1.0])

    def shifted(values: Any) -> Any:
        return values + special

    exercise = sample(shifted, lambda g: (torch.rand(3, generator=g),))
    exercise.check(shifted)
    plus = torch.tensor([float("nan"), float("inf"), 1.0])
    assert "difference is inf, at answer[1]" in refused(lambda values: values + plus, exercise)
    finite = torch.tensor([float("nan"), -1e30, 1.0])
    assert "expected -inf, found -1" in refused(lambda values: values + finite, exercise)
    number = torch.tensor([0.0, float("-inf"), 1.0])
    assert "expected nan, found 0." in refused(lambda values: values + number, exercise)


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m.wrong.__name__ for m in MISTAKES])
def test_each_known_mistake_is_named(mistake: Mistake) -> None:
    text = refused(mistake.wrong)
    assert mistake.says in text
    assert not any(other.says in text for other in MISTAKES if other is not mistake)


def test_a_known_mistake_follows_what_its_stage_says() -> None:
    known = "\nA known mistake does that: "
    assert re.search(rf"(?s)expected a tensor of shape.*{known}this is the first", refused(one_row))
    assert re.search(rf"(?s)expected dtype.*{known}you went to float32", refused(in_float32))
    assert re.search(rf"(?s)answer\[0, 0\] is -?inf.*{known}you divide by", refused(by_zero))


def test_a_mistake_that_explains_a_part_is_told_with_the_difference() -> None:
    def learner(values: Any, scale: float) -> Any:
        return no_scale(values, scale) if values[0, 0] < 0 else centred(values, scale) + 1

    text = refused(learner)
    assert "The largest difference is " in text
    assert "On some inputs it is what a known mistake gives: you forgot the scale" in text


def test_a_mistake_that_stops_does_not_stop_the_check() -> None:
    def stops(values: Any, scale: float) -> Any:
        raise KeyError

    exercise = Exercise(centred, inputs, (Mistake("it stops", stops), *MISTAKES), ("think",))
    assert refused(no_scale, exercise) == "✗ centred: you forgot the scale"


# Wrong answers that no list knows.


def right_on_the_first(values: Any, scale: float) -> Any:
    first = inputs(torch.Generator().manual_seed(SEEDS[0]))[0]
    return centred(values, scale) if torch.equal(values, first) else torch.zeros_like(values)


def memorised(values: Any, scale: float) -> Any:
    return centred(*inputs(torch.Generator().manual_seed(SEEDS[0])))


def one_number_off(values: Any, scale: float) -> Any:
    answer = centred(values, scale)
    answer[3, 2] += 1e-6
    return answer


def off_on_the_last(values: Any, scale: float) -> Any:
    last = inputs(torch.Generator().manual_seed(SEEDS[-1]))[1]
    return centred(values, scale * (1 + (scale == last) * 1e-6))


def float32_on_the_way(values: Any, scale: float) -> Any:
    return centred(values.float(), scale).double()


def rows_swapped(values: Any, scale: float) -> Any:
    return centred(values, scale).flip(0)


UNLISTED = [
    right_on_the_first,
    memorised,
    one_number_off,
    off_on_the_last,
    float32_on_the_way,
    rows_swapped,
]


@pytest.mark.parametrize("learner", UNLISTED, ids=[each.__name__ for each in UNLISTED])
def test_an_unlisted_wrong_answer_is_refused_with_the_difference(learner: Callable) -> None:
    text = refused(learner)
    assert re.search(
        r"wrong on [1-6] of 6 fresh inputs\. The largest difference is \S+, at answer\[\d, \d\]: "
        r"expected \S+, found \S+\.\nThis was with values = a tensor of shape \(4, 3\), scale = ",
        text,
    ), text
    assert "known mistake" not in text


def test_the_largest_difference_is_the_one_that_is_told() -> None:
    text = refused(one_number_off)
    assert "wrong on 6 of 6" in text
    assert "The largest difference is 1e-06, at answer[3, 2]: " in text
    expected, found = re.findall(r"(?:expected|found) (\S+\d)", text)
    assert float(found) - float(expected) == pytest.approx(1e-6, rel=1e-2)
    assert "wrong on 1 of 6" in refused(off_on_the_last)


def test_the_worst_input_is_the_one_that_is_told() -> None:
    def learner(values: Any, scale: float) -> Any:
        return centred(values, scale) + scale / 1000

    scales = [inputs(torch.Generator().manual_seed(seed))[1] for seed in SEEDS]
    assert scales.index(max(scales)) != 0
    assert f"scale = {max(scales)} (number)" in refused(learner)


def test_an_answer_that_changes_after_the_call_is_the_one_that_was_given() -> None:
    kept = torch.zeros(4, 3, dtype=torch.float64)

    def learner(values: Any, scale: float) -> Any:
        return kept.copy_(centred(values, scale))

    SAMPLE.check(learner)


def test_nan_on_one_input_is_refused() -> None:
    last = inputs(torch.Generator().manual_seed(SEEDS[-1]))[1]

    def learner(values: Any, scale: float) -> Any:
        return centred(values, float("nan") if scale == last else scale)

    assert "answer[0, 0] is nan, expected " in refused(learner)
    assert f"scale = {last} (number)" in refused(learner)


def test_the_tolerance_is_relative_to_the_largest_number_and_at_least_to_one() -> None:
    def scaled(factor: float) -> Any:
        return torch.tensor([1e-3, 1.0], dtype=torch.float64) * factor

    def off(by: float) -> Callable:
        return lambda factor: scaled(factor) + torch.tensor([by, 0.0], dtype=torch.float64)

    for factor, allowed in ((1000.0, 1e-3), (0.001, 1e-6)):
        exercise = sample(scaled, lambda g, factor=factor: (factor,), tolerance=1e-6)
        exercise.check(off(allowed * 0.9))
        assert "difference" in refused(off(allowed * 1.1), exercise)


# Other kinds of answers.


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (0.1, 0.1 + 1e-7, "at answer: expected 0.1, found 0.1000001."),
        (0.5, torch.tensor(0.5), "expected 0.5 (number), found a tensor of shape ()"),
        (3, 4, "The largest difference is 1, at answer: expected 3, found 4."),
        (3, 3.0, "expected dtype int, found float"),
        (3, 3.0, "found float. A whole number is asked for: a count, or `int(…)` of one."),
        (3, torch.tensor(3), "a tensor of shape (). Make it a Python number: `.item()`."),
        (3, np.int64(3), "found an int64 of shape (). Make it a Python number: `.item()`."),
        ([True], [np.True_], "of shape (). Make it a Python number: `.item()`."),
        (torch.tensor([1]), torch.tensor([True]), "torch.bool. `.long()` makes whole numbers."),
        (True, 1, "expected dtype bool, found int"),
        (2**60, 2**60 + 1, f"expected {2**60}, found {2**60 + 1}"),
        ("a b", "a  b", "answer: expected 'a b' (string), found 'a  b' (string)"),
        ([1, 2], [1, 3], "at answer[1]: expected 2, found 3."),
        ([1, 2], [1, 2, 3], "expected a list of 2 (1 (number), 2 (number)), found a list of 3"),
        ([1, 2], (1, 2), "expected a list of 2"),
        ({"a": 1, "b": 2}, {"a": 1, "c": 2}, "expected a dict of 2"),
        ({"a": [1.0]}, {"a": [2.0]}, "at answer['a'][0]: expected 1, found 2."),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "at answer[1]: expected 2, found 3."),
        (torch.tensor([True]), torch.tensor([False]), "expected True, found False."),
        ((torch.ones(2), 1.0), (torch.ones(2, 1), 1.0), "answer[0]: expected a tensor of shape"),
        ((torch.ones(2), 1.0), (torch.ones(2), 2.0), "at answer[1]: expected 1, found 2."),
        ((torch.ones(2), 1.0), (torch.ones(2).long(), 1.0), "answer[0]: expected dtype"),
    ],
)
def test_numbers_texts_and_containers(right: Any, wrong: Any, message: str) -> None:
    def constant(x: int) -> Any:
        return right

    exercise = sample(constant, lambda g: (1,))
    exercise.check(constant)
    assert message in refused(lambda x: wrong, exercise)


def test_an_int_is_taken_for_a_float() -> None:
    sample(lambda x: 2.0, lambda g: (1,)).check(lambda x: 2)


def test_an_answer_on_the_autograd_graph_is_compared() -> None:
    def slope(x: Any) -> Any:
        return torch.autograd.grad((x**3).sum(), x, create_graph=True)[0]

    def make(generator: torch.Generator) -> tuple:
        return (torch.rand(3, generator=generator, dtype=torch.float64, requires_grad=True),)

    exercise = sample(slope, make)
    exercise.check(slope)
    exercise.check(lambda x: 3 * x**2)
    assert "difference" in refused(lambda x: 3 * x, exercise)


# What a check leaves behind.


def test_the_random_state_of_torch_is_untouched() -> None:
    def noisy(x: Any) -> Any:
        return x + torch.rand(3)

    exercise = sample(noisy, lambda g: (torch.rand(3, generator=g),))
    before = torch.get_rng_state()
    exercise.check(noisy)  # the same global random numbers go to both
    refused(lambda x: noisy(noisy(x)), exercise)
    refused(no_scale)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_check_says_the_same_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    def unsteady(values: Any, scale: float) -> Any:
        return centred(values, scale) + torch.rand_like(values)

    for learner in (unsteady, one_number_off, no_scale):
        assert refused(learner) == refused(learner)
    SAMPLE.check(centred)
    first = capsys.readouterr().out
    SAMPLE.check(centred)
    assert capsys.readouterr().out == first


def test_a_warning_is_shown_once_beside_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    def learner(values: Any, scale: float) -> Any:
        warnings.warn("look here", stacklevel=1)
        return centred(values, scale)

    SAMPLE.check(learner)
    shown = capsys.readouterr()
    assert shown.out.startswith("! centred: UserWarning: look here\n✓ centred")
    assert shown.out.count("look here") == 1
    assert shown.err == ""


def test_hints_come_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    exercise = Exercise(centred, inputs, MISTAKES, ("Subtract.", "The mean."))
    for _ in range(4):
        exercise.hint()
    last = "There are no more hints. The folded solution stands in the lesson.\n"
    assert capsys.readouterr().out == (
        f"Hint 1 of 2: Subtract.\nHint 2 of 2: The mean.\n{last}{last}"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hints": ()}, "expected one to three hints, found 0"),
        ({"hints": ("a", "b", "c", "d")}, "expected one to three hints, found 4"),
        ({"hints": ("a", " ")}, "a hint is empty or stands there twice"),
        ({"hints": ("a", "a")}, "a hint is empty or stands there twice"),
        ({"mistakes": ()}, "expected at least one Mistake, found none"),
        ({"mistakes": MISTAKES[:1] * 2}, "a says is empty or stands there twice"),
        ({"mistakes": (Mistake("m", lambda x: x),)}, r"the mistake 'm' takes \(x\), expected"),
        ({"tolerance": 0.0}, "expected 0 < tolerance < 1, found 0.0"),
        ({"tolerance": 1.0}, "expected 0 < tolerance < 1, found 1.0"),
    ],
)
def test_an_exercise_that_cannot_be_right_is_refused(change: dict, message: str) -> None:
    settings = {"mistakes": MISTAKES, "hints": ("think",), **change}
    with pytest.raises(ValueError, match=f"^centred: {message}"):
        Exercise(centred, inputs, **settings)


CODE = """\
from tutorkit.checks import Exercise, Mistake

def doubled(x):
    return 2 * x

def tripled(x):
    return 3 * x

exercise = Exercise(doubled, lambda g: (1.5,), (Mistake("that is three times x", tripled),), ("2",))
"""


def test_a_notebook_shows_the_message_alone() -> None:
    cells = [CODE, "exercise.check(tripled)", "exercise.check(lambda x: x[0])"]
    notebook = new_notebook(cells=[new_code_cell(source) for source in cells])
    NotebookClient(
        notebook, kernel_manager_class=kernel_of_this_interpreter(), allow_errors=True
    ).execute()
    nbformat.validate(notebook)
    output = notebook.cells[1].outputs[0]
    assert output.output_type == "error"
    assert output.ename == "CheckFailed"
    assert output.evalue == "✗ doubled: that is three times x"
    assert output.traceback == ["✗ doubled: that is three times x"]
    output = notebook.cells[2].outputs[0]
    assert output.traceback == [output.evalue]
    assert "in the line `exercise.check(lambda x: x[0])`" in output.evalue


# The exercises of the lessons.


def exercises() -> list[Any]:
    found = []
    for module in pkgutil.iter_modules(tutorkit.checks.__path__):
        if module.name.startswith("lesson_"):
            lesson = importlib.import_module(f"tutorkit.checks.{module.name}")
            found += [
                pytest.param(name, value, id=f"{module.name}.{name}")
                for name, value in vars(lesson).items()
                if isinstance(value, Exercise)
            ]
    return found


@pytest.mark.parametrize(("name", "exercise"), exercises())
def test_an_exercise_of_a_lesson(name: str, exercise: Exercise) -> None:
    assert exercise.name == name
    exercise.check(exercise.solution)
    for mistake in exercise.mistakes:
        assert mistake.says in refused(mistake.wrong, exercise)
    assert 1 <= len(exercise.hints) <= 3
    fresh = {str(exercise.inputs(torch.Generator().manual_seed(seed))) for seed in SEEDS}
    assert len(fresh) > 1, "the inputs should differ from seed to seed"
