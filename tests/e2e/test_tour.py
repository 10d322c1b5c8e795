"""The map of lesson 00: a click on a box opens its lesson."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lab import ROOT, Server
from pages import Lesson, expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

LESSON = "00_tour.ipynb"
MAP = "concepts"  # the whole source of the cell with the links


def boxes(lesson: Lesson) -> Locator:
    """The output of the cell with the map's links."""
    (number,) = [i for i, cell in enumerate(lesson.cells()) if cell["source"] == MAP]
    return lesson.output(number)


def assert_opens(lesson: Lesson, link: str, name: str) -> None:
    """A click on a link of the map brings a notebook to the front."""
    boxes(lesson).get_by_role("link", name=link, exact=True).first.click()
    tab = lesson.page.locator(".lm-TabBar-tab.lm-mod-current.jp-mod-current")
    expect(tab).to_have_text(name, timeout=20_000)
    current = "() => window.jupyterapp.shell.currentWidget?.context?.path"
    lesson.page.wait_for_function(f"name => ({current})() === name", arg=name)
    assert len(lesson.page.context.pages) == 1  # in JupyterLab, not in a new page of the browser


@pytest.mark.parametrize(
    ("link", "name"),
    [("Loss and gradient", "01_math.ipynb"), ("Fine-tuning", "05_imdb_report.ipynb")],
)
def test_as_stored_a_box_opens_its_lesson(
    link: str, name: str, open_lesson: Callable, server: Server
) -> None:
    """Nobody has run the notebook here, so JupyterLab takes out of it whatever might do harm."""
    shutil.copy(server.notebooks / LESSON, server.notebooks / "map.ipynb")
    opened = open_lesson("map.ipynb", kernel=False)
    assert_opens(opened, link, name)


def test_a_formula_of_a_planned_lesson_opens_lesson_01(open_lesson: Callable) -> None:
    if "formula: 01_math" not in (ROOT / "notebooks" / LESSON).read_text(encoding="utf-8"):
        pytest.skip("every lesson of the map is there")
    assert_opens(open_lesson(LESSON, kernel=False), "formula: 01_math", "01_math.ipynb")


def test_after_running_it_a_box_opens_its_lesson(open_lesson: Callable) -> None:
    opened = open_lesson(LESSON)
    opened.clear()
    opened.run("from tutorkit.concept_map import", limit=120)
    opened.run("concept_figure(concepts)")
    expect(opened.output("concept_figure(concepts)").locator("img")).to_be_visible()
    (number,) = [i for i, cell in enumerate(opened.cells()) if cell["source"] == MAP]
    opened.run(number)
    assert_opens(opened, "Training loop", "04_training.ipynb")
    assert opened.errors() == []
    assert opened.outside == []


def test_as_a_page_the_boxes_lead_to_the_notebooks(browser: Browser, tmp_path: Path) -> None:
    """As nbviewer shows it, and without a network."""
    source = ROOT / "notebooks" / LESSON
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", str(tmp_path)]
    subprocess.run([*command, str(source)], check=True, capture_output=True, timeout=120)
    (tmp_path / "01_math.ipynb").write_text("{}", encoding="utf-8")
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.goto((tmp_path / f"{source.stem}.html").as_uri(), wait_until="domcontentloaded")
    link = page.get_by_role("link", name="Loss and gradient", exact=True)
    expect(link).to_be_visible()
    assert re.fullmatch(r"file://.*/01_math\.ipynb", link.evaluate("a => a.href"))
    link.click()
    page.wait_for_url("**/01_math.ipynb")
    context.close()
