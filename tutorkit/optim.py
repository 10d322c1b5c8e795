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

from tutorkit.models import parameter_depths

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


def parameter_groups(
    model: torch.nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:
    """The parameters that train, in groups: with weight decay or without, and one of each a layer.

    Biases and normalisation weights (everything with fewer than two dimensions) are left out of
    the decay: pulling a LayerNorm's scale to zero switches the layer off instead of simplifying it.

    With discriminative learning rates, a layer learns at `layer_decay` times the rate of the layer
    above it, the embeddings as if they were one layer more:

        η_{l-1} = ξ η_l        with ξ = layer_decay; 1 / 2.6 in the source

    Args:
        model: a `transformers` model, where `layer_decay` is not 1; else any module.
        weight_decay: λ.
        layer_decay: ξ; 1 is one rate for all.

    Returns:
        Groups for a torch optimizer; `lr_scale` is the group's share of the learning rate.

    Raises:
        ValueError: nothing trains.

    Source: Howard & Ruder 2018 (arXiv:1801.06146), section 3.2, eq. 2.
    """
    depths = {} if layer_decay == 1 else parameter_depths(model)
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            depth, decays = depths.get(name, 0), parameter.ndim >= 2
            new = {"params": [], "weight_decay": weight_decay if decays else 0.0,
                   "lr_scale": layer_decay**depth}  # fmt: skip
            groups.setdefault((depth, not decays), new)["params"].append(parameter)
    if not groups:
        raise ValueError("expected at least one parameter with requires_grad, found none: "
                         "everything is frozen, so there is nothing to train")
    return [groups[key] for key in sorted(groups)]


def make_optimizer(
    model: torch.nn.Module, name: str, learning_rate: float, weight_decay: float,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW (β = 0.9, 0.999; ε = 1e-8) or SGD (momentum 0.9), both with decoupled weight decay.

    Raises:
        ValueError: an unknown name, or nothing to train.
    """
    groups = parameter_groups(model, weight_decay, layer_decay)
    if name == "adamw":
        # One kernel for all tensors: a fifth of the time of one operation after the other.
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    if name == "sgd":
        return SGDW(groups, lr=learning_rate, momentum=0.9)
    raise ValueError(f"optimizer: expected one of {OPTIMIZERS}, found {name!r}")
