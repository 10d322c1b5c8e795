"""Adversarial training: lower the loss of the worst texts nearby, not of the texts alone.

Words cannot be moved a little, their embeddings can. With x the word embeddings of a text (T, D):

    FGM     (1-w) ℓ(x) + w ℓ(x + δ)      δ one step along ∂ℓ/∂x            Miyato et al. 2017
    PGD     ℓ(x + δ)                     δ after K steps, each projected   Madry et al. 2018
    FreeLB  1/K Σ_k ℓ(x + δ_k)           all K steps of the ascent         Zhu et al. 2020
    VAT     ℓ(x) + λ KL(p(x) ‖ p(x+δ))   δ the largest change of p         Miyato et al. 2018

Each is an objective for `tutorkit.training.fit`. Three decisions hold for all four:

- **The radius ε is a share of a word.** ‖δ‖₂, over all T × D entries of a row, is at most ε times
  the mean norm of the embeddings of its tokens: 0.5 may move one token by half its length, or T
  tokens by 0.5/√T of it each. So one ε means the same for every model, and a model does not become
  "robust" by growing its embeddings (which Miyato et al. rule out by normalising them). With 0.5,
  pretrained `minilm` was still at the constant answer after 250 steps of FGM or FreeLB; with 0.2
  and less it learned, with 0.1 to about the loss of 0.05 (`tutorkit.studies.adversarial`).
- **δ is 0 on padding**, and is added to what the word embeddings' module returns
  (`tutorkit.neighbourhood`): no weight is touched.
- **All passes over a batch use the same dropout masks**: otherwise each step would look for the
  worst change of another network than the one that is then trained (Zhu et al., section 3.3), and
  VAT's divergence would not be 0 at δ = 0. Given the masks, rows are independent of each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tutorkit.losses import (
    cross_entropy,
    distillation_loss,
    fgm_perturbation,
    pgd_perturbation,
    project,
)
from tutorkit.neighbourhood import Neighbourhood, finite
from tutorkit.objectives import Backward


@dataclass(frozen=True)
class Passes:
    """How often one step goes through the model; plain training: 1 forward, 1 backward."""

    forward: int
    backward: int  # to all weights
    inner_backward: int = 0  # to the embeddings only, which saves the weights' gradients


@dataclass(frozen=True)
class FGM:
    """Fast gradient method: (1-w) ℓ(x) + w ℓ(x + δ) with δ = ε g/‖g‖, g = ∂ℓ/∂x.

    The clean pass gives both its share of the weights' gradients and g, so g costs nothing more.

    Source: Miyato, Dai & Goodfellow 2017, "Adversarial Training Methods for Semi-Supervised Text
    Classification", equations 5 and 6. They add the two losses; the mean, as in Goodfellow et al.
    2015, section 6, differs by a factor and keeps the loss comparable with plain training's.
    """

    epsilon: float = 0.1  # radius, as a share of the mean norm of a row's word embeddings
    weight: float = 0.5  # w, of the perturbed texts

    def __post_init__(self):
        _check(self, at_least_0=["epsilon"])
        if not 0 < self.weight < 1:
            raise ValueError(f"weight: expected a number between 0 and 1, found {self.weight!r}: "
                             "for perturbed texts alone take PGD with steps=1")

    @property
    def passes(self) -> Passes:
        return Passes(forward=2, backward=2)

    def __call__(
        self, model: torch.nn.Module, batch: dict[str, Tensor], backward: Backward
    ) -> Tensor:
        near, labels = Neighbourhood(model, batch), batch["labels"]
        at = near.zeros().requires_grad_()
        clean = (1 - self.weight) * cross_entropy(near.logits(at), labels, "sum")
        backward(clean)
        worst = fgm_perturbation(finite(at.grad), self.epsilon)
        moved = self.weight * cross_entropy(near.logits(worst, last=True), labels, "sum")
        backward(moved)
        return (clean + moved).detach()


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent: (1-w) ℓ(x) + w ℓ(x + δ), by default ℓ(x + δ) alone.

        δ ← Π_ε(δ + α g/‖g‖),  g = ∂ℓ/∂x at x + δ,     K times from δ = 0

    Source: Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks",
    section 2.1; with the 2-norm of a text's embeddings instead of the largest change of a pixel.
    """

    epsilon: float = 0.1  # radius, as a share of the mean norm of a row's word embeddings
    step_size: float = 0.05  # α, in the same unit
    steps: int = 3  # K
    weight: float = 1.0  # w, of the perturbed texts

    def __post_init__(self):
        _check(self, at_least_0=["epsilon"], above_0=["step_size"], counts=["steps"])
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight: expected a number above 0 and up to 1, found "
                             f"{self.weight!r}")

    @property
    def passes(self) -> Passes:
        trained = 1 if self.weight == 1 else 2
        return Passes(self.steps + trained, trained, inner_backward=self.steps)

    def worst(self, near: Neighbourhood, labels: Tensor) -> Tensor:
        """The change after K steps, (B, T, D) in units of `near`: what it adds is `near.delta`."""

        def gradient(at: Tensor) -> Tensor:
            return near.gradient(lambda z: cross_entropy(z, labels, "sum"), at)

        return pgd_perturbation(gradient, near.zeros(), self.epsilon, self.step_size, self.steps)

    def __call__(
        self, model: torch.nn.Module, batch: dict[str, Tensor], backward: Backward
    ) -> Tensor:
        near, labels = Neighbourhood(model, batch), batch["labels"]
        worst, total = self.worst(near, labels), 0.0
        if self.weight < 1:
            clean = (1 - self.weight) * cross_entropy(near.logits(near.zeros()), labels, "sum")
            backward(clean)
            total = clean.detach()
        moved = self.weight * cross_entropy(near.logits(worst, last=True), labels, "sum")
        backward(moved)
        return total + moved.detach()


@dataclass(frozen=True)
class FreeLB:
    """Free large-batch training: the weights learn from every step of the ascent, 1/K from each.

        δ_1 uniform in the ball's cube,  δ_{k+1} = Π_ε(δ_k + α g_k/‖g_k‖),  loss 1/K Σ_k ℓ(x + δ_k)

    One backward pass gives both the weights' gradients and g_k: K passes in all, where PGD with
    the same number of texts to learn from takes twice as many.

    Source: Zhu et al. 2020, "FreeLB: Enhanced Adversarial Training for Natural Language
    Understanding", algorithm 1.
    """

    epsilon: float = 0.1  # radius, as a share of the mean norm of a row's word embeddings
    step_size: float = 0.05  # α, in the same unit
    steps: int = 3  # K
    random_start: bool = True  # False: δ_1 = 0, the clean text is the first of the K

    def __post_init__(self):
        _check(self, at_least_0=["epsilon"], above_0=["step_size"], counts=["steps"])

    @property
    def passes(self) -> Passes:
        return Passes(forward=self.steps, backward=self.steps)

    def __call__(
        self, model: torch.nn.Module, batch: dict[str, Tensor], backward: Backward
    ) -> Tensor:
        near, total = Neighbourhood(model, batch), 0.0
        at = near.zeros()
        if self.random_start:
            # Uniform in [-ε, ε]/√(entries of the row), so its norm is at most ε.
            at = near.real * (2 * torch.rand_like(at) - 1) * self.epsilon / near.entries.sqrt()
        for k in range(1, self.steps + 1):
            at = at.detach().requires_grad_()
            logits = near.logits(at, last=k == self.steps)
            loss = cross_entropy(logits, batch["labels"], "sum") / self.steps
            backward(loss)
            total = total + loss.detach()
            if k < self.steps:
                step = fgm_perturbation(finite(at.grad), self.step_size)
                at = project(at.detach() + step, self.epsilon)
        return total


@dataclass(frozen=True)
class VAT:
    """Virtual adversarial training: ℓ(x) + λ KL(p(x) ‖ p(x + δ)), δ where p changes most.

    The divergence needs no label: a row with label -100 (`tutorkit.unlabelled`) takes part in it
    alone. Near δ = 0 it is ½ δᵀHδ, so δ is ε times H's first eigenvector, which power iteration
    finds from a random d: Hd ≈ 1/ξ · ∂KL/∂δ at δ = ξd, then d ← Hd/‖Hd‖. With two classes H has
    rank one and a single iteration is enough. p(x) is a constant: only p(x + δ) is pulled.

    Both terms are sums over the rows of a step, divided by all of them. Where a share s of the
    rows has a label, the papers' λ, which stands beside the mean over labelled rows, is weight / s.

    Source: Miyato et al. 2018, "Virtual Adversarial Training: A Regularization Method for
    Supervised and Semi-Supervised Learning", sections 3.2 and 3.3; on embeddings: Miyato, Dai &
    Goodfellow 2017, equations 7 and 8.
    """

    epsilon: float = 0.1  # radius, as a share of the mean norm of a row's word embeddings
    weight: float = 1.0  # λ, of the divergence
    iterations: int = 1  # of the power method
    xi: float = 0.1  # ξ, the length of the trial step, in the unit of ε

    def __post_init__(self):
        _check(self, at_least_0=["epsilon", "weight"], above_0=["xi"], counts=["iterations"])

    @property
    def passes(self) -> Passes:
        return Passes(self.iterations + 2, backward=2, inner_backward=self.iterations)

    def __call__(
        self, model: torch.nn.Module, batch: dict[str, Tensor], backward: Backward
    ) -> Tensor:
        near = Neighbourhood(model, batch)
        # Drawn before the first pass: between two of them it would change the dropout masks.
        direction = near.real * torch.randn_like(near.zeros())
        clean = near.logits(near.zeros())
        supervised = cross_entropy(clean, batch["labels"], "sum")
        backward(supervised)
        clean = clean.detach()

        def divergence(logits: Tensor) -> Tensor:
            return len(logits) * distillation_loss(logits, clean, temperature=1.0)

        for _ in range(self.iterations):
            found = near.gradient(divergence, fgm_perturbation(direction, self.xi))
            # In bf16 both outputs may be equal to the last bit: such a row keeps its direction.
            direction = found.where(found.flatten(1).any(dim=1)[:, None, None], direction)
        worst = fgm_perturbation(direction, self.epsilon)
        smooth = self.weight * divergence(near.logits(worst, last=True))
        backward(smooth)
        return (supervised + smooth).detach()


def _check(objective, at_least_0=(), above_0=(), counts=()) -> None:
    for name in (*at_least_0, *above_0):
        value, least = getattr(objective, name), "0 or above" if name in at_least_0 else "above 0"
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf or (value == 0 and name in above_0):
            raise ValueError(f"{name}: expected a number, {least}, found {value!r}")
    for name in counts:
        value = getattr(objective, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number from 1, found {value!r}")
