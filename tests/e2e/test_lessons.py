"""A lesson in JupyterLab: what it shows as it is stored, what runs, what answers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from lab import ROOT, Server
from pages import Lesson, expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LESSON = "01_math.ipynb"
NO_WIDGET = re.compile("Error displaying widget|Loading widget|javascript error")
ANSWER_LIMIT = 2.0  # seconds from a key to the new picture


@pytest.fixture(scope="module")
def lesson(browser: Browser, server: Server) -> Iterator[Lesson]:
    """The lesson after `Run All Cells`; its stored outputs are taken away before."""
    opened = Lesson(browser, server.address, LESSON)
    opened.clear()
    opened.run_all()
    yield opened
    opened.close()


def code_cells(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook file."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def stored_figures(path: Path) -> int:
    """How many figures a notebook file carries."""
    outputs = [output for cell in code_cells(path) for output in cell["outputs"]]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def assert_figures_are_drawn(page: Page, expected: int) -> None:
    """Every figure is there and is a picture that the browser could read."""
    images = page.locator(".jp-OutputArea img[src^='data:image/png']")
    expect(images).to_have_count(expected, timeout=30_000)  # cells out of sight are drawn later
    widths = images.evaluate_all(
        "images => Promise.all(images.map(async i => (await i.decode(), i.naturalWidth)))"
    )
    assert min(widths) > 300, widths


def test_all_cells_run(lesson: Lesson, server: Server) -> None:
    assert lesson.errors() == []
    code = [cell for cell in lesson.cells() if cell["type"] == "code"]
    stored = code_cells(server.notebooks / LESSON)
    assert [cell["count"] for cell in code] == [cell["execution_count"] for cell in stored]
    assert [bool(cell["outputs"]) for cell in code] == [bool(cell["outputs"]) for cell in stored]
    assert lesson.messages == []
    assert lesson.outside == []


def test_the_exercises_solutions_pass_their_checks(lesson: Lesson) -> None:
    checks = lesson.tagged("check")
    assert len(checks) >= 4
    for cell in checks:
        name = re.search(r"\.check\((\w+)\)", lesson.cells()[cell]["source"])[1]
        expect(lesson.output(cell)).to_have_text(f"✓ {name}: right on 6 fresh inputs")


@pytest.mark.parametrize(
    ("cell", "label"),
    [("widgets.explore(surface)", "learning rate"), ("widgets.explore(schedules)", "warm-up")],
)
def test_a_slider_redraws_its_figure(lesson: Lesson, cell: str, label: str) -> None:
    expect(lesson.output(cell)).not_to_contain_text(NO_WIDGET)
    handle = lesson.slider(cell, label)
    first, start = lesson.picture(cell), handle.get_attribute("aria-valuenow")
    right = lesson.press(handle, "ArrowRight", cell)
    assert handle.get_attribute("aria-valuenow") != start
    assert lesson.picture(cell) != first
    left = lesson.press(handle, "ArrowLeft", cell)
    assert lesson.picture(cell) == first  # the same values, the same picture
    print(f"a slider's answer: {right:.2f} s, {left:.2f} s")
    assert min(right, left) < ANSWER_LIMIT


def test_solutions_are_folded_and_can_be_opened(lesson: Lesson) -> None:
    solutions = lesson.tagged("solution")
    assert len(solutions) >= 4
    assert [cell["folded"] for cell in lesson.cells()].count(True) == len(solutions)
    for number in solutions:
        cell = lesson.show(number)
        expect(cell.locator(".jp-InputPlaceholder")).to_contain_text("def ")
        expect(cell).not_to_contain_text("return")
    cell = lesson.show(solutions[0])
    cell.locator(".jp-InputPlaceholder .jp-Placeholder-content").click()
    expect(cell.locator(".cm-content")).to_contain_text("return")


def test_opening_a_lesson_changes_no_file(open_lesson: Callable, server: Server) -> None:
    before = server.files()
    assert LESSON in before
    opened = open_lesson("05_imdb_report.ipynb")
    opened.show(len(opened.cells()) - 1)
    assert server.files() == before


def test_as_stored_a_lesson_shows_its_figures(open_lesson: Callable, server: Server) -> None:
    # Under another name, because the kernel of the lesson above would be this page's too.
    shutil.copy(server.notebooks / LESSON, server.notebooks / "stored.ipynb")
    opened = open_lesson("stored.ipynb", kernel=False)
    expect(opened.page.get_by_text("No Kernel", exact=True)).to_be_visible()
    assert_figures_are_drawn(opened.page, stored_figures(server.notebooks / LESSON))
    expect(opened.page.locator(".jp-Notebook")).not_to_contain_text(NO_WIDGET)
    # The figure above it tells the same story.
    expect(opened.output("widgets.explore(surface)")).to_contain_text("run this cell")


def test_as_a_page_a_lesson_shows_its_figures(browser: Browser, tmp_path: Path) -> None:
    """As code hosts and nbviewer do it, and without a network."""
    source = ROOT / "notebooks" / LESSON
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, capture_output=True, timeout=120)
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto((tmp_path / f"{source.stem}.html").as_uri(), wait_until="domcontentloaded")
    assert_figures_are_drawn(page, stored_figures(source))
    expect(page.locator("body")).not_to_contain_text(NO_WIDGET)
    page.locator(".jp-OutputArea img").last.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "page.png")
    context.close()
