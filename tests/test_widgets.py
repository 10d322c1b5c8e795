"""Sliders move a drawing through a plain function, with no kernel and no browser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbclient
import nbformat
import pytest

from tutorkit import widgets
from tutorkit.math_figures import Schedules
from tutorkit.widgets import Control, Drawing, explore, redraw


class Line(Drawing):
    """y = slope · x + shift."""

    controls = {
        "slope": Control("slope", (0.5, 1.0, 2.0), 1.0, "{:.1f}"),
        "shift": Control("shift", (0, 1), 0),
    }
    height = 1.5
    description = "A line."

    def _build(self, figure):
        axes = figure.subplots()
        axes.set(xlim=(0, 1), ylim=(0, 3))
        (self.line,) = axes.plot([], [], animated=True)

    def _move(self, slope, shift):
        self.line.set_data([0, 1], [shift, shift + slope])


def parts(box):
    row, picture, _ = box.children
    return {slider.description: slider for slider in row.children}, picture


def test_sliders_offer_the_values_of_the_controls():
    sliders, _ = parts(explore(Line()))
    assert sliders["slope"].options == (("0.5", 0.5), ("1.0", 1.0), ("2.0", 2.0))
    assert sliders["shift"].options == (("0", 0), ("1", 1))
    assert (sliders["slope"].value, sliders["shift"].value) == (1.0, 0)
    assert all(slider.continuous_update for slider in sliders.values())


def test_the_first_picture_is_the_static_figure():
    _, picture = parts(explore(Line()))
    assert picture.format == "png"
    assert bytes(picture.value) == redraw(Line())
    assert bytes(picture.value).startswith(b"\x89PNG")


def test_a_moved_slider_changes_the_picture():
    drawing = Line()
    sliders, picture = parts(explore(drawing))
    first = bytes(picture.value)
    sliders["slope"].value = 2.0
    assert drawing.values == {"slope": 2.0, "shift": 0}
    assert drawing.line.get_ydata() == [0, 2]
    assert bytes(picture.value) == redraw(Line(), slope=2.0) != first
    sliders["shift"].value = 1
    assert bytes(picture.value) == redraw(Line(), slope=2.0, shift=1)
    sliders["slope"].value, sliders["shift"].value = 1.0, 0
    assert bytes(picture.value) == first


def test_sliders_start_where_the_drawing_stands():
    drawing = Line()
    drawing.update(slope=0.5)
    sliders, picture = parts(explore(drawing))
    assert sliders["slope"].value == 0.5
    assert bytes(picture.value) == redraw(Line(), slope=0.5)


def test_two_explorers_of_two_drawings_do_not_meet():
    first, second = Schedules(), Schedules()
    sliders, _ = parts(explore(first))
    _, picture = parts(explore(second))
    before = bytes(picture.value)
    sliders["steps T"].value = 20
    assert bytes(picture.value) == before
    assert (first.values["total"], second.values["total"]) == (20, 200)


def test_the_caption_says_what_the_picture_shows():
    drawing = Schedules()
    drawing.description = "Below 1 & above <0>."
    caption = explore(drawing).children[-1]
    assert ">Below 1 &amp; above &lt;0&gt;.</small>" in caption.value


def test_an_update_keeps_what_is_not_named():
    drawing = Line()
    drawing.update(shift=1)
    drawing.update(slope=2.0)
    assert drawing.values == {"slope": 2.0, "shift": 1}
    assert Line().values == {"slope": 1.0, "shift": 0}


def test_errors_name_what_can_be_chosen():
    drawing = Line()
    with pytest.raises(ValueError, match=r"Line: expected controls among slope, shift, found 'x'"):
        redraw(drawing, x=1)
    with pytest.raises(ValueError, match=r"slope: expected one of 0\.5, 1\.0, 2\.0, found 3\.0"):
        redraw(drawing, shift=1, slope=3.0)
    assert drawing.values == {"slope": 1.0, "shift": 0}  # nothing of a refused update stays
    with pytest.raises(ValueError, match=r"T: expected one of 1, 2, found 3"):
        Control("T", (1, 2), 3)


def test_no_figure_stays_open():
    explore(Line())
    assert plt.get_fignums() == []


def test_the_import_builds_nothing_and_loads_no_widgets():
    code = (
        "import sys, tutorkit.math_figures as figures\n"
        "assert 'ipywidgets' not in sys.modules\n"
        "import matplotlib.pyplot as plt\n"
        "assert plt.get_fignums() == []\n"
        "assert figures.math_data.head_points.cache_info().currsize == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_notebook_shows_the_figure_once_and_the_sliders(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel would take it over
    cells = [
        "from tutorkit import math_figures, widgets\n"
        "drawing = math_figures.Schedules()\ndrawing.figure",
        "widgets.explore(drawing)",
        "_ = widgets.redraw(drawing, total=20)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    root = Path(widgets.__file__).parents[1]
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(root)}}).execute()
    static, moving, silent = [
        [key for output in cell.outputs for key in output.get("data", {})]
        for cell in notebook.cells
    ]
    assert static.count("image/png") == 1
    assert moving.count("application/vnd.jupyter.widget-view+json") == 1
    assert "image/png" not in moving and silent == []
