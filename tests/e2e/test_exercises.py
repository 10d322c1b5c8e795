"""An exercise as a learner meets it: the stub, a wrong answer, a hint, the right answer."""

from __future__ import annotations

from collections.abc import Callable

from pages import expect

STUB = "def risk_from_batches("
CHECK = "risk_from_batches.check("
HINT = "risk_from_batches.hint("


def test_an_exercise_from_the_stub_to_the_right_answer(open_lesson: Callable) -> None:
    lesson = open_lesson("exercises/01_math.ipynb")
    lesson.run("from tutorkit.checks import lesson_01")
    lesson.run(STUB)
    lesson.run(CHECK)
    expect(lesson.output(CHECK)).to_have_text(
        "✗ risk_from_batches: not written yet: put your code in the place of "
        "`raise NotImplementedError`."
    )

    stub = lesson.cells()[lesson.find(STUB)]["source"]
    placeholder = 'raise NotImplementedError("not written yet")'
    assert placeholder in stub
    lesson.write(STUB, stub.replace(placeholder, "return batch_means.mean()"))
    lesson.run(STUB)
    lesson.run(CHECK)
    expect(lesson.output(CHECK)).to_contain_text("this is the mean of the batches' means")
    expect(lesson.output(CHECK)).not_to_contain_text("Traceback")

    lesson.run(HINT)
    expect(lesson.output(HINT)).to_contain_text("Hint 1 of 3: A batch's mean times its size")

    right = "return (batch_means * batch_sizes).sum() / batch_sizes.sum()"
    lesson.write(STUB, stub.replace(placeholder, right))
    lesson.run(STUB)
    lesson.run(CHECK)
    expect(lesson.output(CHECK)).to_have_text("✓ risk_from_batches: right on 6 fresh inputs")
    assert lesson.errors() == []
    assert lesson.messages == []
