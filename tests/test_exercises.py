"""The notebooks that learners work in: generated from the lessons, without the solutions."""

from __future__ import annotations

import ast
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from tutorkit import exercises, notebooks
from tutorkit.badges import colab_cell, repository

CHECKS = """\
import torch
from tutorkit.checks import Exercise, Mistake

def inputs(generator):
    return (torch.randn(3, 2, generator=generator, dtype=torch.float64),)

def doubled(values):
    return 2 * values

def row_means(values):
    return values.mean(-1)

doubled = Exercise(
    doubled, inputs, (Mistake("that is the square", lambda values: values**2),), ("Add it.",)
)
row_means = Exercise(
    row_means, inputs, (Mistake("those are the columns", lambda values: values.mean(0)),), ("dim",)
)
"""
LESSON = '''\
# %% [markdown]
# # A lesson on means
#
# Some text.

# %%
print("in the lesson only")

# %% [markdown]
# ## Exercises

# %% tags=["exercise-setup"]
import sample_checks
import torch

# %% [markdown] tags=["exercise"]
# ### Exercise 1: twice as much
#
# **Goal**: double $x$.
#
# - **Difficulty**: ●○○
# - **Minutes**: 5
# - **Signature**: `doubled(values)`: (B, C) → (B, C)

# %% tags=["solution"]
def doubled(values: torch.Tensor) -> torch.Tensor:
    """Twice the values.

    Args:
        values: (B, C)
    """
    ### BEGIN SOLUTION
    once = values  # the solution's own words

    return once + once
    ### END SOLUTION


# %% tags=["check"]
sample_checks.doubled.check(doubled)

# %% [markdown]
# What you should see: it is twice as much.

# %% [markdown] tags=["exercise"]
# ### Exercise 2: means
#
# **Goal**: average each row.<br>
# **Difficulty**: ●●●<br>
# **Minutes**: 15<br>
# **Signature**: `row_means(values)`: (B, C) → (B,)

# %% tags=["solution"]
def row_means(values):
    """The means of the rows, (B, C) -> (B,)."""
    ### BEGIN SOLUTION
    return values.sum(dim=1) / values.shape[1]
    ### END SOLUTION


# %% tags=["check"]
sample_checks.row_means.check(row_means)
'''


def write_sample(folder: Path) -> Path:
    """A lesson with two exercises, and their checks in a module that its cells import."""
    (folder / "modules").mkdir()
    (folder / "modules" / "sample_checks.py").write_text(CHECKS, encoding="utf-8")
    (folder / "notebooks").mkdir()
    path = folder / "notebooks" / "90_sample.py"
    path.write_text(LESSON, encoding="utf-8")
    return path


@pytest.fixture
def lesson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = write_sample(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    return path


def solutions(script: Path) -> dict[str, str]:
    """The solution cells of a lesson by the name of their function."""
    cells = jupytext.read(script).cells
    found = [cell.source for cell in cells if "solution" in cell.metadata.get("tags", [])]
    return {ast.parse(source).body[0].name: source for source in found}


def solve(notebook: Any, script: Path, names: set[str] | None = None) -> None:
    """Put the lesson's solutions, or some of them, in the place of the stubs."""
    for name, source in solutions(script).items():
        if names is None or name in names:
            cell_with(notebook, f"{name}-solution").source = source


def cell_with(notebook: Any, grade_id: str) -> Any:
    found = [c for c in notebook.cells if c.metadata.nbgrader.grade_id == grade_id]
    assert len(found) == 1
    return found[0]


def run(notebook: Any, folder: Path, until: str | None = None) -> None:
    """Execute the cells in a real kernel, to the end or up to the first with `until` in it."""
    if until:
        last = next(n for n, cell in enumerate(notebook.cells) if until in cell.source)
        notebook.cells = notebook.cells[: last + 1]
    NotebookClient(
        notebook,
        allow_errors=True,
        coalesce_streams=True,
        kernel_manager_class=notebooks.kernel_of_this_interpreter(),
        resources={"metadata": {"path": str(folder)}},
    ).execute()


def errors(notebook: Any) -> list[str]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output.evalue for output in outputs if output.output_type == "error"]


# The generated notebook.


def test_the_notebook_has_the_cells_of_the_exercises(lesson: Path) -> None:
    notebook = exercises.generate(lesson, None)
    nbformat.validate(notebook)
    assert [(c.metadata.nbgrader.grade_id, c.cell_type) for c in notebook.cells] == [
        ("title", "markdown"),
        ("colab", "code"),
        ("setup-1", "code"),
        ("doubled-text", "markdown"),
        ("doubled-solution", "code"),
        ("doubled-check", "code"),
        ("doubled-hint", "code"),
        ("row_means-text", "markdown"),
        ("row_means-solution", "code"),
        ("row_means-check", "code"),
        ("row_means-hint", "code"),
    ]
    title = notebook.cells[0].source
    assert title.startswith("# Exercises: A lesson on means\n")
    assert "[the lesson](../90_sample.ipynb), about 20 minutes in all." in title
    assert notebook.cells[1].source == colab_cell(None)
    assert notebook.cells[1].metadata.tags == ["colab", "nbval-ignore-output"]
    assert notebook.cells[2].source == "import sample_checks\nimport torch"
    assert "**Difficulty**: ●○○" in cell_with(notebook, "doubled-text").source
    assert cell_with(notebook, "doubled-check").source == "sample_checks.doubled.check(doubled)"
    assert cell_with(notebook, "doubled-hint").source == "sample_checks.doubled.hint()"
    assert "jupytext" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"


def test_the_body_is_replaced_between_the_markers(lesson: Path) -> None:
    stub = exercises.stub_source(solutions(lesson)["doubled"])
    assert stub == (
        "def doubled(values: torch.Tensor) -> torch.Tensor:\n"
        '    """Twice the values.\n\n    Args:\n        values: (B, C)\n    """\n'
        "    ### BEGIN SOLUTION\n"
        '    raise NotImplementedError("not written yet")\n'
        "    ### END SOLUTION"
    )
    notebook = exercises.generate(lesson, None)
    assert cell_with(notebook, "doubled-solution").source == stub


def test_the_cells_carry_what_nbgrader_needs(lesson: Path) -> None:
    notebook = exercises.generate(lesson, None)
    for cell in notebook.cells:
        data = dict(cell.metadata.nbgrader)
        role = data.pop("grade_id").rpartition("-")[2]
        assert data.pop("cell_type") == cell.cell_type
        assert (data.pop("schema_version"), data.pop("task")) == (3, False)
        expected = {"grade": role == "check", "solution": role == "solution"}
        expected["locked"] = role != "solution"
        points = data.pop("points", None)
        assert data == expected
        assert (points is not None) == (role == "check")
    assert cell_with(notebook, "doubled-check").metadata.nbgrader.points == 1
    assert cell_with(notebook, "row_means-check").metadata.nbgrader.points == 3


def test_writing_twice_gives_the_same_bytes(lesson: Path) -> None:
    path = exercises.write(lesson, None)
    assert path == lesson.parent / "exercises" / "90_sample.ipynb"
    first = path.read_bytes()
    assert len({cell["id"] for cell in json.loads(first)["cells"]}) == 11
    path.unlink()
    exercises.write(lesson, None)
    assert path.read_bytes() == first
    # The script in the form that the build writes gives the same exercises.
    lesson.write_text(jupytext.writes(notebooks.read_script(lesson, None), fmt="py:percent"))
    exercises.write(lesson, None)
    assert path.read_bytes() == first


def test_a_lesson_without_exercises_gives_nothing(lesson: Path) -> None:
    lesson.write_text(LESSON.partition("# %% [markdown]\n# ## Exercises")[0])
    assert exercises.write(lesson, None) is None
    assert not (lesson.parent / "exercises").exists()


def test_the_command_writes_the_named_lessons(
    lesson: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exercises, "NOTEBOOKS", lesson.parent)
    (lesson.parent / "91_other.py").write_text(LESSON.replace("### Exercise", "#### Exercise"))
    assert exercises.main(["90"]) == 0
    assert capsys.readouterr().out == "90_sample: wrote exercises/90_sample.ipynb\n"
    assert exercises.main([]) == 0
    assert "91_other: wrote exercises/91_other.ipynb" in capsys.readouterr().out
    assert len(list((lesson.parent / "exercises").iterdir())) == 2
    assert exercises.main(["70"]) == 1
    assert "no lesson's name begins with '70'" in capsys.readouterr().err


def test_badges_reach_the_exercises(lesson: Path) -> None:
    root = lesson.parents[1]
    lesson.with_suffix(".ipynb").write_text(
        nbformat.writes(notebooks.read_script(lesson, None)), encoding="utf-8"
    )
    path = exercises.write(lesson, None)
    (root / "README.md").write_text("<!-- badges:start -->\n<!-- badges:end -->\n")
    (root / "pyproject.toml").write_text(
        '[project]\nname = "x"\n[project.urls]\nRepository = "https://github.com/some/kit"\n'
    )
    notebooks.write_badges(root)
    changed = path.read_bytes()
    assert b"git+https://github.com/some/kit" in changed
    exercises.write(lesson, "https://github.com/some/kit")
    assert path.read_bytes() == changed


# The lesson that it comes from.


def test_solutions_are_folded_in_both_files_of_the_lesson(
    lesson: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebooks.build(lesson)
    for path in (lesson, lesson.with_suffix(".ipynb")):
        cells = jupytext.read(path).cells
        folded = [cell.metadata.get("jupyter") for cell in cells if "jupyter" in cell.metadata]
        assert folded == [{"source_hidden": True}] * 2
    assert lesson.read_text().count('# %% tags=["solution"] jupyter={"source_hidden": true}\n') == 2
    stored = nbformat.read(lesson.with_suffix(".ipynb"), 4)
    shown = [
        cell.outputs[0].text for cell in stored.cells if cell.source.endswith("check(doubled)")
    ]
    assert shown == ["✓ doubled: right on 6 fresh inputs\n"]
    before = lesson.read_bytes(), lesson.with_suffix(".ipynb").read_bytes()
    notebooks.build(lesson)
    assert (lesson.read_bytes(), lesson.with_suffix(".ipynb").read_bytes()) == before


# What a learner meets.


def test_the_stub_runs_until_the_first_check(lesson: Path) -> None:
    path = exercises.write(lesson, None)
    notebook = nbformat.read(path, 4)
    run(notebook, path.parent, until="doubled.check(")
    assert [bool(cell.get("outputs")) for cell in notebook.cells] == [False] * 5 + [True]
    (message,) = errors(notebook)
    assert message.startswith("✗ doubled: not written yet: ")
    assert notebook.cells[-1].outputs[0].traceback == [message]


def test_with_the_solutions_in_it_everything_is_right(lesson: Path) -> None:
    path = exercises.write(lesson, None)
    notebook = nbformat.read(path, 4)
    solve(notebook, lesson)
    run(notebook, path.parent)
    assert errors(notebook) == []
    assert cell_with(notebook, "row_means-check").outputs[0].text.startswith("✓ row_means")
    assert cell_with(notebook, "row_means-hint").outputs[0].text == "Hint 1 of 1: dim\n"


# What is refused.

BEGIN, END = "    ### BEGIN SOLUTION\n    once", "once\n    ### END SOLUTION"
RETURN = "    once = values  # the solution's own words\n\n    return once + once\n"
FIRST = '# %% [markdown] tags=["exercise"]\n# ### Exercise 1'
CHECK = '# %% tags=["check"]\nsample_checks.doubled'
CALL = ".doubled.check(doubled)"
SETUP = 'tags=["exercise-setup"]'
MALFORMED = [
    (BEGIN, "    once", "expected the lines `    ### BEGIN SOLUTION` and"),
    (BEGIN, "    # BEGIN SOLUTION\n    once", "expected the lines `    ### BEGIN"),
    (END, "once", "expected the lines `    ### BEGIN"),
    (RETURN, f"{RETURN}    ### BEGIN SOLUTION\n", "expected the lines `    ### BEGIN"),
    (RETURN, f"{RETURN}        # END SOLUTION\n", "expected the lines `    ### BEGIN"),
    (RETURN, "", "expected the solution between the markers, found nothing"),
    (END, f"{END}\n    return 2", "nothing but the docstring outside the markers"),
    (BEGIN, f"    one = 1\n{BEGIN}", "nothing but the docstring outside the markers"),
    ("def doubled(values: ", "import math\ndef doubled(values: ", "expected one function and"),
    ('"""The means of the rows, (B, C) -> (B,)."""', "", "expected a docstring that gives"),
    ("values.shape[1]", "values.shape[1", "expected Python, found a syntax error in line 4"),
    ("once + once\n", "once +\n", "expected Python, found a syntax error in line 10"),
    (CHECK, CHECK.replace('"check"', ""), r"found \[.*'solution'\), \('code',\)\]"),
    (CHECK, f"# %% [markdown]\n# Between\n\n{CHECK}", "with no cell between them"),
    ('# %% tags=["check"]\nsample_checks.row_means.check(row_means)\n', "", r"'solution'\)\]"),
    (CALL, ".row_means.check(doubled)", r"check to be `lesson_NN\.doubled\.check\(doubled\)`"),
    (CALL, ".doubled.check(row_means)", "expected the check to be .*, found 'sample_checks"),
    (CALL, f"{CALL}  # x", "expected the check to be"),
    ("def doubled", "def double", r"expected the \*\*Signature\*\* of the solution, double"),
    ("**Goal**: double $x$.", "Double $x$.", r"a line like `\*\*Goal\*\*: see"),
    ("**Goal**: double $x$.", "**Goal**:", r"a line like `\*\*Goal\*\*: see"),
    ("**Difficulty**: ●○○", "**Difficulty**: easy", r"a line like `\*\*Difficulty\*\*: ●●○`"),
    ("**Difficulty**: ●○○", "**Difficulty**: ○○○", r"a line like `\*\*Difficulty\*\*: ●●○`"),
    ("**Minutes**: 5", "**Minutes**: few", r"a line like `\*\*Minutes\*\*: 10`"),
    ("- **Signature**: `doubled", "- `doubled", r"a line like `\*\*Signature\*\*: `name\("),
    ("# ### Exercise 1: twice", "# Exercise 1", "to begin with a heading, found 'Exercise 1"),
    (SETUP, "", "tagged `exercise-setup` before the first exercise"),
    (SETUP, 'tags=["exercise-setup", "check"]', "tagged exercise-setup, check outside an exercise"),
    (FIRST, "# %% [markdown]\n# ### Exercise 1", "a code cell tagged solution outside an exercise"),
]


@pytest.mark.parametrize(("old", "new", "message"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_exercise_is_refused(lesson: Path, old: str, new: str, message: str) -> None:
    assert LESSON.count(old) == 1, "the test should change one place"
    lesson.write_text(LESSON.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        exercises.write(lesson, None)
    assert str(caught.value).startswith("90_sample, cell ")
    assert str(caught.value).endswith("Edit notebooks/90_sample.py and run `make notebooks`.")
    assert not (lesson.parent / "exercises").exists()


def test_a_name_is_given_once(lesson: Path) -> None:
    start = LESSON.index('# %% [markdown] tags=["exercise"]\n# ### Exercise 1')
    again = LESSON[start : LESSON.index("# %% [markdown]\n# What you should see")]
    lesson.write_text(f"{LESSON}\n{again}", encoding="utf-8")
    with pytest.raises(
        ValueError, match="cell 14 .*: expected each name once, found doubled again"
    ):
        exercises.generate(lesson, None)


def test_the_command_says_what_is_malformed(
    lesson: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exercises, "NOTEBOOKS", lesson.parent)
    lesson.write_text(LESSON.replace("**Minutes**: 5", ""), encoding="utf-8")
    assert exercises.main([]) == 1
    assert capsys.readouterr().err.startswith("90_sample, cell 5 ('### Exercise 1: twice as much')")


# The lessons of the project.

GENERATED = {
    script.stem: notebook
    for script in notebooks.lesson_scripts()
    if (notebook := exercises.generate(script, repository()))
}
each_lesson = pytest.mark.parametrize("name", sorted(GENERATED))


def test_the_stored_exercises_are_the_generated_ones() -> None:
    folder = notebooks.NOTEBOOKS / "exercises"
    stored = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.ipynb")}
    expected = {name: nbformat.writes(each) + "\n" for name, each in GENERATED.items()}
    assert sorted(stored) == sorted(expected), "a notebook of no lesson should be deleted"
    for name, text in expected.items():
        assert stored[name] == text, f"run `python -m tutorkit.exercises {name}`"


@each_lesson
def test_no_solution_is_in_the_exercises_of_a_lesson(name: str) -> None:
    text = "\n".join(cell.source for cell in GENERATED[name].cells)
    for source in solutions(notebooks.NOTEBOOKS / f"{name}.py").values():
        body = source.partition("### BEGIN SOLUTION")[2].partition("### END SOLUTION")[0]
        assert body.strip() not in text


@each_lesson
def test_the_exercises_of_a_lesson_are_solved_by_its_solutions(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process, which has PyTorch loaded already. The untouched notebook: every check says
    # so; with the solutions in it: every check passes.
    monkeypatch.chdir(notebooks.NOTEBOOKS)
    untouched, solved = (nbformat.from_dict(GENERATED[name]) for _ in range(2))
    solved = nbformat.reads(nbformat.writes(solved), as_version=4)
    solve(solved, notebooks.NOTEBOOKS / f"{name}.py")
    for notebook, passes in ((untouched, False), (solved, True)):
        values: dict[str, Any] = {}
        for cell in notebook.cells:
            if cell.cell_type != "code" or "colab" in cell.metadata.get("tags", []):
                continue
            shown = io.StringIO()
            expected = contextlib.nullcontext()
            if not passes and cell.metadata.nbgrader.grade:
                expected = pytest.raises(AssertionError, match="✗ .*: not written yet")
            with expected, contextlib.redirect_stdout(shown):
                exec(cell.source, values)
            if passes and cell.metadata.nbgrader.grade:
                assert shown.getvalue().startswith("✓ ")


def test_no_solution_of_the_sample_is_in_its_exercises(lesson: Path) -> None:
    text = exercises.write(lesson, None).read_text(encoding="utf-8")
    for words in (
        "the solution's own words",
        "once",
        "values.sum",
        "shape[1]",
        "in the lesson only",
    ):
        assert words not in text
        assert words in LESSON
