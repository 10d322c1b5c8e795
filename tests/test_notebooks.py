"""The stored lessons, and the command that builds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tutorkit import notebooks
from tutorkit.badges import badge_lines, colab_cell, repository
from tutorkit.tables import between_marks

ROOT = notebooks.ROOT
STORED = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_lesson = pytest.mark.parametrize("path", STORED, ids=[path.stem for path in STORED])


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def test_there_are_lessons_and_each_is_a_pair() -> None:
    assert STORED
    assert [path.stem for path in STORED] == [s.stem for s in notebooks.lesson_scripts()]


@each_lesson
def test_the_script_and_the_notebook_have_the_same_cells(path: Path) -> None:
    script = jupytext.read(path.with_suffix(".py"))
    stored = nbformat.read(path, 4)
    nbformat.validate(stored)
    assert [(c.cell_type, c.source, tags(c)) for c in stored.cells] == [
        (c.cell_type, c.source, tags(c)) for c in script.cells
    ], f"run `make notebooks` after editing {path.stem}.py"


@each_lesson
def test_the_notebook_is_scrubbed(path: Path) -> None:
    stored = nbformat.read(path, 4)
    assert "widgets" not in stored.metadata
    assert "version" not in stored.metadata.language_info
    assert stored.metadata.kernelspec.name == "python3"
    for cell in stored.cells:
        folded = {"source_hidden": True} if "solution" in tags(cell) else None
        assert cell.metadata.get("jupyter") == folded, cell.metadata
        assert set(cell.metadata) <= {"tags", "jupyter"}, cell.metadata
        assert tags(cell) <= notebooks.TAGS
    assert notebooks.machine_paths(stored) == []


@each_lesson
def test_every_code_cell_was_run_in_order(path: Path) -> None:
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    for cell in code_cells(path):
        if "raises-exception" not in tags(cell):
            assert not [o for o in cell.outputs if o.output_type == "error"], cell.source


@each_lesson
def test_strict_nbval_compares_at_least_half_of_the_cells(path: Path) -> None:
    cells = [cell for cell in code_cells(path) if "colab" not in tags(cell)]
    compared = [c for c in cells if not tags(c) & {"nbval-ignore-output", "nbval-skip"}]
    assert len(compared) >= len(cells) / 2
    assert [cell for cell in compared if cell.outputs], "no compared cell shows anything"


@each_lesson
def test_the_colab_cell_is_the_generated_one(path: Path) -> None:
    first = code_cells(path)[0]
    assert tags(first) == {"colab", "nbval-ignore-output"}
    assert first.source == colab_cell(repository())
    assert len([line for line in first.source.splitlines() if line]) <= 12


def test_the_readme_shows_the_current_badges() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = badge_lines(repository(), [path.stem for path in STORED])
    assert between_marks(text, "badges", lines) == text, "run `make badges`"


SCRIPT = """\
# %% [markdown]
# # A lesson

# %% tags=["parameters"]
rows = 3  # how many

# %%
import os
print(rows, os.environ.get("TUTORKIT_DATA"), os.environ["HF_HUB_OFFLINE"])

# %%
rows
"""


@pytest.fixture
def lesson(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    path = folder / "01_lesson.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


def test_a_lesson_is_built_as_a_reader_without_mirror_or_hub_sees_it(
    lesson: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTORKIT_DATA", "somewhere")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    notebooks.build(lesson)
    built = nbformat.read(lesson.with_suffix(".ipynb"), 4)
    assert [c.cell_type for c in built.cells] == ["markdown", "code", "code", "code", "code"]
    assert built.cells[3].outputs[0].text == "3 None 1\n"
    assert [c.execution_count for c in built.cells[1:]] == [1, 2, 3, 4]
    test_the_script_and_the_notebook_have_the_same_cells(lesson.with_suffix(".ipynb"))
    test_the_notebook_is_scrubbed(lesson.with_suffix(".ipynb"))
    test_the_colab_cell_is_the_generated_one(lesson.with_suffix(".ipynb"))
    before = lesson.read_text(), lesson.with_suffix(".ipynb").read_text()
    notebooks.build(lesson)
    assert (lesson.read_text(), lesson.with_suffix(".ipynb").read_text()) == before
    assert sorted(path.name for path in lesson.parent.iterdir()) == [
        "01_lesson.ipynb",
        "01_lesson.py",
    ]


def test_a_line_printed_in_pieces_is_one_output(lesson: Path) -> None:
    pieces = 'import time\nprint("a", end="", flush=True)\ntime.sleep(0.5)\nprint("b")\n'
    lesson.write_text(f"{SCRIPT}\n# %%\n{pieces}", encoding="utf-8")
    notebooks.build(lesson)
    (output,) = nbformat.read(lesson.with_suffix(".ipynb"), 4).cells[-1].outputs
    assert output.text == "ab\n"


def test_a_failing_lesson_leaves_the_stored_one(lesson: Path) -> None:
    lesson.with_suffix(".ipynb").write_text("stored", encoding="utf-8")
    lesson.write_text(SCRIPT + "\n# %%\n1 / 0\n", encoding="utf-8")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        notebooks.build(lesson)
    assert lesson.with_suffix(".ipynb").read_text(encoding="utf-8") == "stored"


def test_an_output_with_a_folder_of_this_machine_is_refused(
    lesson: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebooks, "ROOT", lesson.parents[1])
    lesson.write_text(SCRIPT + "\n# %%\nos.getcwd()\n", encoding="utf-8")
    with pytest.raises(ValueError, match="01_lesson shows folders of this machine.*\ncell 5: "):
        notebooks.build(lesson)


def test_paths_are_looked_for_outside_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebooks, "ROOT", Path("/a/repo"))
    monkeypatch.setattr(Path, "home", lambda: Path("/h/me"))

    def showing(**data: str) -> Any:
        named = {kind.replace("_", "/"): text for kind, text in data.items()}
        return new_notebook(
            cells=[new_code_cell("x", outputs=[new_output("display_data", data=named)])]
        )

    assert notebooks.machine_paths(showing(image_png="/a/repo/h/me")) == []
    assert len(notebooks.machine_paths(showing(text_html="in /h/me/x"))) == 1
    stream = new_notebook(
        cells=[new_code_cell("x", outputs=[new_output("stream", text="/a/repo/x\n")])]
    )
    assert len(notebooks.machine_paths(stream)) == 1


def test_scrubbing_keeps_outputs_and_counts() -> None:
    cell = new_code_cell("x", execution_count=7, outputs=[new_output("stream", text="1\n")])
    cell.metadata.update(execution={"t": "now"}, tags=["parameters"])
    language = {"name": "python", "version": "3.11"}
    notebook = new_notebook(cells=[cell], metadata={"widgets": {}, "language_info": language})
    scrubbed = notebooks.scrub(notebook)
    assert (scrubbed.cells[0].execution_count, scrubbed.cells[0].outputs[0].text) == (7, "1\n")
    assert scrubbed.cells[0].metadata == {"tags": ["parameters"]}
    assert scrubbed.metadata == {"language_info": {"name": "python"}}


def test_an_unknown_lesson_is_said(lesson: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert notebooks.lesson_scripts(["01"], lesson.parent) == [lesson]
    with pytest.raises(ValueError, match=r"begins with '09'; the lessons are: 01_lesson\."):
        notebooks.lesson_scripts(["09"], lesson.parent)
    assert notebooks.main(["build", "99"]) == 1
    assert "begins with '99'" in capsys.readouterr().err


def test_badges_reach_the_readme_and_both_files_of_a_lesson(
    lesson: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebooks.build(lesson)
    root = lesson.parents[1]
    (root / "README.md").write_text("<!-- badges:start -->\n<!-- badges:end -->\n")
    (root / "pyproject.toml").write_text(
        '[project]\nname = "x"\n[project.urls]\nRepository = "https://github.com/some/kit"\n'
    )
    notebooks.write_badges(root)
    assert "github/some/kit/blob/main/notebooks/01_lesson.ipynb" in (root / "README.md").read_text()
    source = colab_cell("https://github.com/some/kit")
    stored = nbformat.read(lesson.with_suffix(".ipynb"), 4)
    assert stored.cells[1].source == jupytext.read(lesson).cells[1].source == source
    assert stored.cells[3].outputs[0].text == "3 None 1\n"
    assert json.loads(lesson.with_suffix(".ipynb").read_text())["nbformat_minor"] == 5
    nbformat.validate(stored)
