"""The exercises of lesson 07: what each expects, its known mistakes, and its hints."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Generator, Tensor

from tutorkit import losses
from tutorkit.checks.exercise import Exercise, Mistake
from tutorkit.checks.inputs import between, normal, pick, whole
from tutorkit.peft_figures import energy

# 1. A linear layer with LoRA


def _lora(scale, bias_of=lambda bias, s: bias, frozen: bool = True) -> object:
    """An answer from its scale of the update, what becomes of the bias, and the frozen layer."""

    def lora_layer(
        x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor, alpha: float
    ) -> Tensor:
        s = scale(a, b, alpha)
        return x @ weight.T * frozen + s * (x @ a.T) @ b.T + bias_of(bias, s)

    return lora_layer


def lora_layer(
    x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor, alpha: float
) -> Tensor:
    h = losses.lora_forward(x.flatten(0, -2), weight, a, b, alpha)
    return h.unflatten(0, x.shape[:-1]) + bias


def _a_layer(generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    d_out, d_in, r = whole(generator, 5, 6), whole(generator, 7, 9), whole(generator, 2, 4)
    x = normal(generator, 2, whole(generator, 2, 4), d_in)
    weight, bias = normal(generator, d_out, d_in), normal(generator, d_out)
    a, b = normal(generator, r, d_in), normal(generator, d_out, r)
    return x, weight, bias, a, b, pick(generator, (1.0, 8.0, 16.0, 32.0))


_right_scale = lambda a, b, alpha: alpha / len(a)  # noqa: E731
lora_layer = Exercise(
    solution=lora_layer,
    inputs=_a_layer,
    mistakes=(
        Mistake("the update is scaled by α; divide it by r", _lora(lambda a, b, alpha: alpha)),
        Mistake("the update is not scaled: α/r is missing", _lora(lambda a, b, alpha: 1.0)),
        Mistake(
            "α is divided by the width of the layer; r is the number of rows of A",
            _lora(lambda a, b, alpha: alpha / a.shape[1]),
        ),
        Mistake(
            "α is divided by the rows of B, which are the layer's outputs; r is the number of "
            "rows of A, and of columns of B",
            _lora(lambda a, b, alpha: alpha / b.shape[0]),
        ),
        Mistake(
            "α is divided by √r, as one variant of LoRA does; here it is r",
            _lora(lambda a, b, alpha: alpha / math.sqrt(len(a))),
        ),
        Mistake("the bias is missing", _lora(_right_scale, lambda bias, s: 0.0)),
        Mistake(
            "the bias is scaled by α/r as well: it belongs to the frozen layer",
            _lora(_right_scale, lambda bias, s: s * bias),
        ),
        Mistake(
            "this is the update alone: the frozen layer's output is missing",
            _lora(_right_scale, frozen=False),
        ),
        Mistake(
            "this is the update alone: add it to the frozen layer's output",
            _lora(_right_scale, lambda bias, s: 0.0, frozen=False),
        ),
    ),
    hints=(
        "Two layers side by side: the frozen one, `x @ weight.T + bias`, and the thin one.",
        "The thin one takes x down by A to r numbers, then up by B: `(x @ a.T) @ b.T`.",
        "Its scale is `alpha / a.shape[0]`.",
    ),
)

# 2. How many weights train


def _counted(matches, each=lambda d_out, d_in, r: r * (d_out + d_in), once: bool = True) -> object:
    def trained_weights(shapes: dict, targets: list[str], r: int) -> int:
        found = 0
        for name, (d_out, d_in) in shapes.items():
            times = sum(matches(name, end) for end in targets)
            found += (min(times, 1) if once else times) * each(d_out, d_in, r)
        return found

    return trained_weights


def _at_a_dot(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def trained_weights(shapes: dict, targets: list[str], r: int) -> int:
    return _counted(_at_a_dot)(shapes, targets, r)


def _a_model(generator: Generator) -> tuple[dict, list[str], int]:
    width = whole(generator, 10, 20)
    wide = whole(generator, 2, 4) * width
    parts = {
        "attention.query": (width, width), "attention.subquery": (width, width + 1),
        "attention.value": (width, width), "attention.output.dense": (width, width),
        "intermediate.dense": (wide, width), "output.dense": (width, wide),
    }  # fmt: skip
    shapes = {f"layer.{k}.{name}": shape for k in range(whole(generator, 1, 3))
              for name, shape in parts.items()}  # fmt: skip
    shapes["query.norm"] = (width + 3, 2)  # holds a target, and does not end with it
    targets = pick(generator, (["query", "value"], ["query", "output.dense"],
                               ["query", "dense", "intermediate.dense"]))  # fmt: skip
    return shapes, targets, whole(generator, 1, 8)


trained_weights = Exercise(
    solution=trained_weights,
    inputs=_a_model,
    mistakes=(
        Mistake(
            "a target is looked for anywhere in a name; a name has to end with it",
            _counted(lambda name, end: end in name),
        ),
        Mistake(
            'a name counts that ends in the middle of a word: "subquery" is not called "query". '
            "Compare whole parts between the dots",
            _counted(lambda name, end: name.endswith(end)),
        ),
        Mistake(
            "only the last part of a name is compared; a target may have two, as output.dense has",
            _counted(lambda name, end: name.split(".")[-1] == end),
        ),
        Mistake(
            "a layer that two targets name is counted twice: it gets one pair of matrices",
            _counted(_at_a_dot, once=False),
        ),
        Mistake(
            "this counts the frozen matrices d_out · d_in; A and B are thin",
            _counted(_at_a_dot, lambda d_out, d_in, r: d_out * d_in),
        ),
        Mistake(
            "the frozen matrices are counted as well: only A and B train",
            _counted(_at_a_dot, lambda d_out, d_in, r: d_out * d_in + r * (d_out + d_in)),
        ),
        Mistake(
            "this counts A alone: B has r · d_out entries",
            _counted(_at_a_dot, lambda d_out, d_in, r: r * d_in),
        ),
        Mistake(
            "this counts B alone: A has r · d_in entries",
            _counted(_at_a_dot, lambda d_out, d_in, r: r * d_out),
        ),
        Mistake(
            "every layer is counted: only those that a target names get A and B",
            _counted(lambda name, end: True),
        ),
    ),
    hints=(
        "A has r · d_in entries, B has d_out · r.",
        "`(\".\" + name).endswith(\".\" + target)` is true where whole parts agree.",
        "`any(… for target in targets)` counts a layer once.",
    ),
)

# 3. Two updates in one matrix


def _into_one(update) -> object:
    def merged(weight: Tensor, updates: list) -> Tensor:
        return weight + update(updates)

    return merged


def _scaled(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    return alpha / len(a) * b @ a


def merged(weight: Tensor, updates: list) -> Tensor:
    # A forward pass of the unit vectors through all layers gives the columns of the matrix.
    zeros, unit = torch.zeros_like(weight), torch.eye(weight.shape[1], dtype=weight.dtype)
    return weight + sum(losses.lora_forward(unit, zeros, *update).T for update in updates)


def _two_updates(generator: Generator) -> tuple[Tensor, list]:
    size = whole(generator, 5, 7)  # square: the factors can be multiplied in both orders
    r = whole(generator, 2, 3)
    updates = [
        (normal(generator, r, size), normal(generator, size, r), alpha)
        for alpha in (pick(generator, (2.0, 4.0)), pick(generator, (8.0, 16.0)))
    ]
    return normal(generator, size, size), updates


merged = Exercise(
    solution=merged,
    inputs=_two_updates,
    mistakes=(
        Mistake(
            "the factors are added up and then multiplied: (B₁ + B₂)(A₁ + A₂) has B₁A₂ and B₂A₁ "
            "in it, which nobody trained. Multiply first",
            _into_one(lambda us: sum(alpha / len(a) for a, _, alpha in us) / len(us)
                      * sum(b for _, b, _ in us) @ sum(a for a, _, _ in us)),
        ),
        Mistake(
            "the factors are added up and then multiplied, without a scale: multiply each pair "
            "first, and scale each by its α/r",
            _into_one(lambda us: sum(b for _, b, _ in us) @ sum(a for a, _, _ in us)),
        ),
        Mistake(
            "the updates are not scaled: each has its own α/r",
            _into_one(lambda us: sum(b @ a for a, b, _ in us)),
        ),
        Mistake(
            "the updates are scaled by α; divide by r",
            _into_one(lambda us: sum(alpha * b @ a for a, b, alpha in us)),
        ),
        Mistake(
            "all updates are scaled by the first one's α/r: each has its own",
            _into_one(lambda us: us[0][2] / len(us[0][0]) * sum(b @ a for a, b, _ in us)),
        ),
        Mistake(
            "this is the mean of the updates: a layer with both would add both",
            _into_one(lambda us: sum(_scaled(*u) for u in us) / len(us)),
        ),
        Mistake(
            "only the last update is in it: start from what the one before gave",
            _into_one(lambda us: _scaled(*us[-1])),
        ),
        Mistake(
            "only the first update is in it",
            _into_one(lambda us: _scaled(*us[0])),
        ),
        Mistake(
            "the frozen weight is missing",
            lambda weight, updates: sum(_scaled(*u) for u in updates),
        ),
    ),
    hints=(
        "For one update: W + (α/r) B A. Then the next one on top.",
        "Not `weight += …`, which would change the frozen weight: `weight = weight + …`.",
        "`for a, b, alpha in updates: weight = weight + alpha / len(a) * b @ a`",
    ),
)

# 4. The budget of AdaLoRA


def _plan(share, cut=math.floor, shape=lambda rest: rest**3) -> object:
    """An answer from the share of the way that is done, how it falls, and how it is made whole."""

    def budgets(total: int, warmup: int, final: int, start: int, end: int) -> list[int]:
        found = []
        for t in range(1, total + 1):
            done = min(max(share(t, total, warmup, final), 0.0), 1.0)
            value = (start - end) * shape(1 - done) + end
            found.append(int(cut(round(value, 9))))
        return found

    return budgets


def _way(t: int, total: int, warmup: int, final: int) -> float:
    return (t - warmup) / (total - warmup - final)


def budgets(total: int, warmup: int, final: int, start: int, end: int) -> list[int]:
    # peft's own, which `low_rank.AdaLoraBudget` asks after each step
    from peft.tuners.adalora import RankAllocator

    config = SimpleNamespace(tinit=warmup, tfinal=final, total_step=total, deltaT=1)
    plan = SimpleNamespace(peft_config=config, init_bgt=start, target_bgt=end)
    return [RankAllocator.budget_schedule(plan, t)[0] for t in range(1, total + 1)]


def _a_run(generator: Generator) -> tuple[int, int, int, int, int]:
    warmup, final = whole(generator, 2, 6), whole(generator, 2, 6)
    # Of a prime number of steps no budget but the first and last is a whole number, which rounding
    # could tip either way.
    falling = pick(generator, (11, 13, 17, 19))
    end = whole(generator, 4, 30)
    return warmup + falling + final, warmup, final, end + whole(generator, 20, 60), end


budgets = Exercise(
    solution=budgets,
    inputs=_a_run,
    mistakes=(
        Mistake(
            "the budget falls along a straight line; the share of the way that is left is cubed",
            _plan(_way, shape=lambda rest: rest),
        ),
        Mistake(
            "the share is squared; it should be cubed",
            _plan(_way, shape=lambda rest: rest**2),
        ),
        Mistake(
            "the budget falls slowly at first: cube the share that is left, not the share that is "
            "done",
            _plan(_way, shape=lambda rest: 1 - (1 - rest) ** 3),
        ),
        Mistake(
            "the fall begins at step 0: subtract the warm-up from t",
            _plan(lambda t, total, warmup, final: t / (total - final)
                  if t > warmup else 0.0),
        ),
        Mistake(
            "the fall lasts until the last step: the final steps have the end budget",
            _plan(lambda t, total, warmup, final: (t - warmup) / (total - warmup)),
        ),
        Mistake(
            "the fall lasts until the last step, and is cut off: it takes T - t₀ - t₁ steps",
            _plan(lambda t, total, warmup, final: (t - warmup) / (total - warmup)
                  if t <= total - final else 1.0),
        ),
        Mistake(
            "the steps are counted from 0: the first entry is the budget after step 1",
            _plan(lambda t, total, warmup, final: _way(t - 1, total, warmup, final)),
        ),
        Mistake(
            "the budgets are rounded to the nearest whole number; they are rounded down",
            _plan(_way, cut=round),
        ),
        Mistake(
            "the budgets are rounded up; they are rounded down",
            _plan(_way, cut=math.ceil),
        ),
    ),
    hints=(
        "Three pieces: start up to the warm-up, end in the last `final` steps, the curve between.",
        "On the curve, `left = 1 - (t - warmup) / (total - warmup - final)` goes from 1 to 0.",
        "Cut `left` to 0…1. Then `int(end + (start - end) * left**3)` gives all three pieces, for "
        "t from 1 to total.",
    ),
)

# 5. What a rank holds


def _kept(share) -> object:
    def kept_energy(delta: Tensor, k: int) -> float:
        return float(share(torch.linalg.svdvals(delta), k))

    return kept_energy


def kept_energy(delta: Tensor, k: int) -> float:
    return float(energy(delta)[k - 1])


def _a_change(generator: Generator) -> tuple[Tensor, int]:
    d_out, d_in = whole(generator, 6, 9), whole(generator, 6, 9)
    left, right = normal(generator, d_out, 2), normal(generator, 2, d_in)
    return left @ right + normal(generator, d_out, d_in, scale=0.5), whole(generator, 1, 4)


kept_energy = Exercise(
    solution=kept_energy,
    inputs=_a_change,
    mistakes=(
        Mistake(
            "the singular values are added up as they are: energy is the sum of their squares",
            _kept(lambda s, k: s[:k].sum() / s.sum()),
        ),
        Mistake(
            "this is the ratio of lengths; the energy is its square",
            _kept(lambda s, k: s[:k].norm() / s.norm()),
        ),
        Mistake(
            "this is what the rank loses: 1 minus what it holds",
            _kept(lambda s, k: (s[k:] ** 2).sum() / (s**2).sum()),
        ),
        Mistake(
            "this is the share of the k-th term alone: add those before it",
            _kept(lambda s, k: s[k - 1] ** 2 / (s**2).sum()),
        ),
        Mistake(
            "one term too many: the first k are `s[:k]`",
            _kept(lambda s, k: (s[: k + 1] ** 2).sum() / (s**2).sum()),
        ),
        Mistake(
            "these are the k smallest: the singular values come in falling order",
            _kept(lambda s, k: (s[-k:] ** 2).sum() / (s**2).sum()),
        ),
        Mistake(
            "this is the energy itself: divide it by that of the whole matrix",
            _kept(lambda s, k: (s[:k] ** 2).sum()),
        ),
        Mistake(
            "this is the share of single large entries; a matrix of rank k has other entries "
            "everywhere",
            lambda delta, k: float(
                (delta.flatten().square().sort(descending=True)[0][:k]).sum()
                / delta.square().sum()
            ),
        ),
    ),
    hints=(
        "`torch.linalg.svdvals(delta)` gives σ, the largest first.",
        "Square them, then add up the first k.",
        "`float((s[:k]**2).sum() / (s**2).sum())`",
    ),
)

# 6. Spot the flaw: a tenth of a per cent of the memory?


def _share(own, full=lambda total, kept: 16 * total + kept) -> object:
    def memory_share(total: int, trained: int, full_kept: float, own_kept: float) -> float:
        return own(total, trained, own_kept, full_kept) / full(total, full_kept)

    return memory_share


def memory_share(total: int, trained: int, full_kept: float, own_kept: float) -> float:
    return _share(lambda total, trained, own, _: 4 * total + 12 * trained + own)(
        total, trained, full_kept, own_kept
    )


def _a_step(generator: Generator) -> tuple[int, int, float, float]:
    total = whole(generator, 20, 200) * 1_000_000
    trained = total // whole(generator, 20, 400)
    kept = between(generator, 5.0, 60.0) * total
    return total, trained, kept, kept * between(generator, 0.5, 0.9)


memory_share = Exercise(
    solution=memory_share,
    inputs=_a_step,
    mistakes=(
        Mistake(
            "this is the share of the weights that train: that is the flaw. Count the bytes of "
            "both steps",
            lambda total, trained, full_kept, own_kept: trained / total,
        ),
        Mistake(
            "the frozen weights are left out: they need no gradient, but they have to be there",
            _share(lambda total, trained, own, _: 16 * trained + own),
        ),
        Mistake(
            "the activations are left out of both steps",
            _share(lambda total, trained, own, _: 4 * total + 12 * trained,
                   lambda total, kept: 16 * total),
        ),
        Mistake(
            "the method's own activations are left out: the gradient passes through its frozen "
            "layers, which keep what they computed",
            _share(lambda total, trained, own, _: 4 * total + 12 * trained),
        ),
        Mistake(
            "both steps keep the activations of the full one here; the method keeps fewer",
            _share(lambda total, trained, own, full: 4 * total + 12 * trained + full),
        ),
        Mistake(
            "a weight that trains has three numbers beside it, not two: a gradient and AdamW's two "
            "moving averages",
            _share(lambda total, trained, own, _: 4 * total + 8 * trained + own,
                   lambda total, kept: 12 * total + kept),
        ),
        Mistake(
            "AdamW's moving averages are missing: eight bytes for each weight that trains",
            _share(lambda total, trained, own, _: 4 * total + 4 * trained + own,
                   lambda total, kept: 8 * total + kept),
        ),
        Mistake(
            "frozen weights have neither gradients nor moments: 4 bytes each, not 16",
            _share(lambda total, trained, own, _: 16 * total + own),
        ),
        Mistake(
            "numbers and bytes are mixed: a number in fp32 takes four bytes",
            _share(lambda total, trained, own, _: total + 3 * trained + own,
                   lambda total, kept: 4 * total + kept),
        ),
    ),
    hints=(
        "What is in memory during a step of each? Section 1 has four parts.",
        "All weights train: 4 + 4 + 8 bytes for each, and the activations.",
        "The method: `4 * total + 12 * trained + own_kept`.",
    ),
)

# 7. Spot the flaw: what moved?


def _audit(moved, frozen_first: bool = True) -> object:
    def audit(before: dict, after: dict, trains: list[str]) -> tuple[list[str], list[str]]:
        changed = {name for name in before if moved(before[name], after[name])}
        lists = (sorted(changed - set(trains)), sorted(set(trains) - changed))
        return lists if frozen_first else lists[::-1]

    return audit


def _differs(a: Tensor, b: Tensor) -> bool:
    return not torch.equal(a, b)


def audit(before: dict, after: dict, trains: list[str]) -> tuple[list[str], list[str]]:
    return _audit(_differs)(before, after, trains)


def _a_pair(generator: Generator) -> tuple[dict, dict, list[str]]:
    width = whole(generator, 3, 5)
    names = [f"layer.{k}.{part}" for k in range(2) for part in ("weight", "bias", "A", "B")]
    order = torch.randperm(len(names), generator=generator).tolist()
    before = {names[i]: normal(generator, width) for i in order}
    trains = [name for name in before if name[-1] in "AB"]
    # One frozen weight moved by a little, as weight decay does; another changed its sign of zero
    # mean; one that should train stayed. The rest is as it should be.
    leaks = [pick(generator, ("layer.0.weight", "layer.1.weight")), "layer.1.bias"]
    stuck = [pick(generator, ("layer.0.A", "layer.0.B"))]
    after = {}
    for name, tensor in before.items():
        if name == leaks[0]:
            after[name] = tensor * (1 - 1e-7)
        elif name == leaks[1]:
            after[name] = tensor.flip(0)  # the same numbers in another order: equal sum and norm
        elif name in trains and name not in stuck:
            after[name] = tensor + normal(generator, width, scale=0.1)
        else:
            after[name] = tensor.clone()
    return before, after, trains


audit = Exercise(
    solution=audit,
    inputs=_a_pair,
    mistakes=(
        Mistake(
            "a small change is taken for none: weight decay moves a frozen weight by less than "
            "`allclose` sees. Compare bit for bit",
            _audit(lambda a, b: not torch.allclose(a, b)),
        ),
        Mistake(
            "two tensors of equal sum or length are taken for the same: compare their entries",
            _audit(lambda a, b: bool((a.sum() - b.sum()).abs() > 1e-12)),
        ),
        Mistake(
            "a tensor counts as moved only if all its entries did: one is enough",
            _audit(lambda a, b: bool((a != b).all())),
        ),
        Mistake(
            "the two lists have changed places: first what moved and should not have",
            _audit(_differs, frozen_first=False),
        ),
        Mistake(
            "the first list has all that moved; what should train may move",
            lambda before, after, trains: (
                sorted(n for n in before if _differs(before[n], after[n])),
                audit.solution(before, after, trains)[1],
            ),
        ),
        Mistake(
            "the second list has all that stayed; what is frozen should stay",
            lambda before, after, trains: (
                audit.solution(before, after, trains)[0],
                sorted(n for n in before if not _differs(before[n], after[n])),
            ),
        ),
    ),
    hints=(
        "Which names moved? `torch.equal` compares two tensors bit for bit.",
        "`moved = {name for name in before if not torch.equal(before[name], after[name])}`",
        "`sorted(moved - set(trains)), sorted(set(trains) - moved)`",
    ),
)
