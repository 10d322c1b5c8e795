"""The exported page: nothing in it waits for a network."""

from __future__ import annotations

import base64
import re

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tutorkit.html import draw_formulas, formula_image, notebook_to_html


def test_a_formula_becomes_a_drawing_with_its_tex_as_text() -> None:
    image = formula_image(r"\frac{1}{N} \sum_i x_i < 2")
    assert 'alt="\\frac{1}{N} \\sum_i x_i &lt; 2"' in image
    drawing = base64.b64decode(re.search(r"base64,([^\"]+)", image)[1])
    assert b"<svg" in drawing
    # One outline per glyph: the drawing is not an empty box.
    assert drawing.count(b"<use") >= 6


def test_a_formula_that_cannot_be_drawn_stays_readable() -> None:
    assert formula_image(r"\nosuchcommand{x}") == "<code>&#92;nosuchcommand{x}</code>"


@pytest.mark.parametrize("text", ["costs $5 and $6", "`$x$`", "```\n$x$\n```", r"\$x$", "US$ 5, $"])
def test_dollars_that_are_no_formula_stay(text: str) -> None:
    assert draw_formulas(text) == text


def test_formulas_are_drawn_inside_and_between_lines() -> None:
    drawn = draw_formulas("loss $L$ is\n\n$$\nL = -\\log p\n$$\n\nand `$L$`")
    assert drawn.count("<img") == 2
    assert drawn.count('class="formula display"') == 1
    assert drawn.endswith("and `$L$`")


def test_the_page_loads_nothing_from_elsewhere() -> None:
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "Slider"}
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# Title\n\n$a$ and [a link](https://example.org)"),
            new_code_cell("secret = 1", metadata={"tags": ["colab"]}),
            new_code_cell(
                "shown",
                outputs=[
                    new_output("display_data", data=widget),
                    new_output("display_data", data={"text/markdown": "value $b$"}),
                ],
            ),
        ],
        metadata={"widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}},
    )
    page = notebook_to_html(notebook, "A run")
    assert "<title>A run</title>" in page
    assert "<script" not in page
    assert not re.findall(r"""(?:src=["']?|url\(["']?|@import\s+["']?)(?:https?:)?//""", page)
    assert not re.findall(r"<link[^>]+href", page)
    assert page.count("vertical-align: -") == 2  # the two formulas
    assert "Slider" in page
    assert "secret" not in page
    assert notebook.cells[0].source.startswith("# Title\n\n$a$")
