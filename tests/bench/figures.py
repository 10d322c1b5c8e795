"""The two figures of cost, drawn from their saved records.

    python tests/bench/figures.py           writes growth.png and time_to_score.png beside them
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from growth import RECORDS
from growth import points as all_points
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, StrMethodFormatter

from tutorkit.plots import BLUE, GREY, INK, VERMILLION, styled_figure

REPORTS = Path(__file__).parents[2] / "notebooks" / "reports"
DPI = 150  # 1050 pixels: sharp at the 900 or so that a README is wide
# Those of tutorkit.plots and three more of Okabe & Ito's; then the same with another line.
LOOKS = [(style, colour) for style in ("-", (0, (4, 1.5)), (0, (1, 1)))
         for colour in (BLUE, VERMILLION, "#009E73", INK, "#CC79A7", "#E69F00")]  # fmt: skip
FROZEN = {"none": "–", "embeddings": "E", "backbone": "all"}  # the rest as it is
# Series: what stands below its axis; the key of a point that is its place there.
AXES = {
    "batch": ("reviews a batch,\n{max_length} tokens each", "batch_size"),
    "length": ("tokens a review,\n{batch_size} reviews a batch", "max_length"),
    "freeze": ("layers frozen (E: embeddings,\nall: all but head), {batch_size} × {max_length}",
               "freeze"),
    "model": ("non-embedding parameters,\n{batch_size} × {max_length} tokens",
              "non_embedding_parameters"),
}


def series(record: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The points of one series in their own order, whatever the order they were measured in."""
    measured = record["points"]
    ordered = [measured[point] for point in all_points("") if point in measured]
    return [point for point in ordered if point["series"] == name]


def short(count: float) -> str:
    """A count in three digits at most: 18 k, 10.7 M."""
    for size, unit in ((1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"


def provenance(record: Mapping[str, Any], results: Iterable[Mapping[str, Any]]) -> str:
    """On what and at which commits a record was measured, as one line."""
    machine = record["hardware"]
    commits = ", ".join(dict.fromkeys(str(result["git_commit"]) for result in results))
    return (f"{machine['cpu']}, {machine['cores']} cores, threads: {machine['threads']}, "
            f"{machine['gpu'] or 'no GPU'}, {machine['precision']}, "
            f"torch {machine['versions']['torch']}; commit {commits}")


def growth(record: Mapping[str, Any]) -> Figure:
    """Tokens a second and peak memory against what makes them grow; a series may be missing."""
    found = {name: line for name in AXES if (line := series(record, name))}
    rows = series(record, "rows")
    if not found and not rows:
        raise ValueError("expected at least one point to draw, found none: run growth.py first")
    heights = [4.1] * bool(found) + [2.2] * bool(rows)
    model = record["settings"]["model"]
    with styled_figure(sum(heights) + 0.2) as figure:
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if found:
            parts[0].suptitle(f"Training {model}", x=0.01, ha="left", fontsize=10)
            _draw_training(parts[0].subplots(2, len(found), squeeze=False), found)
        if rows:
            title = f"Turning reviews into {model}'s token ids"
            parts[-1].suptitle(title, x=0.01, ha="left", fontsize=10)
            _draw_rows(parts[-1].subplots(1, 2), rows)
        line = provenance(record, record["points"].values())
        parts[-1].supxlabel(line, x=0.01, ha="left", fontsize=7, color=GREY)
        return figure


def _draw_training(grid: np.ndarray, found: Mapping[str, list[dict[str, Any]]]) -> None:
    speeds = [p["tokens_per_s"] for name in found if name != "model" for p in found[name]]
    memory = [p["peak_rss_mb"] / 1024 for points in found.values() for p in points]
    for column, (name, points) in enumerate(found.items()):
        label, key = AXES[name]
        x = range(len(points)) if name == "freeze" else [point[key] for point in points]
        speed, held = zip(*((p["tokens_per_s"], p["peak_rss_mb"] / 1024) for p in points),
                          strict=True)
        parts = (("tokens a second", BLUE, speed, speeds),
                 ("peak memory (GiB)", VERMILLION, held, memory))  # fmt: skip
        for axes, (unit, colour, y, compared) in zip(grid[:, column], parts, strict=True):
            axes.plot(x, y, "o-", color=colour, markersize=4)
            if name == "model":
                _name_models(axes, x, y, [p["model"] for p in points])
            elif name == "freeze":
                axes.set_xticks(x, [str(FROZEN.get(p[key], p[key])) for p in points])
            else:
                axes.set_xticks(x[-3:])  # each is twice the one before: the first lie too close
            if name == "model" and colour == BLUE:  # from thousands of tokens a second to hundreds
                axes.set(yscale="log", ymargin=0.25)
                axes.yaxis.set_minor_locator(NullLocator())
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
            else:
                axes.set_ylim(0, 1.1 * max(compared))
                axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
                axes.tick_params(labelleft=column == 0)  # all have the scale of the first
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_ylabel(unit if column == 0 else "")
        grid[0, column].tick_params(labelbottom=False)
        grid[1, column].set_xlabel(label.format(**points[0]), fontsize=8)


def _name_models(axes: Axes, x: Sequence, y: Sequence, names: Sequence[str]) -> None:
    """Put the models' names at their points, on the side where the line is not."""
    for number, (at, height, name) in enumerate(zip(x, y, names, strict=True)):
        side, away = ("right", -5) if number else ("left", 5)
        low = number and y[-1] < y[0]
        axes.annotate(name, (at, height), (away, -2 if low else 5), textcoords="offset points",
                      fontsize=8, ha=side, va="top" if low else "bottom")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks([1e4, 1e6, 1e8], [short(count) for count in (1e4, 1e6, 1e8)])


def _draw_rows(axes: Sequence[Axes], rows: Sequence[Mapping[str, Any]]) -> None:
    x = [point["rows"] for point in rows]
    for how, words, colour, mark in (("tokenized", "anew", BLUE, "o"),
                                     ("cached", "from the cache", VERMILLION, "s")):  # fmt: skip
        seconds = [sum(point[how]["seconds"]) for point in rows]
        memory = [point[how]["peak_rss_mb"] / 1024 for point in rows]
        for part, values in zip(axes, (seconds, memory), strict=True):
            part.plot(x, values, color=colour, marker=mark, markersize=4, label=words)
    for part, unit in zip(axes, ("seconds", "peak memory (GiB)"), strict=True):
        part.set(xlabel="reviews", ylabel=unit)
        part.set_ylim(0, 1.1 * part.get_ylim()[1])
        part.set_xticks(x, [f"{value:,}" for value in x])
    axes[0].legend(labelcolor="linecolor", loc="upper left")


def best_baseline(folder: Path) -> tuple[float, int] | None:
    """The best word-count accuracy of the IMDB reports in a folder, and its training rows."""
    found = []
    for path in folder.glob("*/metrics.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["dataset"]["name"] == "imdb":
            scores = [score for name, score in report["baseline"].items() if name != "majority"]
            found += [(score, report["dataset"]["n_train"]) for score in scores]
    return max(found, default=None)


def spread(values: Sequence[float], gap: float) -> np.ndarray:
    """The values moved to be `gap` apart or more, by the least sum of squares."""
    from sklearn.isotonic import isotonic_regression

    order = np.argsort(values, kind="stable")
    steps = gap * np.arange(len(values))
    found = np.empty(len(values))
    found[order] = isotonic_regression(np.asarray(values, float)[order] - steps) + steps
    return found


def time_to_score(record: Mapping[str, Any], baseline: tuple[float, int] | None = None) -> Figure:
    """Validation accuracy against minutes of training; dashed an accuracy and its rows."""
    if not (runs := record["runs"]):
        raise ValueError("expected at least one run to draw, found none: run time_to_score.py")
    with styled_figure(4.2) as figure:
        axes = figure.subplots()
        ends = []
        for run, (style, colour) in zip(runs.values(), itertools.cycle(LOOKS), strict=False):
            x = [look["seconds"] / 60 for look in run["curve"]]
            y = [look["accuracy"] for look in run["curve"]]
            low, high = np.transpose([look["accuracy_ci95"] for look in run["curve"]])
            axes.fill_between(x, low, high, color=colour, alpha=0.08, linewidth=0)
            axes.plot(x, y, "o", linestyle=style, color=colour, markersize=4)
            ends.append((x[-1], y[-1], colour))
        if baseline:
            axes.axhline(baseline[0], color=GREY, linestyle="--", linewidth=1)
            words = f"best word counts, {baseline[1]:,} reviews: {baseline[0]:.3f} on test rows"
            axes.annotate(words, (0, baseline[0]), (4, 3), textcoords="offset points", color=GREY,
                          fontsize=8)  # fmt: skip
        low, high = axes.get_ylim()
        heights = spread([y for _, y, _ in ends], gap=(high - low) / 20)
        for name, (x, y, colour), height in zip(runs, ends, heights, strict=True):
            axes.annotate(name, (x, y), (1.02, height), textcoords=axes.get_yaxis_transform(),
                          va="center", color=colour, arrowprops={
                              "arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6})
        n = sorted({run["n_validation"] for run in runs.values()})
        axes.set(xlabel="minutes of training", ylabel="validation accuracy", xlim=(0, None))
        axes.set_title(f"Accuracy on {' / '.join(f'{count:,}' for count in n)} validation reviews, "
                       "with 95 % intervals")  # fmt: skip
        figure.supxlabel(provenance(record, runs.values()), x=0.01, ha="left", fontsize=7,
                         color=GREY)  # fmt: skip
        return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records")
    args = parser.parse_args()
    drawn = {"growth": growth, "time_to_score": lambda r: time_to_score(r, best_baseline(REPORTS))}
    for name, draw in drawn.items():
        path = args.records / f"{name}.json"
        if not path.is_file():
            print(f"expected a record {path}, found none: run python tests/bench/{name}.py")
            continue
        figure = draw(json.loads(path.read_text(encoding="utf-8")))
        # No software version in the file: the same record gives the same bytes.
        figure.savefig(path.with_suffix(".png"), dpi=DPI, metadata={"Software": None},
                       pil_kwargs={"optimize": True})  # fmt: skip
        print(f"wrote {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
