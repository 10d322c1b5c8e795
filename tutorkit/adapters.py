"""Fine-tuning that trains few weights: what to add to a model, what to train, what to save.

    full       every weight
    head       the last layer alone
    bitfit     the biases (Ben Zaken et al. 2022)
    adapter    two bottlenecks a layer, and the norms (Houlsby et al. 2019)
    lora       low-rank updates of some linear layers, by peft (Hu et al. 2021)
    adalora    low-rank updates that share a budget of ranks, by peft (Zhang et al. 2023)

The head is new for each task, so it trains with every method. The model is changed in place and
keeps its class: `fit`, `evaluate` and what is fast about them work as before.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from tutorkit.dropout import quicken_dropout
from tutorkit.losses import adapter_forward
from tutorkit.low_rank import ADAPTER, start_adalora
from tutorkit.models import (
    LoadedModel,
    backbone_layers,
    count_parameters,
    drawn_with,
    parameter_depths,
    set_trainable,
)

LOW_RANK = {"lora_alpha": 16, "lora_dropout": 0.0, "target_modules": None}
METHODS: dict[str, dict[str, Any]] = {  # their settings and the values these have by default
    "full": {},
    "head": {},
    "bitfit": {},
    "adapter": {"bottleneck": 16},
    "lora": {"r": 8, **LOW_RANK},
    "adalora": {"init_r": 12, "target_r": 8, **LOW_RANK},
}
# The projections to queries and values: Hu et al. 2021, section 7.1.
TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}
# What a bottleneck comes after: the last part of attention and of the feed-forward network before
# the residual add.
BEFORE_RESIDUAL = {"bert": ("attention.output.dropout", "output.dropout"),
                   "llama": ("self_attn.o_proj", "mlp.down_proj")}  # fmt: skip


class Bottleneck(torch.nn.Module):
    """y = h + U φ(D h + c) + d: see `losses.adapter_forward`.

    U starts at zero, so that a model starts as it was before; the source draws it from N(0, 10⁻⁴),
    as D here.

    Args:
        hidden_size: H, the width of the layer.
        size: m, the width of the bottleneck.

    Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1 and
    figure 2.
    """

    def __init__(self, hidden_size: int, size: int):
        super().__init__()
        self.down = torch.nn.Linear(hidden_size, size)
        self.up = torch.nn.Linear(size, hidden_size)
        torch.nn.init.normal_(self.down.weight, std=0.01)
        for start in (self.down.bias, self.up.weight, self.up.bias):
            torch.nn.init.zeros_(start)

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, H) to (…, H)."""
        y = adapter_forward(hidden.flatten(0, -2), self.down.weight, self.down.bias,
                            self.up.weight, self.up.bias)  # fmt: skip
        return y.unflatten(0, hidden.shape[:-1])


def prepare(
    loaded: LoadedModel | torch.nn.Module, method: str, seed: int = 0, **settings: Any
) -> list[str]:
    """Add a method's weights to a model, in place, and let only what the method trains train.

    Args:
        loaded: a loaded model, or its `transformers` model.
        method: one of `METHODS`.
        seed: of the added weights' random start.
        **settings: of the method; left out, those in `METHODS`. `target_modules` names linear
            layers inside the model's layers by the end of their names.

    Returns:
        Names of the parameters that train.

    Raises:
        ValueError: an unknown method, setting or target name, a value out of range, a model that
            the method does not fit, or one that has added weights already.
    """
    model = model_of(loaded)
    settings = _checked(model, method, settings)
    kept = model.training
    with drawn_with(seed):
        if method == "adapter":
            _add_bottlenecks(model, settings["bottleneck"])
        elif method in ("lora", "adalora"):
            _add_low_rank(model, method, settings)
    model.train(kept)
    head = set(head_names(model))
    norms = _norm_names(model)
    trains = {
        "full": lambda name: True,
        "head": lambda name: name in head,
        "bitfit": lambda name: name in head or name.endswith(".bias"),
        "adapter": lambda name: name in head or name in norms or ".adapter." in name,
        "lora": lambda name: name in head or ".lora_" in name,
        "adalora": lambda name: name in head or ".lora_" in name,
    }[method]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(name))
    model.adaptation = {"method": method, "settings": settings}
    return [name for name, p in model.named_parameters() if p.requires_grad]


def model_of(loaded: LoadedModel | torch.nn.Module) -> torch.nn.Module:
    """The `transformers` model of a loaded one, or what is one already."""
    return loaded.model if isinstance(loaded, LoadedModel) else loaded


def head_names(model: torch.nn.Module) -> list[str]:
    """Names of the parameters outside the backbone: the last layer."""
    inside = {id(p) for p in model.base_model.parameters()}
    return [name for name, p in model.named_parameters() if id(p) not in inside]


def linear_names(model: torch.nn.Module) -> dict[str, list[str]]:
    """The linear layers inside a model's layers: the name in each layer to the full names."""
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, list[str]] = {}
    for layer in backbone_layers(model):
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                found.setdefault(name, []).append(names[id(module)])
    return found


def trained_by_part(model: torch.nn.Module) -> list[dict]:
    """What trains, by the part of the model it belongs to: rows of a small table.

    Returns:
        A row for each part in which something trains, and one for the "total": `part`, `trained`
        (a number of parameters) and `share` (of all the model's parameters).
    """
    total, trained = count_parameters(model)
    head, norms = set(head_names(model)), _norm_names(model)
    depths, top = parameter_depths(model), len(backbone_layers(model)) + 1
    parts = {  # the first that fits
        "low-rank factors": lambda name: ".lora_" in name,
        "bottlenecks": lambda name: ".adapter." in name,
        "head": lambda name: name in head,
        "norms": lambda name: name in norms,
        "embeddings": lambda name: depths[name] == top,
        "biases": lambda name: name.endswith(".bias"),
        "weights": lambda name: True,
    }
    counts = dict.fromkeys(parts, 0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts[next(part for part, fits in parts.items() if fits(name))] += parameter.numel()
    rows = [*((part, count) for part, count in counts.items() if count), ("total", trained)]
    return [{"part": part, "trained": count, "share": count / total} for part, count in rows]


def merge(loaded: LoadedModel | torch.nn.Module) -> None:
    """Add the low-rank updates of "lora" or "adalora" to the weights, in place.

    The model is then a plain one of the same logits, which `models.save_model` saves for others.

    Raises:
        ValueError: a model without low-rank updates.
    """
    model = model_of(loaded)
    found = {n: m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    if not found:
        raise ValueError('expected a model prepared with "lora" or "adalora", found no low-rank '
                         "updates: bottlenecks can't be merged, as GELU stands between their two "
                         "layers, and other methods add nothing")
    for name, layer in found.items():
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    for note in ("adaptation", "peft_config"):
        model.__dict__.pop(note, None)
    set_trainable(model, "none")


def _checked(model: torch.nn.Module, method: str, settings: dict) -> dict:
    """All settings of a method, as JSON keeps them; the model is only looked at."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {tuple(METHODS)}, found {method!r}")
    unknown = sorted(settings.keys() - METHODS[method].keys())
    if unknown:
        raise ValueError(f"{method}: expected settings among {tuple(METHODS[method])}, found "
                         f"{unknown[0]!r}")
    before = getattr(model, "adaptation", {"method": "full"})["method"]
    if before in ("adapter", "lora", "adalora"):
        raise ValueError(f"expected a model without added weights, found one prepared with "
                         f"{before!r}: load a fresh one")
    settings = {**METHODS[method], **settings}
    for name in ("bottleneck", "r", "init_r", "target_r"):
        value = settings.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected a whole number from 1, found {value!r}")
    if method == "adalora" and settings["target_r"] >= settings["init_r"]:
        raise ValueError(f"target_r: expected a rank below init_r = {settings['init_r']}, from "
                         f"which ranks are taken away, found {settings['target_r']}")
    if settings.get("lora_alpha", 1) <= 0 or not 0 <= settings.get("lora_dropout", 0) < 1:
        raise ValueError("expected lora_alpha above 0 and lora_dropout in 0…1, found "
                         f"{settings['lora_alpha']} and {settings['lora_dropout']}")
    kind = model.config.model_type
    if method == "bitfit" and not any(n.endswith(".bias") for n, _ in
                                      model.base_model.named_parameters()):  # fmt: skip
        raise ValueError(f"bitfit: expected a model with biases, found {kind!r} without any: "
                         'choose another method, such as "lora"')
    if method == "adapter" and kind not in BEFORE_RESIDUAL:
        raise ValueError(f"adapter: expected a model of type {tuple(BEFORE_RESIDUAL)}, found "
                         f'{kind!r}: choose "lora" with target_modules')
    if "target_modules" in settings:
        settings["target_modules"] = _targets(model, settings["target_modules"] or
                                              TARGETS.get(kind, ()))  # fmt: skip
    return settings


def _targets(model: torch.nn.Module, asked: Any) -> list[str]:
    """The target names as a list, each of them found in the model."""
    asked = [asked] if isinstance(asked, str) else list(asked)
    known = list(linear_names(model))
    for name in asked or [""]:
        if not any(_ends_with(one, name) for one in known):
            raise ValueError(f"target_modules: expected names among the linear layers {known}, "
                             f"found {name!r}")
    return asked


def _ends_with(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}") and end != ""


def _add_bottlenecks(model: torch.nn.Module, size: int) -> None:
    for layer in backbone_layers(model):
        for place in BEFORE_RESIDUAL[model.config.model_type]:
            before = layer.get_submodule(place)
            weight = next(layer.parameters())
            adapter = Bottleneck(model.config.hidden_size, size).to(weight.device, weight.dtype)
            both = torch.nn.Sequential(OrderedDict(base_layer=before, adapter=adapter))
            layer.set_submodule(place, both)


def _add_low_rank(model: torch.nn.Module, method: str, settings: dict) -> None:
    # In place, not by get_peft_model: its wrapper is of another class, which hides the model from
    # `fast_bert` and puts a prefix before every name.
    from peft import AdaLoraConfig, LoraConfig, inject_adapter_in_model

    # Full names: peft compares the ends of names, and "output.dense" ends others as well.
    targets = [full for name, layers in linear_names(model).items() for full in layers
               if any(_ends_with(name, end) for end in settings["target_modules"])]  # fmt: skip
    given = {**settings, "target_modules": targets}
    if method == "adalora":
        # How many steps there will be, AdaLoraBudget knows when training starts.
        inject_adapter_in_model(AdaLoraConfig(**given, total_step=1), model, ADAPTER)
        start_adalora(model)
    else:
        inject_adapter_in_model(LoraConfig(**given, init_lora_weights="gaussian"), model, ADAPTER)
    quicken_dropout(model)


def _norm_names(model: torch.nn.Module) -> set[str]:
    """Names of the scales and shifts of LayerNorm, RMSNorm and their kin."""
    return {f"{at}.{name}" for at, module in model.base_model.named_modules(prefix=_prefix(model))
            if "norm" in type(module).__name__.lower()
            for name, _ in module.named_parameters(recurse=False)}  # fmt: skip


def _prefix(model: torch.nn.Module) -> str:
    return "" if model.base_model is model else model.base_model_prefix


