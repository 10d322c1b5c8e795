"""Figures that can be moved: built once, changed by a plain function, driven by sliders.

A figure's fixed parts (axes, ticks, contours) are drawn once and kept as pixels; a redraw puts only
the moving artists on top. That is what lets a slider answer while it is being dragged.
"""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from tutorkit.plots import styled_figure

if TYPE_CHECKING:
    import ipywidgets


@dataclass(frozen=True)
class Control:
    """One number or word of a figure that can be chosen.

    Attributes:
        label: what the slider is called.
        values: the values that can be chosen, in the slider's order.
        default: the value of the static figure, one of `values`.
        format: how a value is written, as `str.format` takes it; "{}" for words.

    Raises:
        ValueError: the default is not among the values.
    """

    label: str
    values: tuple[float | str, ...]
    default: float | str
    format: str = "{:g}"

    def __post_init__(self) -> None:
        self.check(self.default)

    def check(self, value: float | str) -> None:
        """Raise ValueError for a value that can't be chosen."""
        if value not in self.values:
            allowed = ", ".join(map(self.format.format, self.values))
            raise ValueError(
                f"{self.label}: expected one of {allowed}, found {value!r}. Choose one of these."
            )


class Drawing:
    """A figure with controls. Subclasses set the class attributes, `_build` and `_move`.

    Attributes:
        figure: the figure at the current values; at first, the defaults.
        values: the current value of every control.
    """

    controls: ClassVar[dict[str, Control]]
    height: ClassVar[float]  # inches
    description: ClassVar[str]  # what the picture shows, for who can't see it

    def __init__(self) -> None:
        self.values = {name: control.default for name, control in self.controls.items()}
        with styled_figure(self.height) as self.figure:
            self._build(self.figure)
            self._move(**self.values)
        # From here on nothing changes its place, and a layout costs more than a picture.
        self.figure.set_layout_engine("none")
        self._canvas = FigureCanvasAgg(self.figure)
        self._background: Any = None
        moving = self.figure.findobj(lambda artist: artist.get_animated())
        self._moving = sorted(moving, key=lambda artist: artist.get_zorder())
        for artist in self._moving:
            artist.set_animated(False)  # a figure never draws its animated legends

    def _build(self, figure: Figure) -> None:
        """Draw everything; what `_move` changes, and what lies over it, with `animated=True`."""
        raise NotImplementedError

    def _move(self, **values: float | str) -> None:
        """Give the moving artists the data of these values."""
        raise NotImplementedError

    def update(self, **values: float | str) -> None:
        """Move the figure to other values; a control that is not named keeps its value.

        Raises:
            ValueError: an unknown control, or a value it does not have.
        """
        for name, value in values.items():
            if name not in self.controls:
                raise ValueError(
                    f"{type(self).__name__}: expected controls among {', '.join(self.controls)}, "
                    f"found {name!r}. Name one of these."
                )
            self.controls[name].check(value)
        self.values |= values
        self._move(**self.values)

    def _show_moving(self, visible: bool) -> None:
        for artist in self._moving:
            artist.set_visible(visible)

    def png(self) -> bytes:
        """The figure as it stands now, as a PNG file."""
        if self._background is None:
            self._show_moving(False)
            self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self.figure.bbox)
            self._show_moving(True)
        self._canvas.restore_region(self._background)
        for artist in self._moving:
            self.figure.draw_artist(artist)
        size = self._canvas.get_width_height()
        picture = Image.frombuffer("RGBA", size, self._canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
        file = io.BytesIO()
        # Level 1 packs in a third of the time; the file lives until the slider's next movement.
        picture.convert("RGB").save(file, format="png", compress_level=1)
        return file.getvalue()


def redraw(drawing: Drawing, **values: float | str) -> bytes:
    """Move a drawing to these values and return its picture: all that a slider does.

    Raises:
        ValueError: an unknown control, or a value it does not have.
    """
    drawing.update(**values)
    return drawing.png()


def explore(drawing: Drawing) -> ipywidgets.VBox:
    """Sliders above the drawing's picture; moving one redraws it.

    The sliders start at the drawing's current values. Made of plain widgets only, so that it works
    with ipywidgets 7 (Colab) and 8, and leaves no output behind that changes from run to run.
    """
    import ipywidgets

    sliders = {
        name: ipywidgets.SelectionSlider(
            options=[(control.format.format(value), value) for value in control.values],
            value=drawing.values[name],
            description=control.label,
            continuous_update=True,
            style={"description_width": "initial"},
        )
        for name, control in drawing.controls.items()
    }
    # As large as the still figure: a box stretches what is in it, and that blurs.
    layout = {"max_width": "100%", "align_self": "flex-start"}
    picture = ipywidgets.Image(value=redraw(drawing), format="png", layout=layout)
    # A picture has no alternative text in ipywidgets, and its tooltip fails in JupyterLab 4.6.
    words = html.escape(drawing.description)
    caption = ipywidgets.HTML(f'<div style="line-height: 1.4"><small>{words}</small></div>')

    def show(_change: object) -> None:
        chosen = {name: slider.value for name, slider in sliders.items()}
        picture.value = redraw(drawing, **chosen)

    for slider in sliders.values():
        slider.observe(show, names="value")
    # Sliders that do not fit beside each other go to the next line.
    row = ipywidgets.HBox(list(sliders.values()), layout={"flex_flow": "row wrap"})

    class Explorer(ipywidgets.VBox):
        def __repr__(self) -> str:  # what stands there where no widget can be shown
            return f"Sliders ({', '.join(s.description for s in sliders.values())}): run this cell."

    return Explorer([row, picture, caption])
