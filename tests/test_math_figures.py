"""The moving figures draw the numbers of `math_data`, and those are the formulas'."""

from __future__ import annotations

import io
import itertools
import math
import statistics
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from tutorkit import losses, math_data, optim
from tutorkit.math_figures import LossSurface, MaxLengthGradients, Schedules, SoftmaxTemperature
from tutorkit.plots import SKY, VERMILLION
from tutorkit.widgets import redraw

FIGURES = [LossSurface, SoftmaxTemperature, MaxLengthGradients, Schedules]


@pytest.fixture(autouse=True)
def nothing_left_open():
    yield
    assert plt.get_fignums() == []


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def extremes(drawing) -> list[dict[str, float]]:
    """Every combination of the first, the default and the last value of each control."""
    choices = {
        name: dict.fromkeys([control.values[0], control.default, control.values[-1]])
        for name, control in drawing.controls.items()
    }
    return [
        dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())
    ]


# The loss surface


def theta(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_head_loss_is_the_cross_entropy_of_two_logits():
    features, labels = math_data.head_points()
    for point in (theta(0, 0), theta(-2.4, 1.5), theta(3, -0.2)):
        logits = torch.stack([torch.zeros(40, dtype=torch.float64), features @ point], dim=1)
        expected = losses.cross_entropy(logits, labels.long())
        torch.testing.assert_close(math_data.head_loss(point), expected)
        free = point.clone().requires_grad_()
        math_data.head_loss(free).backward()
        torch.testing.assert_close(math_data.head_grad(point), free.grad)
    assert math_data.head_loss(theta(0, 0)).item() == pytest.approx(math.log(2))


def test_head_loss_takes_a_grid():
    grid = torch.randn(3, 4, 2, dtype=torch.float64)
    found = math_data.head_loss(grid)
    assert found.shape == (3, 4)
    torch.testing.assert_close(found[2, 1], math_data.head_loss(grid[2, 1]))


@pytest.mark.parametrize("penalty", [0.0, 0.01, 1.0])
def test_head_minimum_has_no_gradient_left(penalty):
    lowest = math_data.head_minimum(penalty)
    torch.testing.assert_close(
        math_data.head_grad(lowest) + penalty * lowest, theta(0, 0), rtol=0, atol=1e-12
    )


def test_the_valley_is_long():
    lowest = math_data.head_minimum()
    curvature = torch.autograd.functional.hessian(math_data.head_loss, lowest)
    low, high = torch.linalg.eigvalsh(curvature).tolist()
    assert low > 0 and high / low > 20
    (left, right), (bottom, top) = LossSurface.x_limits, LossSurface.y_limits
    for x, y in (lowest.tolist(), math_data.START):
        assert left < x < right and bottom < y < top


def torch_path(make, steps: int) -> torch.Tensor:
    point = theta(*math_data.START).requires_grad_()
    optimizer = make([point])
    path = [point.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        math_data.head_loss(point).backward()
        optimizer.step()
        path.append(point.detach().clone())
    return torch.stack(path)


@pytest.mark.parametrize("rate", [0.01, 0.5, 2.0])
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_paths_are_those_of_the_optimizers(rate, decay, momentum):
    adam = {"lr": rate, "weight_decay": decay, "betas": (momentum, 0.999)}
    sgd = {"lr": rate, "weight_decay": decay}
    expected = {
        "SGD": torch_path(lambda p: torch.optim.SGD(p, **sgd), 12),
        "SGD, momentum": torch_path(lambda p: optim.SGDW(p, momentum=momentum, **sgd), 12),
        "Adam, L2 penalty": torch_path(lambda p: torch.optim.Adam(p, **adam), 12),
        "AdamW": torch_path(lambda p: torch.optim.AdamW(p, **adam), 12),
    }
    found = math_data.descent_paths(rate, decay, momentum, steps=12)
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_the_default_shows_what_the_lesson_says():
    start = {name: control.default for name, control in LossSurface.controls.items()}
    paths = math_data.descent_paths(**start)
    across = paths["SGD"][:, 1].diff().sign()
    assert (across[1:] != across[:-1]).float().mean() > 0.7  # zigzags over the valley's floor
    behind = math_data.head_loss(paths["SGD"][20:]).mean()
    for name in ("SGD, momentum", "AdamW"):
        assert math_data.head_loss(paths[name][20:]).mean() < 0.5 * behind
    apart = (paths["AdamW"][-1] - paths["Adam, L2 penalty"][-1]).norm()
    assert apart > 0.5


def surface_words(drawing: LossSurface) -> dict[str, str]:
    words = [text.get_text() for text in drawing.figure.legends[0].get_texts()]
    return dict(word.split(": ") for word in words if ": " in word)


def test_loss_surface_draws_the_paths_and_their_losses():
    drawing = LossSurface()
    surface, over_time = drawing.figure.axes
    contours = surface.collections[0].get_paths()
    values = {"learning_rate": 0.2, "weight_decay": 0.3, "momentum": 0.9}
    drawing.update(**values)
    paths = math_data.descent_paths(**values)
    for line, curve, path in zip(drawing._paths, drawing._losses, paths.values(), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), path)
        np.testing.assert_allclose(curve.get_ydata(), math_data.head_loss(path))
        assert line in surface.lines and curve in over_time.lines
    np.testing.assert_allclose(drawing._penalised.get_xydata()[0], math_data.head_minimum(0.3))
    assert all(a is b for a, b in zip(contours, surface.collections[0].get_paths(), strict=True))
    late = math_data.head_loss(paths["AdamW"][-10:]).mean().item()
    assert surface_words(drawing)["AdamW"] == f"late loss {late:.3f}"


def test_loss_surface_says_which_paths_diverge_or_leave_the_frame():
    drawing = LossSurface()
    drawing.update(learning_rate=5.0, weight_decay=1.0)  # |1 - ηλ| = 4: θ grows fourfold a step
    words = surface_words(drawing)
    assert words["SGD"] == words["SGD, momentum"] == words["AdamW"] == "diverges"
    assert words["Adam, L2 penalty"].endswith(", leaves frame")
    drawing.update(learning_rate=1.0)
    assert surface_words(drawing)["SGD"].endswith(", above start")
    broken = np.full((3, 2), np.nan)
    assert drawing._fate(broken, np.array([1.0, np.inf, np.nan])) == "diverges"


def test_rules_are_told_apart_without_colour():
    for styles in (LossSurface.styles, Schedules.styles):
        looks = [(style["linestyle"], style.get("linewidth")) for style in styles.values()]
        assert len(set(looks)) == len(looks)


# Softmax and temperature


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("label", [0, 4])
def test_softmax_and_gradient_are_the_formulas(temperature, label):
    z = np.array(math_data.LOGITS)
    p = np.exp(z / temperature) / np.exp(z / temperature).sum()
    found = math_data.softmax_at(temperature, label)
    np.testing.assert_allclose(found.probabilities, p)
    np.testing.assert_allclose(found.gradient, (p - np.eye(5)[label]) / temperature, atol=1e-14)
    assert found.entropy == pytest.approx(-(p * np.log(p)).sum())
    free = torch.tensor(z, requires_grad=True)
    losses.cross_entropy(free[None] / temperature, torch.tensor([label])).backward()
    torch.testing.assert_close(found.gradient, free.grad)


def test_softmax_draws_bars_numbers_and_the_label():
    drawing = SoftmaxTemperature()
    drawing.update(temperature=0.5, label=3)
    softmax = math_data.softmax_at(0.5, 3)
    left, right = drawing.figure.axes
    for axes, values in ((left, softmax.probabilities), (right, softmax.gradient)):
        bars = axes.containers[0]
        np.testing.assert_array_equal([bar.get_height() for bar in bars], values)
        colours = [to_hex(bar.get_facecolor(), keep_alpha=False).upper() for bar in bars]
        assert colours == [SKY.upper()] * 3 + [VERMILLION] + [SKY.upper()]
        assert [bar.get_hatch() for bar in bars] == [None, None, None, "///", None]
    written = [text.get_text() for text in right.texts]
    assert written == [f"{g:+.2f}".replace("-", "−") for g in softmax.gradient.tolist()]
    assert left.get_title(loc="left") == f"T = 0.5: entropy {softmax.entropy:.2f} of 1.61 nats"


def test_softmax_frame_holds_every_bar():
    for values in extremes(SoftmaxTemperature):
        softmax = math_data.softmax_at(**values)
        assert softmax.gradient.abs().max() <= 10.0


# Max Length

LENGTH_SETTINGS = [(n, delta) for n in (2, 8, 20) for delta in (0.1, 1.0, 2.0)]


@pytest.mark.parametrize(("n", "delta"), LENGTH_SETTINGS)
def test_max_length_curves_are_the_formulas(n, delta):
    curves = math_data.max_length_curves(n, delta)
    length = curves.lengths
    assert length.min() > 0 and length.max() == 12
    np.testing.assert_allclose(curves.loss, -np.log(length / n), atol=1e-12)
    np.testing.assert_allclose(curves.gradient, -1 / length)
    np.testing.assert_allclose(curves.published, -(delta * length - n) / n, atol=1e-12)
    free = torch.tensor(length, requires_grad=True)
    losses.max_length_loss(free, n).backward()
    np.testing.assert_allclose(curves.gradient, free.grad)


@pytest.mark.parametrize(("n", "delta"), LENGTH_SETTINGS)
def test_the_published_gradient_is_right_at_one_length_only(n, delta):
    equal = math_data.length_of_agreement(n, delta)
    at = torch.tensor([equal], dtype=torch.float64)
    torch.testing.assert_close(
        losses.max_length_loss_grad(at, n),
        losses.max_length_loss_grad_as_published(at, n, delta),
    )
    length = torch.linspace(0.05, 3 * equal, 100_000, dtype=torch.float64)
    gap = losses.max_length_loss_grad_as_published(length, n, delta) - (
        losses.max_length_loss_grad(length, n)
    )
    crossings = length[1:][gap[1:].sign() != gap[:-1].sign()]
    assert len(crossings) == 1
    assert crossings.item() == pytest.approx(equal, rel=1e-3)


def test_descent_makes_a_length_grow_without_end():
    walk = math_data.max_length_descent(1000)
    assert walk[:3].tolist() == [1.0, 2.0, 2.5]  # H + 1/H
    assert (np.diff(walk) > 0).all()
    assert walk[-1] > math.sqrt(2 * 1000)  # d(H²)/dt = 2 along the flow, and more in steps


def test_max_length_draws_both_gradients_and_where_they_meet():
    drawing = MaxLengthGradients()
    left, right = drawing.figure.axes
    drawing.update(n=4, delta=2.0)
    curves = math_data.max_length_curves(4, 2.0)
    lines = {line.get_linestyle(): line for line in left.lines if len(line.get_xdata()) == 120}
    np.testing.assert_array_equal(lines["-"].get_ydata(), curves.gradient)
    np.testing.assert_array_equal(lines["--"].get_ydata(), curves.published)
    equal = (4 + math.sqrt(16 + 32)) / 4  # 2H² - 4H - 4 = 0
    assert drawing._agreed.get_xydata()[0] == pytest.approx([equal, -1 / equal])
    assert left.get_title(loc="left") == "Equal only at H = 2.7"
    assert drawing._opposite.get_width() == 2  # 4 - 2H is above 0 up to there
    np.testing.assert_array_equal(right.lines[0].get_ydata(), curves.loss)
    np.testing.assert_allclose(
        drawing._dots.get_ydata(), -np.log(drawing._dots.get_xdata() / 4), atol=2e-3
    )
    drawing.update(n=20, delta=0.1)
    assert left.get_title(loc="left") == "Equal only at H = 201.0, out of view"
    assert drawing._opposite.get_width() == 12


# Schedules


def test_schedules_are_the_formulas():
    curves = math_data.schedule_curves(0.1, 50)
    assert set(curves) == set(losses.SCHEDULES) == set(Schedules.styles)
    assert {len(curve) for curve in curves.values()} == {51}
    after = (20 - 5) / (50 - 5)
    assert curves["linear"][20] == pytest.approx(1 - after)
    assert curves["cosine"][20] == pytest.approx((1 + math.cos(math.pi * after)) / 2)
    assert curves["constant"][4:] == [1.0] * 47
    assert curves["slanted_triangular"][20] == pytest.approx((1 + (1 - after) * 31) / 32)
    assert curves["linear"][1] == pytest.approx(2 / 5)
    assert curves["slanted_triangular"][0] == curves["slanted_triangular"][50] == 1 / 32


def test_schedules_draw_every_kind():
    drawing = Schedules()
    (axes,) = drawing.figure.axes
    drawing.update(warmup_share=0.3, total=150)
    expected = math_data.schedule_curves(0.3, 150)
    found = {line.get_label().replace(" ", "_"): line.get_ydata() for line in axes.lines}
    assert {kind: list(values) for kind, values in found.items()} == expected
    assert drawing._warmup.get_width() == 45
    assert axes.get_title(loc="left") == "T = 150 steps, the first 45 of them warm-up"


# What all of them hold to


@pytest.mark.parametrize("figure", FIGURES)
def test_the_static_figure_is_the_first_picture(figure):
    drawing = figure()
    file = io.BytesIO()
    drawing.figure.savefig(file, dpi=drawing.figure.dpi)
    first = redraw(drawing)
    np.testing.assert_array_equal(pixels(file.getvalue()), pixels(first))
    assert pixels(first).shape[1] == 770  # 7 inches


@pytest.mark.parametrize("figure", FIGURES)
def test_every_control_moves_the_picture_and_back(figure):
    drawing = figure()
    first = redraw(drawing)
    artists = drawing.figure.findobj()
    for name, control in figure.controls.items():
        for value in {control.values[0], control.values[-1]} - {control.default}:
            moved = redraw(drawing, **{name: value})
            assert drawing.values[name] == value
            assert moved != first
            assert moved == redraw(figure(), **{name: value})  # not a trace of the pictures before
        assert redraw(drawing, **{name: control.default}) == first
    assert drawing.figure.findobj() == artists  # moved, not rebuilt


@pytest.mark.parametrize("figure", FIGURES)
def test_unknown_controls_and_values_are_named(figure):
    drawing = figure()
    name, control = next(iter(figure.controls.items()))
    with pytest.raises(ValueError, match=rf"expected controls among {name}.+found 'speed'"):
        drawing.update(speed=1)
    with pytest.raises(ValueError, match=rf"{control.label}: expected one of .+found 0.123"):
        drawing.update(**{name: 0.123})
    assert drawing.values == {name: c.default for name, c in figure.controls.items()}


def words_of(figure) -> list[Text]:
    """Every text of a figure that is drawn."""
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    return [text for text in texts if text.get_text().strip()]


@pytest.mark.parametrize("figure", FIGURES)
def test_no_words_overlap_or_leave_the_figure(figure):
    drawing = figure()
    for values in extremes(drawing):
        redraw(drawing, **values)
        frame = drawing.figure.bbox
        boxes = [(text.get_text(), text.get_window_extent()) for text in words_of(drawing.figure)]
        assert len(boxes) > 15
        for word, box in boxes:
            assert box.x0 >= 0 and box.x1 <= frame.width, (values, word)
            assert box.y0 >= 0 and box.y1 <= frame.height, (values, word)
        for (word, box), (other, second) in itertools.combinations(boxes, 2):
            assert not box.overlaps(second), (values, word, other)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_slider_is_answered_within_100_ms(figure):
    drawing = figure()
    redraw(drawing)
    name, control = next(iter(figure.controls.items()))
    seconds = []
    for value in (control.values * 4)[:7]:
        start = time.thread_time()  # what else runs on the machine must not fail the test
        redraw(drawing, **{name: value})
        seconds.append(time.thread_time() - start)
    assert statistics.median(seconds) <= 0.1
