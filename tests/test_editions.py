"""What students get and what their teacher keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from test_exercises import solutions, write_sample
from test_nbgrader import Course

from tutorkit import editions, exercises, notebooks

LESSONS = notebooks.lesson_scripts()


@pytest.fixture(scope="module")
def classroom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("editions") / "classroom"
    assert editions.write_editions(folder) == [script.stem for script in LESSONS]
    return folder


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("script", LESSONS, ids=[script.stem for script in LESSONS])
def test_students_get_no_output_and_no_solution(classroom: Path, script: Path) -> None:
    lesson = nbformat.read(classroom / "student" / f"{script.stem}.ipynb", 4)
    nbformat.validate(lesson)
    assert "jupytext" not in lesson.metadata
    for cell in lesson.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is None and cell.outputs == []
    stubs = [c.source for c in lesson.cells if "solution" in c.metadata.get("tags", [])]
    solved = solutions(script)
    assert len(stubs) == len(solved)
    assert all("raise NotImplementedError" in stub for stub in stubs)
    written = [
        cell.source
        for path in (classroom / "student").rglob("*.ipynb")
        for cell in nbformat.read(path, 4).cells
    ]
    for name, source in solved.items():
        body = source.split(exercises.BEGIN)[1].split(exercises.END)[0].strip("\n")
        assert not [cell for cell in written if body in cell], name


@pytest.mark.parametrize("script", LESSONS, ids=[script.stem for script in LESSONS])
def test_the_teacher_keeps_outputs_and_solutions(classroom: Path, script: Path) -> None:
    name = f"{script.stem}.ipynb"
    kept = classroom / "instructor" / name
    assert kept.read_bytes() == script.with_suffix(".ipynb").read_bytes()
    source = classroom / "instructor" / "source" / script.stem / name
    assert source.exists() == bool(solutions(script))
    if source.exists():
        cells = [c for c in code_cells(source) if c.metadata.nbgrader.solution]
        assert [cell.source for cell in cells] == list(solutions(script).values())


def test_the_repository_is_left_as_it_is_and_a_second_run_writes_the_same(classroom: Path) -> None:
    before = {path: path.read_bytes() for path in classroom.rglob("*.ipynb")}
    (classroom / "instructor" / "gradebook.db").write_text("the teacher's")
    editions.write_editions(classroom)
    assert {path: path.read_bytes() for path in classroom.rglob("*.ipynb")} == before
    assert (classroom / "instructor" / "gradebook.db").read_text() == "the teacher's"


def test_a_folder_with_other_things_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"found thesis\.tex in .*: name another one"):
        editions.write_editions(tmp_path)
    assert editions.main([str(tmp_path)]) == 1
    assert "thesis.tex" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def test_a_lesson_that_was_never_run_stops_it_before_anything_is_written(tmp_path: Path) -> None:
    script = write_sample(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"{script.stem}\.ipynb is not there yet"):
        editions.write_editions(tmp_path / "out", script.parent)
    assert not (tmp_path / "out").exists()


def test_nbgrader_releases_the_instructors_source_without_solutions(
    classroom: Path, tmp_path: Path
) -> None:
    script = LESSONS[0]
    source = classroom / "instructor" / "source" / script.stem / f"{script.stem}.ipynb"
    course = Course(tmp_path, source, script)
    config = (classroom / "instructor" / "nbgrader_config.py").read_text(encoding="utf-8")
    (course.folder / "nbgrader_config.py").write_text(config, encoding="utf-8")
    course.nbgrader("generate_assignment", "ps1", "--create")
    released = [c for c in course.release().cells if c.metadata.nbgrader.get("solution")]
    assert len(released) == len(solutions(script))
    for cell in released:
        assert "raise NotImplementedError" in cell.source
        assert "SOLUTION" not in cell.source
