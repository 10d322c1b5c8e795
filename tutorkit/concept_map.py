"""The map of the subject: what fine-tuning is connected with, and which lesson is about it.

The boxes and arrows are data. Which lessons are there is found out by looking into the folder of
notebooks: the box of a lesson that is not there is drawn as planned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

COLUMNS, ROWS = 3, 4


@dataclass(frozen=True)
class Box:
    """One idea, and where it stands in the map."""

    name: str
    meaning: str  # one line
    lessons: tuple[str, ...]  # their numbers, the first one is the box's own
    row: int  # from the top
    column: int  # from the left
    meanwhile: str | None = None  # the section of lesson 01 that has its formula


@dataclass(frozen=True)
class Arrow:
    """A connection; it reads as the sentence "source verb target"."""

    source: str
    verb: str
    target: str


BOXES = (
    Box("Pre-training", "learn language from raw text, without labels", ("06",), 0, 0),
    Box("Transfer learning", "use what was learned on one task for another", ("06",), 0, 1),
    Box("Adapters, LoRA", "train a few added weights, keep the rest", ("07",), 0, 2, "LoRA"),
    Box("Multi-task learning", "one model learns several tasks at once", ("08",), 1, 0,
        "Several tasks at once"),
    Box("Fine-tuning", "go on training, on texts with labels", ("05", "04"), 1, 1),
    Box("Adversarial training", "learn from inputs changed to mislead", ("09",), 1, 2,
        "The worst small change of an input"),
    Box("Knowledge distillation", "a small model learns from a large one's answers", ("10",), 2, 0,
        "Knowledge distillation"),
    Box("Training loop", "predict, measure, take a step, again", ("04",), 2, 1),
    Box("Evaluation", "how good is it, and how sure is that?", ("05",), 2, 2),
    Box("Loss and gradient", "how wrong, and which way is better", ("01",), 3, 0),
    Box("Texts to tensors", "words become numbers, in batches", ("02",), 3, 1),
    Box("Task heads", "from hidden states to answers", ("03",), 3, 2),
)  # fmt: skip
ARROWS = (
    Arrow("Pre-training", "provides the weights for", "Transfer learning"),
    Arrow("Transfer learning", "is mostly done by", "Fine-tuning"),
    Arrow("Adapters, LoRA", "save memory in", "Fine-tuning"),
    Arrow("Multi-task learning", "puts more tasks into", "Fine-tuning"),
    Arrow("Adversarial training", "puts harder inputs into", "Fine-tuning"),
    Arrow("Fine-tuning", "makes the teacher for", "Knowledge distillation"),
    Arrow("Training loop", "carries out", "Fine-tuning"),
    Arrow("Fine-tuning", "is judged by", "Evaluation"),
    Arrow("Loss and gradient", "give direction to", "Training loop"),
    Arrow("Texts to tensors", "feed", "Training loop"),
    Arrow("Task heads", "give scores to", "Training loop"),
)


def lessons_in(folder: Path | str = ".") -> dict[str, str]:
    """The lessons of a folder: number to name, such as "01" to "01_math"."""
    found = sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))
    return {path.stem[:2]: path.stem for path in found}


class ConceptMap:
    """The map's boxes as links, in the places that they have in the picture.

    It is a table because that is what every viewer leaves of HTML: JupyterLab takes `<svg>` out of
    a notebook that was not run there yet, code hosts take styles away as well, and a picture holds
    no links. `tour_figures.concept_figure` draws the picture.

    Args:
        lessons: number to name of the lessons that are there, as `lessons_in` finds them.
        linked: False where their notebooks are not beside this one, so that no link would lead on.
    """

    def __init__(self, lessons: Mapping[str, str], linked: bool = True) -> None:
        self.lessons = dict(lessons)
        self.linked = linked

    def there(self, box: Box) -> list[str]:
        """The names of a box's lessons; none where it is planned."""
        return [self.lessons[number] for number in box.lessons if number in self.lessons]

    def note(self, box: Box) -> str:
        """What a box says of its lessons."""
        return ", ".join(self.there(box)) or f"{box.lessons[0]}, planned"

    def _repr_html_(self) -> str:
        rows = "".join(
            '<tr style="background:#FFFFFF">'
            + "".join(self._cell(box) for box in BOXES if box.row == row)
            + "</tr>"
            for row in range(ROWS)
        )
        style = "border:none;border-collapse:separate;border-spacing:8px"
        return f'<table style="{style}">{rows}</table>'

    def __repr__(self) -> str:
        lines = [f"{box.name} ({self.note(box)}): {box.meaning}" for box in BOXES]
        return "\n".join([*lines, *(f"{a.source} {a.verb} {a.target}" for a in ARROWS)])

    def _cell(self, box: Box) -> str:
        names = self.there(box)
        line, fill = ("solid", "#E3F1FA") if names else ("dashed", "#FFFFFF")
        style = (f"border:2px {line} #0072B2;background:{fill};color:#222222;border-radius:8px;"
                 "text-align:center;vertical-align:middle;padding:6px 14px")  # fmt: skip
        title = self._link(f"{names[0]}.ipynb", box.name) if names else escape(box.name)
        notes = [names[0], *(self._link(f"{n}.ipynb", n) for n in names[1:])] if names else []
        if not names:
            notes.append(self.note(box))
            if box.meanwhile and "01" in self.lessons:
                formulas = self.lessons["01"]
                at = f"{formulas}.ipynb#{box.meanwhile.replace(' ', '-')}"
                notes.append(self._link(at, f"formula: {formulas}"))
        return f'<td style="{style}"><b>{title}</b><br>{", ".join(notes)}</td>'

    def _link(self, address: str, text: str) -> str:
        return f'<a href="{escape(address)}">{escape(text)}</a>' if self.linked else escape(text)


def box_of(name: str) -> Box:
    """The box with a name."""
    return next(box for box in BOXES if box.name == name)
