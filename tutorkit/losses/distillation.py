"""Learning from a teacher: its softened probabilities say more than the label alone.

With temperature T, teacher logits v and student logits z:

    p^T_c = exp(z_c / T) / Σ_k exp(z_k / T)
    L = α T² · 1/N Σ_i KL(p^T(v_i) ‖ p^T(z_i)) + (1 - α) · cross-entropy(z, y)

    ∂L/∂z = α T (p^T(z) - p^T(v)) / N + (1 - α) (p(z) - onehot(y)) / N

The softened gradient is of size 1/T² (one 1/T from the chain rule, one from probabilities that lie
close together), hence the factor T²: without it, raising T would switch the teacher off. For T far
above the logits, T (p^T(z) - p^T(v)) → ((z - z̄) - (v - v̄)) / C: regression of centred logits.

Source: Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2,
equations 1 to 4. They use the cross-entropy with the teacher, which is the divergence plus the
teacher's entropy: another value, the same gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutorkit.losses.cross_entropy import cross_entropy, cross_entropy_grad

Logits = Float[Tensor, "rows classes"]
Labels = Int[Tensor, " rows"]


def distillation_loss(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Labels | None = None,
    temperature: float = 2.0,
    alpha: float | None = None,
) -> Float[Tensor, ""]:
    """The loss above, by log-softmax throughout, so that no probability underflows.

    Args:
        student_logits: (N, C) z.
        teacher_logits: (N, C) v; a constant, no gradient flows into it.
        labels: (N,) class numbers, `IGNORE_INDEX` where unknown; None: the teacher alone.
        temperature: T > 0.
        alpha: weight of the teacher in [0, 1]; None means 1 without labels and 0.5 with them.

    Returns:
        The loss in nats, a scalar; 0 for no rows.

    Raises:
        ValueError: shapes that differ, T not above 0, alpha outside [0, 1], or alpha below 1
            without labels.
    """
    alpha = _check(student_logits, teacher_logits, labels, temperature, alpha)
    log_p = torch.log_softmax(teacher_logits.detach() / temperature, dim=1)
    log_q = torch.log_softmax(student_logits / temperature, dim=1)
    soft = (log_p.exp() * (log_p - log_q)).sum() / max(1, len(student_logits))
    return _mix(soft, student_logits, labels, temperature, alpha)


def distillation_loss_naive(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Labels | None = None,
    temperature: float = 2.0,
    alpha: float | None = None,
) -> Float[Tensor, ""]:
    """With probabilities as equation 1 writes them. Args as in `distillation_loss`."""
    alpha = _check(student_logits, teacher_logits, labels, temperature, alpha)
    p = (teacher_logits.detach() / temperature).exp()
    q = (student_logits / temperature).exp()
    p, q = p / p.sum(dim=1, keepdim=True), q / q.sum(dim=1, keepdim=True)
    soft = (p * (p / q).log()).sum() / max(1, len(student_logits))
    return _mix(soft, student_logits, labels, temperature, alpha)


def distillation_grad(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Labels | None = None,
    temperature: float = 2.0,
    alpha: float | None = None,
) -> Logits:
    """∂L/∂z of `distillation_loss`, (N, C). Args and errors as there."""
    alpha = _check(student_logits, teacher_logits, labels, temperature, alpha)
    p = torch.softmax(teacher_logits / temperature, dim=1)
    q = torch.softmax(student_logits / temperature, dim=1)
    grad = alpha * temperature * (q - p) / max(1, len(student_logits))
    if labels is None:
        return grad
    return grad + (1 - alpha) * cross_entropy_grad(student_logits, labels)


def _mix(soft: Tensor, logits: Tensor, labels: Tensor | None, temperature: float, alpha: float):
    soft = alpha * temperature**2 * soft
    return soft if labels is None else soft + (1 - alpha) * cross_entropy(logits, labels)


def _check(
    student: Tensor, teacher: Tensor, labels: Tensor | None, temperature: float, alpha: float | None
) -> float:
    """Check the arguments; return alpha."""
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"expected student and teacher logits of one shape (N, C), found "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}: they must share their classes"
        )
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a number above 0, found {temperature}")
    if alpha is None:
        return 1.0 if labels is None else 0.5
    if not 0 <= alpha <= 1 or (labels is None and alpha < 1):
        raise ValueError(
            f"alpha: expected a number in [0, 1], and 1 where there are no labels, found {alpha}"
            f"{' without labels' if labels is None else ''}"
        )
    return alpha
