"""A course's two editions: what students get, and what their teacher keeps.

    python -m tutorkit.editions classroom

writes

    classroom/student/       lessons without outputs, their exercises as stubs, and exercises/
    classroom/instructor/    lessons with outputs and solutions, TEACHING.md; an nbgrader course:
                             source/NN_topic/NN_topic.ipynb with solutions, nbgrader_config.py

Nothing in the repository is changed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from tutorkit.badges import repository
from tutorkit.exercises import generate, stub_source
from tutorkit.notebooks import NOTEBOOKS, lesson_scripts, read_script, write_whole

GRADER_CONFIG = '''\
# The nbgrader course of this folder: run nbgrader's commands from here. TEACHING.md has them.
c = get_config()
c.CourseDirectory.course_id = "tutorkit"
# Some checks run a small model; nbgrader's default of 30 seconds is short for a busy laptop.
c.ExecutePreprocessor.timeout = 300
'''


def student_lesson(script: Path, address: str | None) -> Any:
    """A lesson to work through: no outputs, and a stub in the place of every solution.

    Args:
        script: the lesson's `.py` file.
        address: the repository's public address, which the Colab cell installs from.

    Returns:
        A notebook node; its code cells have not been run.

    Raises:
        ValueError: if a solution does not have its form.
    """
    notebook = read_script(script, address)
    for cell in notebook.cells:
        if "solution" in cell.metadata.get("tags", []):
            cell.source = stub_source(cell.source)
            del cell.metadata["jupyter"]  # nothing to fold any more
    # Without jupytext's entry: saving it in JupyterLab must not write a script beside it.
    del notebook.metadata["jupytext"]
    return notebook


def write_editions(folder: Path, lessons: Path = NOTEBOOKS) -> list[str]:
    """Write both editions of every lesson.

    Args:
        folder: where they go; it must not be there yet, or hold editions written before.
        lessons: the folder of the lessons.

    Returns:
        The names of the lessons.

    Raises:
        FileExistsError: `folder` holds something else.
        FileNotFoundError: a lesson has no executed notebook.
        ValueError: if an exercise does not have its form; nothing is written then.
    """
    import nbformat

    student, instructor = folder / "student", folder / "instructor"
    others = sorted(path.name for path in folder.glob("*") if path not in (student, instructor))
    if others:
        raise FileExistsError(
            f"expected an empty or new folder for the editions, found {', '.join(others)} in "
            f"{folder}: name another one"
        )
    address = repository()
    files: dict[Path, str] = {instructor / "nbgrader_config.py": GRADER_CONFIG}
    scripts = lesson_scripts(folder=lessons)
    for script in scripts:
        stored = script.with_suffix(".ipynb")
        if not stored.exists():
            raise FileNotFoundError(f"{stored.name} is not there yet: run `make notebooks`")
        name = stored.name
        files[instructor / name] = stored.read_text(encoding="utf-8")
        files[student / name] = nbformat.writes(student_lesson(script, address)) + "\n"
        if (stub := generate(script, address)) is not None:
            solved = generate(script, address, solved=True)
            files[student / "exercises" / name] = nbformat.writes(stub) + "\n"
            files[instructor / "source" / script.stem / name] = nbformat.writes(solved) + "\n"
    guide = lessons / "TEACHING.md"
    if guide.exists():
        files[instructor / guide.name] = guide.read_text(encoding="utf-8")
    # Everything is made by now. What nbgrader and the teacher add beside it stays.
    for path in (student, instructor / "source"):
        shutil.rmtree(path, ignore_errors=True)
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    return [script.stem for script in scripts]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tutorkit.editions", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, help="where the editions go")
    folder = parser.parse_args(arguments).folder
    try:
        names = write_editions(folder)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(names)} lessons in {folder}/student and {folder}/instructor: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
