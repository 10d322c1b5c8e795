"""The optimizers of training: parameter groups, AdamW, SGD with decoupled weight decay.

    θ ← θ - η u - η λ θ

η is the learning rate, u the optimizer's direction (made from the gradient g), and the last term
is weight decay, kept apart from the gradient step: it does not pass through u.

Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithms 1 (SGDW) and
2 (AdamW). There only the schedule's factor scales the decay; here, as in torch, all of η does.
`tutorkit.losses.steps` has the same updates as plain functions.
"""

from __future__ import annotations

import torch

OPTIMIZERS = ("adamw", "sgd")


class SGDW(torch.optim.SGD):
    """SGD with momentum μ whose weight decay bypasses the momentum (Loshchilov & Hutter, alg. 1).

        m ← μ m + g          θ ← θ (1 - η λ) - η m

    `torch.optim.SGD` adds λθ to the gradient, so the decay passes through the momentum as well,
    which is an L2 penalty: m ← μ m + g + λθ. Without momentum, and in the first step, the two are
    the same update.
    """

    @torch.no_grad()
    def step(self, closure=None):
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * decay)
            group["weight_decay"] = 0.0
        loss = super().step(closure)
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        return loss


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Two groups of the parameters that train: with weight decay, and without.

    Biases and normalisation weights (everything with fewer than two dimensions) are left out of
    the decay: pulling a LayerNorm's scale to zero switches the layer off instead of simplifying it.

    Raises:
        ValueError: nothing trains.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("expected at least one parameter with requires_grad, found none: "
                         "everything is frozen, so there is nothing to train")
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    model: torch.nn.Module, name: str, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW (β = 0.9, 0.999; ε = 1e-8) or SGD (momentum 0.9), both with decoupled weight decay.

    Raises:
        ValueError: an unknown name, or nothing to train.
    """
    groups = parameter_groups(model, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, foreach=True)
    if name == "sgd":
        return SGDW(groups, lr=learning_rate, momentum=0.9)
    raise ValueError(f"optimizer: expected one of {OPTIMIZERS}, found {name!r}")
