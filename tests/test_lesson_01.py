"""The exercises of lesson 01: right answers in other styles pass, wrong ones that look right fail.

tests/test_checks.py holds every exercise's solution and listed mistakes; here are answers that are
listed nowhere.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lesson_scripts import cases

from tutorkit.checks import CheckFailed, lesson_01


def by_shares(batch_means, batch_sizes):
    return (batch_sizes / batch_sizes.sum() * batch_means).sum()


def by_loop(batch_means, batch_sizes):
    rows = [m for m, n in zip(batch_means, batch_sizes, strict=True) for _ in range(int(n))]
    return torch.stack(rows).mean()


def by_autograd(logits, labels):
    leaf = logits.clone().requires_grad_(True)
    return torch.autograd.grad(F.cross_entropy(leaf, labels), leaf)[0]


def by_indexing(logits, labels):
    grad = torch.softmax(logits, dim=1)
    grad[torch.arange(len(labels)), labels] -= 1
    return grad / len(labels)


def torch_smoothing(logits, labels, smoothing):
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def torch_mean(losses, labels):
    chosen = losses[labels != -100]
    return chosen.mean() if len(chosen) else losses.sum() * 0


def torch_clip(first, second, max_norm):
    pair = [torch.nn.Parameter(g.clone()) for g in (first, second)]
    for parameter in pair:
        parameter.grad = parameter.detach().clone()
    torch.nn.utils.clip_grad_norm_(pair, max_norm)
    return pair[0].grad, pair[1].grad


def autograd_length(lengths):
    leaf = lengths.clone().requires_grad_(True)
    loss = -(leaf / len(leaf)).log().sum()
    return torch.autograd.grad(loss, leaf)[0]


def autograd_distillation(student_logits, teacher_logits, temperature):
    leaf = student_logits.clone().requires_grad_(True)
    log_q = F.log_softmax(leaf / temperature, dim=1)
    p = F.softmax(teacher_logits / temperature, dim=1)
    loss = temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
    return torch.autograd.grad(loss, leaf)[0]


def by_mean_of_correct(recalls, supports):
    return (recalls * (supports / supports.sum())).sum()


@pytest.mark.parametrize(("name", "answer"), [
    ("risk_from_batches", by_shares),
    ("risk_from_batches", by_loop),
    ("cross_entropy_gradient", by_autograd),
    ("cross_entropy_gradient", by_indexing),
    ("smoothed_loss", torch_smoothing),
    ("mean_over_labelled", torch_mean),
    ("clip_together", torch_clip),
    ("max_length_gradient", autograd_length),
    ("distillation_gradient", autograd_distillation),
    ("accuracy_from_recalls", by_mean_of_correct),
])  # fmt: skip
def test_a_right_answer_in_another_style_passes(name: str, answer: Callable, capsys) -> None:
    getattr(lesson_01, name).check(answer)
    assert capsys.readouterr().out == f"✓ {name}: right on 6 fresh inputs\n"


def without_the_number_of_classes(logits, labels):
    return (torch.softmax(logits, 1) - F.one_hot(labels)) / len(labels)


def by_seen_classes(logits, labels, smoothing):
    y = F.one_hot(labels, logits.shape[1])
    q = (1 - smoothing) * y + smoothing / (int(labels.max()) + 1)
    return -(q * torch.log_softmax(logits, 1)).sum(1).mean()


def of_the_first_row(losses, labels):
    kept = labels[0] != -100
    return (losses[0] * kept).sum() / kept.sum().clamp(min=1)


def rounded_counts(recalls, supports):
    return (recalls * supports).round().sum() / supports.sum()


def without_first_moment(theta, grad, first, second, step, learning_rate, weight_decay):
    second = 0.999 * second + 0.001 * grad**2
    root = (second / (1 - 0.999**step)).sqrt() + 1e-8
    return theta - learning_rate * (grad / root + weight_decay * theta), first, second


def clipped_a_little_too_far(first, second, max_norm):
    norm = (first.pow(2).sum() + second.pow(2).sum()).sqrt()
    factor = torch.clamp(max_norm / (1.001 * norm), max=1.0)
    return first * factor, second * factor


@pytest.mark.parametrize(("name", "answer", "message"), [
    ("cross_entropy_gradient", without_the_number_of_classes, "stopped with RuntimeError"),
    ("smoothed_loss", by_seen_classes, "The largest difference is"),
    ("mean_over_labelled", of_the_first_row, "The largest difference is"),
    ("accuracy_from_recalls", rounded_counts, "The largest difference is"),
    ("adamw", without_first_moment, "The largest difference is"),
    ("clip_together", clipped_a_little_too_far, "The largest difference is"),
])  # fmt: skip
def test_a_wrong_answer_that_is_listed_nowhere_is_refused(
    name: str, answer: Callable, message: str
) -> None:
    with pytest.raises(CheckFailed, match=message):
        getattr(lesson_01, name).check(answer)


def test_the_inputs_hold_what_answers_trip_over() -> None:
    logits = cases(lesson_01.cross_entropy_gradient)
    assert any(int(y.max()) + 1 < z.shape[1] for z, y in logits)  # the last class is missing
    kept = [(labels != -100).sum() for _, labels in cases(lesson_01.mean_over_labelled)]
    assert min(kept) == 0 < max(kept)
    steps = [case[4] for case in cases(lesson_01.adamw)]
    assert min(steps) == 1 < max(steps)
    norms = [(a.pow(2).sum() + b.pow(2).sum()).sqrt() / c
             for a, b, c in cases(lesson_01.clip_together)]  # fmt: skip
    assert min(norms) < 1 < max(norms)
    assert any(len(set(n.tolist())) > 1 for _, n in cases(lesson_01.risk_from_batches))
