"""Generate the notebooks that learners work in from the lessons' exercises.

A lesson's percent script is the only source. Its exercises are cells with these tags:

    exercise-setup   code: the imports that the exercises need
    exercise         markdown: a heading, **Goal**, **Difficulty** (●○○ to ●●●), **Minutes**,
                     **Signature** with shapes
    solution         code: one function with a docstring, its body between the two markers
    check            code: such as `lesson_01.softmax.check(softmax)`

The last three follow each other without a cell between them, once for each exercise. From them
comes `notebooks/exercises/NN_topic.ipynb`, where the body is missing; it is also the source of an
nbgrader assignment as it stands.

    python -m tutorkit.exercises            every lesson
    python -m tutorkit.exercises 01         the lesson whose name begins with 01
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tutorkit.badges import colab_cell, repository
from tutorkit.notebooks import NOTEBOOKS, lesson_scripts, read_script, set_ids, write_whole

BEGIN, END = "    ### BEGIN SOLUTION", "    ### END SOLUTION"
NOT_WRITTEN = '    raise NotImplementedError("not written yet")'
TAGS = ("exercise-setup", "exercise", "solution", "check")
# What each exercise's markdown has to say, how it is recognised, and an example of it.
LINES = {
    "Goal": r"\*\*Goal:?\*\*:?[ \t]*(?!\*\*)[^\s:]",
    "Difficulty": r"\*\*Difficulty:?\*\*:?\s*(●●●|●●○|●○○)",
    "Minutes": r"\*\*Minutes:?\*\*:?\s*([1-9]\d*)\b",
    "Signature": r"\*\*Signature:?\*\*:?\s*`(\w+)\(",
}
EXAMPLES = {
    "Goal": "**Goal**: see where the gradient of a loss comes from.",
    "Difficulty": "**Difficulty**: ●●○",
    "Minutes": "**Minutes**: 10",
    "Signature": "**Signature**: `name(logits, labels)`: (B, C), (B,) → (B, C)",
}
HEAD = """\
# Exercises: {title}

These are the exercises of [the lesson](../{lesson}.ipynb), about {minutes} minutes in all.

1. Run the cells from the top. In each function, replace the line `raise NotImplementedError…`
   with your code; the first line of the function stays as it is.
2. Run the cell with `.check(…)`. It says what is wrong, or that your function is right.
3. Stuck? The cell with `.hint()` gives one hint each time you run it.
4. The folded solution stands in [the lesson](../{lesson}.ipynb), below the same heading. Look at it
   after your own attempt: reading a solution feels like knowing it."""


class Block(NamedTuple):
    """One exercise, as its three cells say it."""

    name: str  # of the function
    text: str  # the markdown
    solution: str
    check: str
    points: int  # 1 to 3, by difficulty
    minutes: int


def stub_source(source: str) -> str:
    """A solution cell without its solution.

    Args:
        source: one function with a docstring, the rest of its body between the markers.

    Returns:
        The same function, which now says that it is not written yet. The markers stay.

    Raises:
        ValueError: if it is anything else, so that a solution is never left standing.
    """
    lines = source.rstrip().split("\n")
    marks = [n for n, line in enumerate(lines) if line.rstrip() in (BEGIN, END)]
    everywhere = [source.count(mark.strip("# ")) for mark in (BEGIN, END)]
    if [lines[n].rstrip() for n in marks] != [BEGIN, END] or everywhere != [1, 1]:
        raise ValueError(
            f"expected the lines `{BEGIN}` and `{END}` once each, in this order and indented by "
            "four spaces, around the body"
        )
    begin, end = marks
    if not "".join(lines[begin + 1 : end]).strip():
        raise ValueError("expected the solution between the markers, found nothing")
    stub = "\n".join([*lines[: begin + 1], NOT_WRITTEN, *lines[end:]])
    try:
        ast.parse(source)
        body = ast.parse(stub).body
    except SyntaxError as error:
        raise ValueError(f"expected Python, found a syntax error in line {error.lineno}") from None
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        raise ValueError("expected one function and nothing beside it; imports go to the setup")
    if not ast.get_docstring(body[0]):
        raise ValueError("expected a docstring that gives the shapes")
    if len(body[0].body) != 2:
        raise ValueError("expected nothing but the docstring outside the markers")
    return stub


def tags_of(cell: Any) -> list[str]:
    """Those of a cell's tags that belong to exercises."""
    return [tag for tag in cell.metadata.get("tags", []) if tag in TAGS]


def read_block(cells: list[Any]) -> Block:
    """The exercise of a cell tagged `exercise` and the two that follow it.

    Raises:
        ValueError: if a cell is missing or does not say what it should.
    """
    found = [(cell.cell_type, *tags_of(cell)) for cell in cells]
    if found != [("markdown", "exercise"), ("code", "solution"), ("code", "check")]:
        raise ValueError(
            "expected a markdown cell tagged `exercise`, a code cell tagged `solution` and a code "
            f"cell tagged `check`, with no cell between them; found {found}"
        )
    text, solution, check = (cell.source for cell in cells)
    name = ast.parse(stub_source(solution)).body[0].name
    if not re.match(r"#+ \S", text):
        raise ValueError(f"expected the markdown to begin with a heading, found {text[:40]!r}")
    said = {line: re.search(pattern, text) for line, pattern in LINES.items()}
    for line, match in said.items():
        if not match:
            raise ValueError(f"expected in the markdown a line like `{EXAMPLES[line]}`")
    if said["Signature"][1] != name:
        raise ValueError(
            f"expected the **Signature** of the solution, {name}, found {said['Signature'][1]}"
        )
    if not re.fullmatch(rf"[\w.]+\.{name}\.check\({name}\)", check.strip()):
        raise ValueError(
            f"expected the check to be `lesson_NN.{name}.check({name})`, found {check.strip()!r}"
        )
    points, minutes = said["Difficulty"][1].count("●"), int(said["Minutes"][1])
    return Block(name, text, solution, check.strip(), points, minutes)


def read_blocks(cells: list[Any], lesson: str) -> list[Any]:
    """The setup cells and exercises of a lesson, in order.

    Args:
        cells: all cells of the lesson.
        lesson: its name, for messages.

    Returns:
        A cell for each cell tagged `exercise-setup`, a `Block` for each exercise.

    Raises:
        ValueError: if the section does not have the form that this module's docstring gives.
    """
    found: list[Any] = []
    position = 0
    while position < len(cells):
        cell, tags = cells[position], tags_of(cells[position])
        names = [block.name for block in found if isinstance(block, Block)]
        try:
            if tags == ["exercise"]:
                found.append(read_block(cells[position : position + 3]))
                position += 2
                if found[-1].name in names:
                    raise ValueError(f"expected each name once, found {found[-1].name} again")
            elif tags == ["exercise-setup"] and cell.cell_type == "code":
                found.append(cell)
            elif tags:
                raise ValueError(
                    f"found a {cell.cell_type} cell tagged {', '.join(tags)} outside an exercise; "
                    "expected it after a markdown cell tagged `exercise`, or setup code"
                )
            if found and isinstance(found[0], Block):
                raise ValueError(
                    "expected a code cell tagged `exercise-setup` before the first exercise"
                )
        except ValueError as error:
            begins = cell.source.split("\n")[0]
            raise ValueError(
                f"{lesson}, cell {position} ({begins!r}): {error}. "
                f"Edit notebooks/{lesson}.py and run `make notebooks`."
            ) from None
        position += 1
    return found


def generate(script: Path, address: str | None, solved: bool = False) -> Any | None:
    """The notebook that learners work in.

    Args:
        script: the lesson's `.py` file.
        address: the repository's public address, which the Colab cell installs from.
        solved: leave the solutions between their markers, as an instructor's copy has them.

    Returns:
        A notebook node without outputs; None for a lesson without exercises.

    Raises:
        ValueError: if an exercise does not have its form.
    """
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    lesson = read_script(script, address)
    found = read_blocks(lesson.cells, script.stem)
    blocks = [each for each in found if isinstance(each, Block)]
    if not blocks:
        return None
    title = re.search(r"(?m)^# (.+)$", lesson.cells[0].source)
    cells = []

    def add(grade_id: str, source: str, markdown: bool = False, **grading: Any) -> None:
        """Append a cell that nbgrader puts back as it is, unless `grading` says otherwise."""
        cell = (new_markdown_cell if markdown else new_code_cell)(source)
        cell.metadata["nbgrader"] = {
            "cell_type": cell.cell_type,
            "grade": False,
            "grade_id": grade_id,
            "locked": True,
            "schema_version": 3,
            "solution": False,
            "task": False,
            **grading,
        }
        cells.append(cell)

    head = HEAD.format(
        title=title[1] if title else script.stem,
        lesson=script.stem,
        minutes=sum(block.minutes for block in blocks),
    )
    add("title", head, markdown=True)
    add("colab", colab_cell(address))
    cells[-1].metadata["tags"] = ["colab", "nbval-ignore-output"]
    for number, each in enumerate(found, 1):
        if not isinstance(each, Block):
            add(f"setup-{number}", each.source)
            continue
        add(f"{each.name}-text", each.text, markdown=True)
        body = each.solution if solved else stub_source(each.solution)
        add(f"{each.name}-solution", body, locked=False, solution=True)
        add(f"{each.name}-check", each.check, grade=True, points=each.points)
        add(f"{each.name}-hint", each.check.replace(f".check({each.name})", ".hint()"))
    set_ids(cells)
    # Without jupytext's entry: saving it in JupyterLab must not write a script beside it.
    metadata = {"kernelspec": lesson.metadata.kernelspec, "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=metadata)


def write(script: Path, address: str | None) -> Path | None:
    """Generate a lesson's exercise notebook and write it to `exercises/` beside the lesson.

    Args:
        script: the lesson's `.py` file.
        address: the repository's public address.

    Returns:
        The path of the notebook, or None for a lesson without exercises.
    """
    import nbformat

    notebook = generate(script, address)
    if notebook is None:
        return None
    path = script.parent / "exercises" / f"{script.stem}.ipynb"
    path.parent.mkdir(exist_ok=True)
    write_whole(path, nbformat.writes(notebook) + "\n")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tutorkit.exercises", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help="beginnings of lesson names; none means all")
    chosen = parser.parse_args(arguments)
    try:
        for script in lesson_scripts(chosen.names, NOTEBOOKS):
            if path := write(script, repository()):
                print(f"{script.stem}: wrote {path.relative_to(NOTEBOOKS)}")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
