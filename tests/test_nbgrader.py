"""An exercise notebook is the source of an nbgrader assignment as it stands."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from test_exercises import cell_with, solutions, solve, write_sample

from tutorkit import exercises, notebooks


def checks(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.metadata.nbgrader.get("grade")]


class Course:
    """A course folder with one assignment, and nothing of the user's within its reach."""

    def __init__(self, folder: Path, stub: Path, script: Path) -> None:
        self.folder, self.stub, self.script = folder / "course", stub, script
        self.source = nbformat.read(stub, 4)
        source = self.folder / "source" / "ps1" / stub.name
        source.parent.mkdir(parents=True)
        source.write_bytes(stub.read_bytes())
        # The first place where a kernel is looked for; a `python3` of another Python may be there.
        kernels = folder / "jupyter" / "kernels" / "python3"
        write_kernel_spec(str(kernels))
        home = {
            name: str(folder / name.lower())
            for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
        }
        paths = {"JUPYTER_PATH": str(folder / "jupyter"), "PYTHONPATH": str(folder / "modules")}
        # nbgrader calls `alembic` by its name alone.
        paths["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**os.environ, **home, **paths, "IPYTHONDIR": str(folder / "ipython")}

    def nbgrader(self, *arguments: str) -> str:
        """Run nbgrader's command line; returns what it wrote."""
        finished = subprocess.run(
            [sys.executable, "-m", "nbgrader", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout + finished.stderr

    def release(self) -> Any:
        """The notebook that the students get."""
        return nbformat.read(self.folder / "release" / "ps1" / self.stub.name, 4)

    def submit(self, student: str, change: Callable[[Any], None]) -> None:
        """Hand in the released notebook as a student changed it."""
        notebook = self.release()
        change(notebook)
        path = self.folder / "submitted" / student / "ps1" / self.stub.name
        path.parent.mkdir(parents=True)
        path.write_text(nbformat.writes(notebook), encoding="utf-8")

    def graded(self, student: str) -> Any:
        return nbformat.read(self.folder / "autograded" / student / "ps1" / self.stub.name, 4)

    def scores(self) -> dict[str, tuple[float, float]]:
        """Score and maximum of each student, from the gradebook."""
        self.nbgrader("export", "--to=grades.csv")
        with (self.folder / "grades.csv").open(encoding="utf-8") as lines:
            return {
                row["student_id"]: (float(row["score"] or 0), float(row["max_score"]))
                for row in csv.DictReader(lines)
            }


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """The assignment of the first lesson, handed in by four students and graded."""
    folder = tmp_path_factory.mktemp("nbgrader")
    sample = write_sample(folder)
    script = notebooks.NOTEBOOKS / "01_math.py"
    stub = script.parent / "exercises" / "01_math.ipynb"
    if not stub.exists():
        script, stub = sample, exercises.write(sample, None)
    made = Course(folder, stub, script)
    made.nbgrader("generate_assignment", "ps1", "--create")

    def nothing(notebook: Any) -> None:
        pass

    def everything(notebook: Any) -> None:
        solve(notebook, script)
        first = cell_with(notebook, f"{next(iter(solutions(script)))}-solution")
        first.source += "\nimport sys\nprint(sys.executable)"

    def the_first(notebook: Any) -> None:
        solve(notebook, script, {next(iter(solutions(script)))})

    def cheating(notebook: Any) -> None:
        first, *others = checks(notebook)
        first.source = "print('✓ right on 6 fresh inputs')"
        for number, cell in enumerate(others):
            cell.source = "None" if number % 2 else "pass"
        notebook.cells.remove(others[-1])

    for change in (nothing, everything, the_first, cheating):
        made.submit(change.__name__, change)
    made.nbgrader("autograde", "ps1", "--create")
    return made


def test_the_stub_is_taken_as_it_is(course: Course) -> None:
    ours, theirs = course.source, course.release()
    assert [cell.metadata.nbgrader.grade_id for cell in theirs.cells] == [
        cell.metadata.nbgrader.grade_id for cell in ours.cells
    ]
    for mine, released in zip(ours.cells, theirs.cells, strict=True):
        if mine.metadata.nbgrader.solution:
            assert "raise NotImplementedError" in released.source
        else:
            assert released.source == mine.source
            assert released.metadata.editable is False


def test_scores_are_what_the_work_is_worth(course: Course) -> None:
    points = [cell.metadata.nbgrader.points for cell in checks(course.source)]
    first = next(iter(solutions(course.script)))
    part = cell_with(course.source, f"{first}-check").metadata.nbgrader.points
    assert 0 < part < sum(points)
    assert course.scores() == {
        "nothing": (0, sum(points)),
        "everything": (sum(points), sum(points)),
        "the_first": (part, sum(points)),
        "cheating": (0, sum(points)),
    }


def test_the_learner_is_told_in_the_graded_notebook(course: Course) -> None:
    for student, sign in (("nothing", "✗"), ("cheating", "✗"), ("everything", "✓")):
        for cell in checks(course.graded(student)):
            text = "".join(o.evalue if o.output_type == "error" else o.text for o in cell.outputs)
            assert text.startswith(f"{sign} ")


def test_the_kernel_is_this_interpreter(course: Course) -> None:
    name = next(iter(solutions(course.script)))
    outputs = cell_with(course.graded("everything"), f"{name}-solution").outputs
    assert "".join(output.text for output in outputs).strip() == sys.executable
