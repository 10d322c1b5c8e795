"""The map of the subject: its boxes, its arrows, and where its links lead."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import jupytext
import matplotlib.pyplot as plt
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from tutorkit.concept_map import ARROWS, BOXES, COLUMNS, ROWS, ConceptMap, box_of, lessons_in
from tutorkit.notebooks import NOTEBOOKS
from tutorkit.tour_figures import concept_figure

SOME = {"01": "01_math", "04": "04_training", "05": "05_imdb_report"}


@pytest.fixture(autouse=True)
def nothing_left_open():
    yield
    assert plt.get_fignums() == []


class Table(HTMLParser):
    """The cells of an HTML table: style, text and links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.cells: list[dict] = []
        self.rows = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "tr":
            self.rows += 1
        if tag == "td":
            self.cells.append({"style": dict(attrs)["style"], "text": "", "links": []})
        if tag == "a":
            self.cells[-1]["links"].append(dict(attrs)["href"])

    def handle_data(self, data: str) -> None:
        self.cells[-1]["text"] += data


def cell(concepts: ConceptMap, name: str) -> dict:
    (found,) = [c for c in Table(concepts._repr_html_()).cells if c["text"].startswith(name)]
    return found


def test_each_box_has_a_place_of_its_own() -> None:
    places = {(box.row, box.column) for box in BOXES}
    assert places == {(row, column) for row in range(ROWS) for column in range(COLUMNS)}
    assert len({box.name for box in BOXES}) == len(BOXES) == len(places)
    assert list(BOXES) == sorted(BOXES, key=lambda box: (box.row, box.column))
    wanted = {"Pre-training", "Transfer learning", "Fine-tuning", "Multi-task learning",
              "Adversarial training", "Knowledge distillation"}  # fmt: skip
    assert wanted <= {box.name for box in BOXES}


def test_arrows_join_neighbours_and_leave_no_box_alone() -> None:
    for arrow in ARROWS:
        source, target = box_of(arrow.source), box_of(arrow.target)
        steps = abs(source.row - target.row), abs(source.column - target.column)
        assert max(steps) == 1, arrow
        assert arrow.verb.split()[0] not in ("", "to", "for")
    assert {box.name for box in BOXES} == {n for a in ARROWS for n in (a.source, a.target)}
    assert len({frozenset((a.source, a.target)) for a in ARROWS}) == len(ARROWS)


def test_the_lessons_of_a_folder(tmp_path: Path) -> None:
    assert lessons_in(tmp_path) == {}
    for name in ("01_math.ipynb", "07_peft.py", "notes.ipynb", "10_distillation.ipynb"):
        (tmp_path / name).touch()
    assert lessons_in(tmp_path) == {"01": "01_math", "10": "10_distillation"}
    assert set(lessons_in(NOTEBOOKS)) == {p.stem[:2] for p in NOTEBOOKS.glob("[0-9]*.ipynb")}


def test_a_box_leads_to_its_lesson() -> None:
    found = cell(ConceptMap(SOME), "Training loop")
    assert found["links"] == ["04_training.ipynb"]
    assert found["text"] == "Training loop04_training"
    assert "solid" in found["style"]
    assert cell(ConceptMap(SOME), "Fine-tuning")["links"] == [
        "05_imdb_report.ipynb",
        "04_training.ipynb",
    ]


def test_a_planned_box_leads_to_its_formula_until_the_lesson_is_there() -> None:
    planned = cell(ConceptMap(SOME), "Adapters, LoRA")
    assert planned["links"] == ["01_math.ipynb#LoRA"]
    assert planned["text"] == "Adapters, LoRA07, planned, formula: 01_math"
    assert "dashed" in planned["style"]
    without_formula = cell(ConceptMap(SOME), "Task heads")
    assert without_formula["links"] == [] and without_formula["text"].endswith("03, planned")
    # Whatever it will be called.
    there = cell(ConceptMap({**SOME, "07": "07_lora"}), "Adapters, LoRA")
    assert there["links"] == ["07_lora.ipynb"] and "planned" not in there["text"]
    assert "solid" in there["style"]
    assert cell(ConceptMap({}), "Adapters, LoRA")["links"] == []


def test_where_no_notebook_is_beside_it_there_are_no_links() -> None:
    concepts = ConceptMap(SOME, linked=False)
    assert "<a " not in concepts._repr_html_()
    assert "solid" in cell(concepts, "Training loop")["style"]


def test_no_link_of_the_project_s_map_leads_nowhere() -> None:
    concepts = ConceptMap(lessons_in(NOTEBOOKS))
    headings = {
        f"{script.stem}.ipynb": {
            match.replace(" ", "-")
            for part in jupytext.read(script).cells
            if part.cell_type == "markdown"
            for match in re.findall(r"(?m)^#+ (.+)$", part.source)
        }
        for script in NOTEBOOKS.glob("[0-9][0-9]_*.py")
    }
    # Also of boxes whose lesson is there by now: the sections are still named.
    without = ConceptMap({k: v for k, v in concepts.lessons.items() if k < "06"})
    for each in (concepts, without):
        links = [link for c in Table(each._repr_html_()).cells for link in c["links"]]
        assert len(links) >= 6
        for link in links:
            name, _, section = link.partition("#")
            assert (NOTEBOOKS / name).is_file()
            assert not section or section in headings[name], link


def test_the_boxes_stand_as_in_the_picture() -> None:
    table = Table(ConceptMap(SOME)._repr_html_())
    assert (table.rows, len(table.cells)) == (ROWS, ROWS * COLUMNS)
    for found, box in zip(table.cells, BOXES, strict=True):
        assert found["text"].startswith(box.name)


def test_in_words() -> None:
    lines = repr(ConceptMap(SOME)).split("\n")
    assert lines[0] == (
        "Pre-training (06, planned): learn language from raw text, without labels"
    )
    assert "Transfer learning is mostly done by Fine-tuning" in lines
    assert len(lines) == len(BOXES) + len(ARROWS)


def test_the_picture_shows_every_box_and_arrow() -> None:
    figure = concept_figure(ConceptMap(SOME))
    (axes,) = figure.axes
    words = [text.get_text().replace("\n", " ") for text in axes.texts]
    for box in BOXES:
        assert box.name in words and box.meaning in words
    assert all(arrow.verb in words for arrow in ARROWS)
    assert "07, planned" in words and "05_imdb_report, 04_training" in words
    drawn = [p for p in axes.patches if isinstance(p, FancyBboxPatch)]
    assert len([p for p in axes.patches if isinstance(p, FancyArrowPatch)]) == len(ARROWS)
    planned = [box for box in BOXES if not ConceptMap(SOME).there(box)]
    assert [p.get_linestyle() for p in drawn].count("--") == len(planned)


def test_the_picture_s_words_fit() -> None:
    """Inside the frame, and none across the edge of a box."""
    later = {"06": "06_transfer", "07": "07_peft", "08": "08_multitask", "09": "09_adversarial",
             "10": "10_distillation"}  # fmt: skip
    for lessons in ({}, SOME | later):
        figure = concept_figure(ConceptMap(lessons))
        (axes,) = figure.axes
        renderer = FigureCanvasAgg(figure).get_renderer()
        frame = figure.bbox
        boxes = [p.get_window_extent(renderer) for p in axes.patches
                 if isinstance(p, FancyBboxPatch)]  # fmt: skip
        for text in axes.texts:
            extent = text.get_window_extent(renderer)
            assert frame.x0 <= extent.x0 and extent.x1 <= frame.x1, text.get_text()
            assert frame.y0 <= extent.y0 and extent.y1 <= frame.y1, text.get_text()
            for box in boxes:
                inside = box.x0 <= extent.x0 and extent.x1 <= box.x1
                apart = extent.x1 <= box.x0 or box.x1 <= extent.x0
                above = extent.y1 <= box.y0 or box.y1 <= extent.y0
                assert inside or apart or above, text.get_text()
