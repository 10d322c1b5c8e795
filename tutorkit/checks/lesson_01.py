"""The exercises of lesson 01: what each expects, its known mistakes, and its hints."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from tutorkit import losses
from tutorkit.checks.exercise import Exercise, Mistake
from tutorkit.checks.inputs import between, normal, whole
from tutorkit.losses import IGNORE_INDEX


def _logits_and_labels(generator: Generator) -> tuple[Tensor, Tensor]:
    rows, classes = whole(generator, 2, 6), whole(generator, 3, 5)
    logits = normal(generator, rows, classes, scale=2)
    seen = classes - whole(generator, 0, 1)  # a batch need not hold the last class
    return logits, torch.randint(seen, (rows,), generator=generator)


def _onehot(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype)


# 1. The risk from the means of batches


def risk_from_batches(batch_means: Tensor, batch_sizes: Tensor) -> Tensor:
    return (batch_means * batch_sizes).sum() / batch_sizes.sum()


def _batches(generator: Generator) -> tuple[Tensor, Tensor]:
    count, size = whole(generator, 2, 5), whole(generator, 6, 12)
    sizes = torch.full((count,), size)
    sizes[-1] = whole(generator, 1, size - 1)  # the last batch is short
    return normal(generator, count).exp(), sizes


risk_from_batches = Exercise(
    solution=risk_from_batches,
    inputs=_batches,
    tolerance=1e-6,  # whole numbers divided by each other are float32, and right all the same
    mistakes=(
        Mistake(
            "this is the mean of the batches' means: a row of the short last batch weighs more "
            "than the others. Weigh each mean by its rows",
            lambda batch_means, batch_sizes: batch_means.mean(),
        ),
        Mistake(
            "this is the sum of all losses; the risk is their mean over all rows",
            lambda batch_means, batch_sizes: (batch_means * batch_sizes).sum(),
        ),
        Mistake(
            "the weighted sum is divided by the number of batches; divide by the number of rows",
            lambda batch_means, batch_sizes: (batch_means * batch_sizes).mean(),
        ),
        Mistake(
            "this is the sum of the batches' means; weigh each by its rows, divide by all rows",
            lambda batch_means, batch_sizes: batch_means.sum(),
        ),
    ),
    hints=(
        "A batch's mean times its size is the sum of its losses.",
        "Add these sums over the batches; how many rows are there in all?",
        "`(batch_means * batch_sizes).sum()`, divided by `batch_sizes.sum()`.",
    ),
)

# 2. The gradient of the cross-entropy


def cross_entropy_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    return losses.cross_entropy_grad(logits, labels)


cross_entropy_gradient = Exercise(
    solution=cross_entropy_gradient,
    inputs=_logits_and_labels,
    mistakes=(
        Mistake(
            "this is the gradient of the sum over the batch; the loss is the mean, so divide by N",
            lambda logits, labels: torch.softmax(logits, 1) - _onehot(logits, labels),
        ),
        Mistake(
            "the sign is turned round: this is (y - p) / N, which climbs the loss",
            lambda logits, labels: -losses.cross_entropy_grad(logits, labels),
        ),
        Mistake(
            "this is p / N: the label is missing, subtract the one-hot row of y",
            lambda logits, labels: torch.softmax(logits, 1) / len(logits),
        ),
        Mistake(
            "the softmax runs over the rows of the batch; it belongs over the classes of each row "
            "(dim=1)",
            lambda logits, labels: (
                (torch.softmax(logits, 0) - _onehot(logits, labels)) / len(logits)
            ),
        ),
        Mistake(
            "divided by the number of entries, N times C; the mean is over the N rows only",
            lambda logits, labels: losses.cross_entropy_grad(logits, labels) / logits.shape[1],
        ),
    ),
    hints=(
        "Per row the gradient is p - y, with y as a row of zeros and a single one.",
        "`torch.softmax(logits, dim=1)` is p; `torch.nn.functional.one_hot` makes y.",
        "The loss is a mean over N rows, so each row's gradient is divided by N.",
    ),
)

# 3. Label smoothing


def _smoothing_inputs(generator: Generator) -> tuple[Tensor, Tensor, float]:
    return *_logits_and_labels(generator), between(generator, 0.05, 0.4)


def _with_targets(targets):
    """The mean cross-entropy against the rows that `targets` makes."""

    def loss(logits, labels, smoothing):
        q = targets(_onehot(logits, labels), smoothing, logits.shape[1])
        return -(q * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()

    return loss


def smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return losses.label_smoothing_cross_entropy(logits, labels, smoothing)


smoothed_loss = Exercise(
    solution=smoothed_loss,
    inputs=_smoothing_inputs,
    # `(1 - smoothing) * onehot` is float32 where onehot is of whole numbers, and right all the same
    tolerance=1e-6,
    mistakes=(
        Mistake(
            "your loss is the sum over the batch; the formula has the mean",
            lambda logits, labels, smoothing: losses.label_smoothing_cross_entropy(
                logits, labels, smoothing, "sum"
            ),
        ),
        Mistake(
            "the true class got 1 - ε alone; the share ε is spread over all C classes, also the "
            "true one: q_y = 1 - ε + ε/C",
            _with_targets(lambda y, e, classes: (1 - e) * y + e / classes * (1 - y)),
        ),
        Mistake(
            "the share ε is spread over the C - 1 other classes; the formula spreads it over all C",
            _with_targets(lambda y, e, classes: (1 - e) * y + e / (classes - 1) * (1 - y)),
        ),
        Mistake(
            "the minus is missing: log p is below 0, the loss above",
            lambda logits, labels, smoothing: (
                -losses.label_smoothing_cross_entropy(logits, labels, smoothing)
            ),
        ),
        Mistake(
            "this is the cross-entropy without smoothing",
            lambda logits, labels, smoothing: losses.cross_entropy(logits, labels),
        ),
        Mistake(
            "ε and 1 - ε have changed places: most of the weight stays on the true class",
            _with_targets(lambda y, e, classes: e * y + (1 - e) / classes),
        ),
        Mistake(
            "divided by N times C: sum over the classes first, then take the mean over the rows",
            lambda logits, labels, smoothing: (
                losses.label_smoothing_cross_entropy(logits, labels, smoothing) / logits.shape[1]
            ),
        ),
    ),
    hints=(
        "First make q, (N, C): 1 - ε at the label, and then ε/C on top of every class.",
        "`torch.log_softmax(logits, dim=1)` is log p without overflow.",
        "`-(q * log_p).sum(dim=1)` is one loss a row; the result is their mean.",
    ),
)

# 4. The mean over what counts


def _losses_and_labels(generator: Generator) -> tuple[Tensor, Tensor]:
    batch, tokens = whole(generator, 2, 4), whole(generator, 3, 6)
    labels = torch.randint(5, (batch, tokens), generator=generator)
    # Every third time nothing is left at all.
    share = 1.0 if whole(generator, 0, 2) == 0 else 0.4
    ignored = torch.rand(batch, tokens, generator=generator) < share
    labels[ignored] = IGNORE_INDEX
    return normal(generator, batch, tokens).exp(), labels


def mean_over_labelled(losses: Tensor, labels: Tensor) -> Tensor:
    kept = labels != IGNORE_INDEX
    return (losses * kept).sum() / kept.sum().clamp(min=1)


def _mean_of_rows(losses: Tensor, labels: Tensor) -> Tensor:
    kept = labels != IGNORE_INDEX
    return ((losses * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)).mean()


mean_over_labelled = Exercise(
    solution=mean_over_labelled,
    inputs=_losses_and_labels,
    mistakes=(
        Mistake(
            "this divides by all tokens, the ignored ones included; divide by those that count",
            lambda losses, labels: (losses * (labels != IGNORE_INDEX)).mean(),
        ),
        Mistake(
            "where every label is -100 this is 0/0, and one NaN spoils every weight; return 0",
            lambda losses, labels: losses[labels != IGNORE_INDEX].mean(),
        ),
        Mistake(
            "this is the mean of the rows' means: a token of a row with few labels weighs more. "
            "Take one mean over all tokens that count",
            _mean_of_rows,
        ),
        Mistake(
            "this is the mean over all tokens; those with the label -100 must not count",
            lambda losses, labels: losses.mean(),
        ),
        Mistake(
            "your loss is the sum; the formula has the mean over the tokens that count",
            lambda losses, labels: (losses * (labels != IGNORE_INDEX)).sum(),
        ),
    ),
    hints=(
        "`labels != -100` is a mask of the tokens that count, (B, T).",
        "Sum the losses under the mask and divide by the number of ones in it.",
        "When the mask has no ones the sum is 0: `.clamp(min=1)` keeps the division possible.",
    ),
)

# 5. AdamW


def adamw(theta, grad, first, second, step, learning_rate, weight_decay):
    state = losses.AdamState(first, second, step - 1)
    theta, state = losses.adamw_step(
        theta, grad, state, learning_rate=learning_rate, weight_decay=weight_decay
    )
    return theta, state.first, state.second


def _adamw_inputs(generator: Generator) -> tuple:
    size, step = whole(generator, 3, 6), whole(generator, 1, 4)
    # From large gradients to some as small as ε, where it matters in which place ε stands.
    scales = 10.0 ** torch.linspace(1, -8, size, dtype=torch.float64)
    grad, first = (normal(generator, size) * scales for _ in range(2))
    second = (normal(generator, size) * scales) ** 2
    if step == 1:
        first, second = torch.zeros_like(first), torch.zeros_like(second)
    return (normal(generator, size), grad, first, second, step,
            between(generator, 0.05, 0.2), between(generator, 0.1, 0.5))  # fmt: skip


def _adamw_but(
    corrected: bool = True,
    eps_inside: bool = False,
    eps_first: bool = False,
    rooted: bool = True,
    through_gradient: bool = False,
    scaled: bool = True,
    decayed: bool = True,
    shift: int = 0,
):
    """AdamW with one thing wrong."""

    def step_function(theta, grad, first, second, step, learning_rate, weight_decay):
        if through_gradient:
            grad = grad + weight_decay * theta
        first = 0.9 * first + 0.1 * grad
        second = 0.999 * second + 0.001 * grad**2
        t = torch.tensor(step + shift, dtype=theta.dtype)  # a tensor divides by 0 without an error
        m = first / (1 - 0.9**t) if corrected else first
        v = second / (1 - 0.999**t) if corrected else second
        if eps_inside:
            root = (v + 1e-8).sqrt()
        elif eps_first:  # ε added before the correction
            root = (second.sqrt() + 1e-8) / (1 - 0.999**t) ** 0.5
        else:
            root = (v.sqrt() if rooted else v) + 1e-8
        new = theta - learning_rate * m / root
        if decayed and not through_gradient:
            new = new - (learning_rate if scaled else 1) * weight_decay * theta
        return new, first, second

    return step_function


def _adamw_returning_corrected(theta, grad, first, second, step, learning_rate, weight_decay):
    new, first, second = _adamw_but()(theta, grad, first, second, step, learning_rate, weight_decay)
    return new, first / (1 - 0.9**step), second / (1 - 0.999**step)


def _adamw_decaying_last(theta, grad, first, second, step, learning_rate, weight_decay):
    new, first, second = _adamw_but(decayed=False)(
        theta, grad, first, second, step, learning_rate, weight_decay
    )
    return new * (1 - learning_rate * weight_decay), first, second


adamw = Exercise(
    solution=adamw,
    inputs=_adamw_inputs,
    mistakes=(
        Mistake(
            "the bias corrections are missing: divide m by 1 - 0.9^t and v by 1 - 0.999^t",
            _adamw_but(corrected=False),
        ),
        Mistake(
            "the decay goes through the gradient: that is Adam with an L2 penalty. In AdamW the "
            "term ηλθ stays outside m and v",
            _adamw_but(through_gradient=True),
        ),
        Mistake("ε stands inside the root; it is added to √v̂", _adamw_but(eps_inside=True)),
        Mistake(
            "ε is added before v is corrected; correct v first, then take the root, then add ε",
            _adamw_but(eps_first=True),
        ),
        Mistake(
            "the decay is not scaled by the learning rate: subtract ηλθ, not λθ",
            _adamw_but(scaled=False),
        ),
        Mistake("the weight decay is missing: subtract ηλθ", _adamw_but(decayed=False)),
        Mistake(
            "the bias corrections count one step too many: `step` is t itself, 1 at the first step",
            _adamw_but(shift=1),
        ),
        Mistake(
            "the bias corrections count one step too few, which divides by 0 at the first: `step` "
            "is t itself, 1 at the first step",
            _adamw_but(shift=-1),
        ),
        Mistake(
            "the root is missing: m̂ is divided by √v̂ + ε, not by v̂ + ε",
            _adamw_but(rooted=False),
        ),
        Mistake(
            "m and v are returned corrected; the next step needs them as they are",
            _adamw_returning_corrected,
        ),
        Mistake(
            "the decay is taken of the new θ; the last term has the θ from before the step",
            _adamw_decaying_last,
        ),
    ),
    hints=(
        "Four lines of section 3: m, v, the two corrected ones, then θ.",
        "The corrected ones are used for θ only; return m and v uncorrected.",
        "θ - η m̂ / (√v̂ + 10⁻⁸) - η λ θ, with the θ from before the step in the last term.",
    ),
)

# 6. Clipping by the global norm


def clip_together(first: Tensor, second: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    clipped, _ = losses.clip_by_global_norm([first, second], max_norm)
    return clipped[0], clipped[1]


def _two_gradients(generator: Generator) -> tuple[Tensor, Tensor, float]:
    first, second = normal(generator, 2, 3), normal(generator, whole(generator, 2, 4))
    norm = float(losses.global_norm([first, second]))
    # Sometimes above the bound, sometimes below it.
    return first, second, norm * (0.4 if whole(generator, 0, 2) else 1.7)


def _joint(first: Tensor, second: Tensor) -> Tensor:
    return (first.pow(2).sum() + second.pow(2).sum()).sqrt()


clip_together = Exercise(
    solution=clip_together,
    inputs=_two_gradients,
    tolerance=1e-5,  # torch adds 1e-6 to the norm, the paper does not: both are right
    mistakes=(
        Mistake(
            "each tensor is clipped by its own norm, which turns the step's direction; use one "
            "norm of both together and one factor",
            lambda first, second, max_norm: tuple(
                g * min(1.0, max_norm / float(g.norm())) for g in (first, second)
            ),
        ),
        Mistake(
            "a gradient below the bound was scaled up to it; the factor is at most 1",
            lambda first, second, max_norm: tuple(
                g * max_norm / _joint(first, second) for g in (first, second)
            ),
        ),
        Mistake(
            "the entries are cut one by one, which turns the step's direction; scale all by one "
            "factor",
            lambda first, second, max_norm: tuple(
                g.clamp(-max_norm, max_norm) for g in (first, second)
            ),
        ),
        Mistake(
            "the norms of the two tensors were added; the joint norm is √(‖g₁‖² + ‖g₂‖²)",
            lambda first, second, max_norm: tuple(
                g * min(1.0, max_norm / float(first.norm() + second.norm()))
                for g in (first, second)
            ),
        ),
        Mistake(
            "the root is missing: the joint norm is √(‖g₁‖² + ‖g₂‖²)",
            lambda first, second, max_norm: tuple(
                g * min(1.0, max_norm / float(_joint(first, second)) ** 2) for g in (first, second)
            ),
        ),
    ),
    hints=(
        "Think of both gradients as one long vector and take its length.",
        "The length is the root of the sum of all squares, of both tensors.",
        "One factor for both: `min(1, max_norm / length)`.",
    ),
)

# 7. The true gradient of the "Max Length" loss


def max_length_gradient(lengths: Tensor) -> Tensor:
    return losses.max_length_loss_grad(lengths)


def _some_lengths(generator: Generator) -> tuple[Tensor]:
    size = whole(generator, 2, 6)
    return (1 + 20 * torch.rand(size, generator=generator, dtype=torch.float64),)


max_length_gradient = Exercise(
    solution=max_length_gradient,
    inputs=_some_lengths,
    mistakes=(
        Mistake(
            "this is the published formula with δ = 1; differentiate -log(H/n) yourself",
            lambda lengths: losses.max_length_loss_grad_as_published(lengths),
        ),
        Mistake(
            "the sign is turned round: the loss has a minus before the logarithm",
            lambda lengths: 1 / lengths,
        ),
        Mistake(
            "n does not belong here: log(H/n) = log H - log n, and log n is a constant",
            lambda lengths: -len(lengths) / lengths,
        ),
        Mistake(
            "the loss is a sum, not a mean: no 1/n in the gradient",
            lambda lengths: -1 / (len(lengths) * lengths),
        ),
        Mistake(
            "this is one number for all; the gradient has one entry for each length",
            lambda lengths: (-1 / lengths).sum(),
        ),
    ),
    hints=(
        "H_i stands in one term of the sum only: -log(H_i / n).",
        "log(H_i / n) = log H_i - log n. Which part depends on H_i?",
        "d/dH log H = 1/H.",
    ),
)

# 8. The gradient of distillation


def distillation_gradient(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> Tensor:
    return losses.distillation_grad(student_logits, teacher_logits, temperature=temperature)


def _two_models(generator: Generator) -> tuple[Tensor, Tensor, float]:
    rows, classes = whole(generator, 2, 5), whole(generator, 3, 5)
    student, teacher = (normal(generator, rows, classes, scale=3) for _ in range(2))
    return student, teacher, between(generator, 1.5, 5)


def _distillation_times(factor):
    """The right gradient times a factor that depends on T, N and C."""
    right = distillation_gradient  # the function: the name means the exercise later
    return lambda student_logits, teacher_logits, temperature: (
        right(student_logits, teacher_logits, temperature)
        * factor(temperature, *student_logits.shape)
    )


distillation_gradient = Exercise(
    solution=distillation_gradient,
    inputs=_two_models,
    mistakes=(
        Mistake(
            "the factor T² is missing: without it a high temperature switches the teacher off",
            _distillation_times(lambda t, rows, classes: 1 / t**2),
        ),
        Mistake(
            "the chain rule's 1/T is missing: z enters as z/T, so T² becomes T",
            _distillation_times(lambda t, rows, classes: t),
        ),
        Mistake(
            "this is the difference of the probabilities without the factor T: T² from the loss, "
            "times 1/T from the chain rule",
            _distillation_times(lambda t, rows, classes: 1 / t),
        ),
        Mistake(
            "the sign is turned round: the student's probabilities come first",
            _distillation_times(lambda t, rows, classes: -1),
        ),
        Mistake(
            "this is the gradient of the sum over the batch; the formula has the mean",
            _distillation_times(lambda t, rows, classes: rows),
        ),
        Mistake(
            "divided by the number of entries, N times C, as KL functions with the reduction mean "
            "do; the mean is over the N rows only",
            _distillation_times(lambda t, rows, classes: 1 / classes),
        ),
        Mistake(
            "the softmax runs over the rows of the batch; it belongs over the classes (dim=1)",
            lambda student_logits, teacher_logits, temperature: (
                temperature
                * (
                    torch.softmax(student_logits / temperature, 0)
                    - torch.softmax(teacher_logits / temperature, 0)
                )
                / len(student_logits)
            ),
        ),
        Mistake(
            "the teacher is not softened: divide its logits by T as well",
            lambda student_logits, teacher_logits, temperature: (
                temperature
                * (
                    torch.softmax(student_logits / temperature, 1)
                    - torch.softmax(teacher_logits, 1)
                )
                / len(student_logits)
            ),
        ),
        Mistake(
            "the temperature is missing inside the softmax",
            lambda student_logits, teacher_logits, temperature: (
                temperature
                * (torch.softmax(student_logits, 1) - torch.softmax(teacher_logits, 1))
                / len(student_logits)
            ),
        ),
    ),
    hints=(
        "Soften both: `torch.softmax(logits / temperature, dim=1)`.",
        "With respect to z/T the gradient is student minus teacher, as for the cross-entropy.",
        "Then T² from the loss, 1/T from z/T, and 1/N from the mean.",
    ),
)

# 9. Accuracy from a table of recalls


def _recalls(generator: Generator) -> tuple[Tensor, Tensor]:
    classes = whole(generator, 2, 5)
    recalls = torch.rand(classes, generator=generator, dtype=torch.float64)
    return recalls, torch.randint(10, 1000, (classes,), generator=generator)


def accuracy_from_recalls(recalls: Tensor, supports: Tensor) -> Tensor:
    return (recalls * supports).sum() / supports.sum()


accuracy_from_recalls = Exercise(
    solution=accuracy_from_recalls,
    inputs=_recalls,
    tolerance=1e-6,  # as in the first exercise
    mistakes=(
        Mistake(
            "this is the plain mean, macro recall; a large class counts for more in the accuracy",
            lambda recalls, supports: recalls.mean(),
        ),
        Mistake(
            "this is the number of correct rows; divide by the number of all rows",
            lambda recalls, supports: (recalls * supports).sum(),
        ),
        Mistake(
            "the weighted sum is divided by the number of classes; divide by the number of rows",
            lambda recalls, supports: (recalls * supports).mean(),
        ),
    ),
    hints=(
        "Recall times support is the number of rows of that class that were right.",
        "Add them up over the classes and divide by all rows.",
    ),
)
