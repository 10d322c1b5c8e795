# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The math that checks itself
#
# From the average loss over a training set to one update of one weight. Formulas stand here as
# papers write them and as code uses them. Every gradient is checked in front of you three ways: by
# algebra, with autograd (PyTorch's own derivatives), and with finite differences.
#
# **After this lesson you can** derive the gradient of a classification loss, say what a learning
# rate and a weight decay do to a weight, and tell a formula or a table that holds from one that
# does not: sections 4 and 5 audit a published derivation and a published table that do not.
#
# **Time**: under a minute to run on two CPU cores, and no faster on a GPU; two to three hours to
# read, the exercises not counted. **Needs**: the installed package; derivatives and products of
# matrices. Nothing is downloaded.

# %% tags=["colab", "nbval-ignore-output"]
# In Colab: install what is missing there, never torch. Elsewhere this cell does nothing.
import sys

if "google.colab" in sys.modules:
    from pathlib import Path
    from subprocess import check_call

    _pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    _clones = [f"./{folder.parent}" for folder in Path().glob("*/tutorkit")]
    if _clones:
        check_call([*_pip, "gguf", "jaxtyping"])
        check_call([*_pip, "--no-deps", _clones[0]])
    else:
        print("Run `!git clone` with the address of your fork, then this cell again.")

# %% tags=["parameters"]
seed = 0  # of the model's weights and of all random numbers
batch_size = 50  # reviews in one batch, in section 1
steps = 100  # optimizer steps over which two update rules are compared

# %%
import itertools
import math

import numpy as np
import pandas as pd
import sympy
import torch

from tutorkit import data, losses, metrics, plots, sources, widgets
from tutorkit.losses import check_gradient
from tutorkit.math_figures import LossSurface, MaxLengthGradients, Schedules, SoftmaxTemperature
from tutorkit.models import load_model

torch.manual_seed(seed)
torch.set_printoptions(precision=4, sci_mode=False)
checked = {}  # the result of every gradient check of this lesson
algebra = {}  # and of every one by algebra

# %% [markdown]
# ## 1. Empirical risk: what training minimises
#
# We want a model with few errors on texts that nobody has seen. What we have is $N$ labelled
# texts, so we minimise the average loss on those, the **empirical risk**:
#
# $$L(\theta) = \frac{1}{N} \sum_{i=1}^{N} \ell\big(M_\theta(x_i), y_i\big)$$
#
# $M_\theta$ is the model with weights $\theta$, $\ell$ the loss of one text. Here the texts are
# short film reviews, labelled negative (0) or positive (1), and $M_\theta$ is small: a two-layer
# encoder with random weights turns each review into 32 numbers, its *pooled hidden state* $h$ (the
# vector of the first token, scaled so that each number has mean 0 and standard deviation 1 over the
# reviews). A linear head turns those into two scores, the *logits* $z = Wh + b$.

# %%
loaded = load_model("tiny", seed=seed)
reviews = data.take_rows(sources.load_splits("reviews")["train"], 120, seed)
dataset = data.SentimentDataset(reviews["text"], reviews["label"], loaded.tokenizer, 128)
batch = dataset.batch(range(len(dataset)))
with torch.no_grad():
    encoded = loaded.model.bert(batch["input_ids"], attention_mask=batch["attention_mask"])

hidden = encoded.last_hidden_state[:, 0].double()  # (N, H)
hidden = (hidden - hidden.mean(dim=0)) / hidden.std(dim=0)
labels = batch["labels"]  # (N,)
print("hidden states", tuple(hidden.shape), " labels", tuple(labels.shape))

# %%
weight = torch.randn(2, 32, dtype=torch.float64) / 8  # W, (C, H)
bias = torch.zeros(2, dtype=torch.float64)  # b, (C,)


def model(h):
    return h @ weight.T + bias  # (N, C)


def row_losses(z, y):
    return losses.cross_entropy(z, y, reduction="none")  # (N,)


each = row_losses(model(hidden), labels)
print("losses of the first four reviews:", each[:4])

# %% [markdown]
# The risk, as the formula reads (one row after the other) and as it is used (batch by batch, the
# sum divided once by $N$):

# %%
risk = losses.empirical_risk(model, row_losses, hidden, labels, batch_size)
naive = losses.empirical_risk_naive(model, row_losses, hidden, labels)
print(f"risk {risk:.4f}, and the two forms agree: {torch.allclose(risk, naive, rtol=1e-12)}")

# %% [markdown]
# ### A batch estimates it without bias
#
# Training looks at $B$ rows at a time. Draw $B$ of $N$ rows at random: each row is in the batch
# with probability $B/N$, so the expected batch mean is the risk itself:
#
# $$\mathbb{E}\Big[\frac{1}{B}\sum_{i \in \text{batch}} \ell_i\Big]
#   = \frac{1}{B} \sum_{i=1}^N \frac{B}{N}\, \ell_i = L$$
#
# For a small set we can take *every* batch there is, and average.

# %%
few = each[:8]
means = torch.stack([few[list(rows)].mean() for rows in itertools.combinations(range(8), 3)])
print(f"{len(means)} batches of 3 out of 8 rows")
print(f"mean of the batch means {means.mean():.6f}, risk of the 8 rows {few.mean():.6f}")

# %% [markdown]
# ### Its variance falls as 1/B
#
# For $B$ independent draws the variances add up: $\operatorname{Var} = \sigma^2 / B$, with
# $\sigma^2$ the variance of one loss. A batch four times as large is twice as precise, at four
# times the cost. (An epoch draws without replacement, which lowers it further by the factor
# $(N-B)/(N-1)$.) Measured over 4,000 batches of each size:

# %%
sizes = [1, 2, 4, 8, 16, 32, 64]
sigma2 = each.var(correction=0)
measured = []
for size in sizes:
    rows = torch.randint(len(each), (4000, size))
    measured.append(each[rows].mean(dim=1).var().item())
pd.DataFrame(
    {"B": sizes, "measured / (sigma² / B)": [m / (sigma2.item() / b)
                                             for m, b in zip(measured, sizes, strict=True)]}
).round(2).T  # fmt: skip

# %%
with plots.styled_figure(2.6) as figure:
    axes = figure.subplots()
    axes.loglog(sizes, sigma2.item() / np.array(sizes), color=plots.GREY, label="σ² / B")
    axes.loglog(sizes, measured, "o", color=plots.BLUE, label="measured, 4,000 batches each")
    axes.set(xlabel="batch size B", title="Variance of the batch mean")
    axes.set_xticks(sizes, sizes)
    axes.set_yticks([0.01, 0.1], ["0.01", "0.1"])
    axes.minorticks_off()
    axes.legend()
figure

# %% [markdown]
# ### The last batch is short
#
# 120 reviews make two batches of 50 and one of 20. Averaging the three batch means gives each of
# the 20 rows 2.5 times the weight of the others. Here the short batch holds the easiest rows, as
# it may when texts are sorted by length:

# %%
ordered = each.sort(descending=True).values
batches = ordered.split(batch_size)
mean_of_means = torch.stack([b.mean() for b in batches]).mean()
print("rows in each batch:", [len(b) for b in batches])
print(f"mean of the batch means {mean_of_means:.4f}, risk {ordered.mean():.4f}")

# %% [markdown]
# So evaluation adds up sums and divides once by $N$. The training loop does the same within a step:
# each micro-batch adds its *sum*, divided by the rows of the whole step
# (`tutorkit.training.train_step`). Section 3 comes back to it.

# %% [markdown]
# ## 2. Softmax cross-entropy
#
# The head's logits $z \in \mathbb{R}^C$ become probabilities, and the loss is the surprise at the
# true label ($\log$ is the natural logarithm, so its unit is the *nat*):
#
# $$p_c = \frac{e^{z_c}}{\sum_k e^{z_k}} \qquad
#   \ell = -\log p_y = \log \sum_k e^{z_k} - z_y$$
#
# By hand: $z = (0, \log 3)$ gives $p = (1/4, 3/4)$. If class 0 is true, $\ell = \log 4$.

# %%
z = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
print("p =", torch.softmax(z, dim=1)[0])
print(f"loss if class 0 is true {losses.cross_entropy(z, torch.tensor([0])):.4f}, "
      f"log 4 = {math.log(4):.4f}")  # fmt: skip

# %% [markdown]
# ### Its gradient is p − y
#
# Write $\ell = \log \sum_k e^{z_k} - z_y$. The first term has the derivative
# $e^{z_c} / \sum_k e^{z_k} = p_c$, the second $-1$ at the label:
#
# $$\frac{\partial \ell}{\partial z_c} = p_c - [c = y]
#   \qquad\text{and for the mean over } N \text{ rows}\qquad
#   \frac{\partial L}{\partial z} = \frac{p - y}{N}$$
#
# $[c = y]$ is 1 where $c$ is the label and 0 elsewhere. From here on $y$ also stands for the row of
# these numbers, the *one-hot* label.
#
# **By algebra**: sympy differentiates the formula, here for three classes of which the second is
# the label, and compares.

# %%
def by_algebra(f, stated):
    """Is the stated derivative by each symbol the one that sympy finds?"""
    return all(sympy.simplify(sympy.diff(f, x) - claim) == 0 for x, claim in stated.items())


symbols = sympy.symbols("z0:3", real=True)
softmax = [sympy.exp(z) / sum(map(sympy.exp, symbols)) for z in symbols]
onehot = [0, 1, 0]
algebra["cross-entropy"] = by_algebra(
    -sympy.log(softmax[1]),
    {z: softmax[c] - onehot[c] for c, z in enumerate(symbols)},
)
print("p - y, by algebra:", algebra["cross-entropy"])

# %% [markdown]
# **By autograd and by finite differences**, in float64. `check_gradient` compares a stated gradient
# with both: with what PyTorch derives, and with
#
# $$\frac{\partial f}{\partial x_j} \approx \frac{f(x + h e_j) - f(x - h e_j)}{2h},
#   \qquad h = \epsilon_{64}^{1/3}\max(1, |x_j|)$$
#
# where $e_j$ moves the $j$-th entry alone and $\epsilon_{64} = 2.2 \cdot 10^{-16}$ is the precision
# of float64: a larger $h$ errs by curvature, a smaller one by rounding.

# %%
z = torch.randn(4, 3, dtype=torch.float64)
y = torch.tensor([0, 2, 1, 1])
checked["cross-entropy"] = check_gradient(losses.cross_entropy, losses.cross_entropy_grad, z, y)

# %% [markdown]
# It also says when a gradient is wrong, and where. (A relative error is the error divided by the
# larger of the two values, or by 1 where both are smaller.) Without the division by $N$:

# %%
def gradient_of_the_sum(z, y):
    return torch.softmax(z, dim=1) - torch.nn.functional.one_hot(y, 3)


result = check_gradient(losses.cross_entropy, gradient_of_the_sum, z, y)
print("is it the gradient?", bool(result))

# %% [markdown]
# ### Down to the head's weights: Jacobians with their shapes
#
# For one row, $z = Wh + b$ with $H$ inputs and $C$ classes. A **Jacobian** holds the derivative of
# each output by each input, (outputs) × (inputs) entries. The chain rule multiplies Jacobians from
# the loss outwards, so the shapes must fit:
#
# | factor | shape | entries |
# |---|---|---|
# | $\partial\ell/\partial z$ | $1 \times C$ | $p_c - [c=y]$ |
# | $\partial z/\partial W$ | $C \times CH$ | $\partial z_c/\partial W_{kj} = [c=k]\,h_j$ |
# | $\partial z/\partial b$ | $C \times C$ | the identity |
# | $\partial z/\partial h$ | $C \times H$ | $W$ |
#
# Multiplied out over a batch, with $G = \partial L/\partial z$ of shape $N \times C$:
#
# $$\frac{\partial L}{\partial W} = G^\top h \qquad
#   \frac{\partial L}{\partial b} = \sum_i G_i \qquad
#   \frac{\partial L}{\partial h} = G\,W$$

# %%
h, W, b = (torch.randn(*shape, dtype=torch.float64) for shape in [(4, 5), (3, 5), (3,)])
to_logits = losses.cross_entropy_grad(h[:1] @ W.T + b, y[:1])  # of one row: (1, C)
to_weight = torch.kron(torch.eye(3, dtype=torch.float64), h[0])  # (C, C·H)
product = to_logits @ to_weight  # (1, C·H)
print("dl/dz", tuple(to_logits.shape), " dz/dW", tuple(to_weight.shape),
      " product", tuple(product.shape))  # fmt: skip
one_row = losses.linear_head_grads(h[:1], W, b, y[:1]).weight
print("reshaped to W it is dl/dW:", torch.allclose(product.reshape(W.shape), one_row))

# %% [markdown]
# Over a batch, the Jacobians row by row and the three short formulas give the same:

# %%
grads = losses.linear_head_grads(h, W, b, y)
naive = losses.linear_head_grads_naive(h, W, b, y)
print({name: torch.allclose(getattr(grads, name), getattr(naive, name)) for name in grads._fields})

# %%
def head_loss(h, W, b):
    return losses.cross_entropy(h @ W.T + b, y)


def head_grads(h, W, b):
    return losses.linear_head_grads(h, W, b, y)


checked["linear head"] = check_gradient(head_loss, head_grads, h, W, b)

# %% [markdown]
# By algebra, for two inputs and two classes with the label 0: $\partial\ell/\partial W_{kj}$ should
# be $(p_k - [k = y])\,h_j$, and $\partial\ell/\partial h_j = \sum_k (p_k - [k = y])\,W_{kj}$.

# %%
ws, bs, hs = sympy.symbols("w0:4"), sympy.symbols("b0:2"), sympy.symbols("h0:2")
scores = [ws[2 * k] * hs[0] + ws[2 * k + 1] * hs[1] + bs[k] for k in (0, 1)]
chances = [sympy.exp(score) / sum(map(sympy.exp, scores)) for score in scores]
errors = [chances[0] - 1, chances[1]]  # p - y
algebra["linear head"] = by_algebra(
    -sympy.log(chances[0]),
    {ws[2 * k + j]: errors[k] * hs[j] for k in (0, 1) for j in (0, 1)}
    | {bs[k]: errors[k] for k in (0, 1)}
    | {hs[j]: sum(errors[k] * ws[2 * k + j] for k in (0, 1)) for j in (0, 1)},
)
print("the head's gradients, by algebra:", algebra["linear head"])

# %% [markdown]
# $\partial L/\partial h$ is what flows on into the backbone when everything is fine-tuned; with a
# frozen backbone it is not needed.

# %% [markdown]
# ### The Hessian, and why the head's problem is convex
#
# The **Hessian** $\nabla^2$ is the matrix of second derivatives. Differentiate $p_c$ once more:
# $\partial p_c / \partial z_k = p_c([c=k] - p_k)$, so
#
# $$\nabla^2_z\, \ell = \operatorname{diag}(p) - p\,p^\top
#   \qquad
#   v^\top \nabla^2_z \ell\; v = \sum_c p_c v_c^2 - \Big(\sum_c p_c v_c\Big)^2
#   = \operatorname{Var}_{c \sim p}(v_c) \ge 0$$
#
# A variance is never negative, so the Hessian has no negative eigenvalue: in no direction does the
# loss curve downwards. $z$ is linear in $\theta = (W, b)$ with the constant Jacobian $J = \partial
# z/\partial\theta$, so $\nabla^2_\theta \ell = J^\top \nabla^2_z \ell\, J$ has none either: the
# problem of the head alone is **convex**, every minimum is a global one.

# %%
p = torch.softmax(z[0], dim=0)
stated = torch.diag(p) - torch.outer(p, p)
autograd = torch.autograd.functional.hessian(lambda z: losses.cross_entropy(z[None], y[:1]), z[0])
print("the Hessian is diag(p) - p pᵀ:", torch.allclose(stated, autograd))
eigenvalues = torch.linalg.eigvalsh(stated)
print("its eigenvalues:", eigenvalues.round(decimals=4) + 0.0,  # + 0.0 turns -0 into 0
      " none below 0:", bool((eigenvalues > -1e-12).all()))  # fmt: skip
print("times (1, 1, 1):", (stated @ torch.ones(3, dtype=torch.float64)).round(decimals=12) + 0.0)

# %% [markdown]
# The eigenvalue 0 belongs to $v = (1, 1, 1)$: adding a constant to all logits changes nothing.
# The head's own Hessian, over all 66 weights, and convexity along 200 random segments:

# %%
def risk_of(theta):
    return losses.cross_entropy(hidden @ theta[:64].reshape(2, 32).T + theta[64:], labels)


curvature = torch.autograd.functional.hessian(risk_of, torch.randn(66, dtype=torch.float64))
print(f"no negative eigenvalue: {bool(torch.linalg.eigvalsh(curvature).min() > -1e-12)}")
ends = torch.randn(200, 2, 66, dtype=torch.float64)
below = [risk_of(e.mean(dim=0)) <= (risk_of(e[0]) + risk_of(e[1])) / 2 for e in ends]
print(f"middle not above the ends' mean: {sum(map(int, below))} of 200 segments")

# %% [markdown]
# With a hidden layer below the head this ends. Swapping two hidden units gives another network with
# the same outputs; half-way between the two stands one with a larger loss, here one whose logits
# are all 0 and whose loss is $\log 2 = 0.693$:

# %%
first = torch.tensor([[3.0, 0.0], [0.0, -3.0]], dtype=torch.float64)
second = torch.tensor([[2.0, -2.0], [-2.0, 2.0]], dtype=torch.float64)


def network(first, second):
    return torch.tanh(hidden[:, :2] @ first.T) @ second.T  # (N, 2) logits


answers = network(first, second).argmax(dim=1)  # labels that this network gets right


def two_layers(first, second):
    return losses.cross_entropy(network(first, second), answers)


swapped = first.flip(0), second.flip(1)
middle = (first + swapped[0]) / 2, (second + swapped[1]) / 2
print(f"one network {two_layers(first, second):.3f}, with its units swapped "
      f"{two_layers(*swapped):.3f}, half-way {two_layers(*middle):.3f}")  # fmt: skip

# %% [markdown]
# ### See it: softmax and its gradient under a temperature
#
# Dividing the logits by $T$ sharpens ($T<1$) or flattens ($T>1$) the probabilities. The gradient
# with respect to the logits becomes $(p - y)/T$. A step against it moves the true class up and all
# others down, each by its share of what is missing; the entries sum to zero, and their sizes to
# $2(1 - p_y)/T$.

# %%
temperature = SoftmaxTemperature()
temperature.figure

# %% [markdown]
# The same with sliders, when a kernel runs:

# %%
widgets.explore(temperature)

# %% [markdown]
# ### Where the formula breaks as it reads
#
# $e^{z}$ leaves the range of float32 at $z = 88.7$ and of float16 at $11.1$ (**overflow**), and a
# probability that rounds to 0 has an infinite surprise (**underflow**). The form that is used,
#
# $$\ell = \operatorname{logsumexp}(z) - z_y \qquad
#   \operatorname{logsumexp}(z) = m + \log \sum_k e^{z_k - m}, \quad m = \max_k z_k$$
#
# has no exponent above 0, and one term of its sum is 1. The smallest whole number $m$ at which each
# form breaks:

# %%
def breaks_at(loss, dtype, low, high, label):
    m = torch.arange(1, 10_001)
    z = torch.stack([low * m, high * m], dim=1).to(dtype)  # (10000, 2)
    broken = ~loss(z, torch.full((10_000,), label), reduction="none").isfinite()
    return int(m[broken][0]) if broken.any() else "never"


kinds = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
forms = {"naive": losses.cross_entropy_naive, "used": losses.cross_entropy}
cases = {"z = (0, m), label 1": (0, 1, 1), "z = (0, −m), label 1": (0, -1, 1)}
pd.DataFrame(
    {(form, case): [breaks_at(forms[form], kind, *cases[case]) for kind in kinds]
     for form in forms for case in cases},
    index=[str(kind).removeprefix("torch.") for kind in kinds],
)  # fmt: skip

# %% [markdown]
# bfloat16 has float32's range and two to three digits: between 64 and 128 its numbers are half a
# unit apart. That costs twice: the logits 100 and 99.8 become equal, and their logsumexp, 100.69,
# becomes 100.5. The training loop computes the loss in float32 from bfloat16 logits, which avoids
# the second error; the first stays.

# %%
exact = torch.tensor([[100.0, 99.8]], dtype=torch.float64)
one, rounded = torch.tensor([1]), exact.bfloat16()
precisions = {"float64": exact, "float32": exact.float(),
              "bfloat16 logits, loss in float32": rounded.float(),
              "bfloat16 throughout": rounded}  # fmt: skip
for name, logits in precisions.items():
    print(f"{name:33} loss {losses.cross_entropy(logits, one).item():.3f}")

# %% [markdown]
# ### Two classes: the sigmoid
#
# Divide numerator and denominator of the softmax by $e^{z_1}$: only the difference counts.
#
# $$p_1 = \frac{e^{z_1}}{e^{z_0} + e^{z_1}} = \frac{1}{1 + e^{-(z_1 - z_0)}} = \sigma(z_1 - z_0)$$
#
# So a head with one score $z = z_1 - z_0$ is the same model. With $\operatorname{softplus}(z) =
# \log(1 + e^z)$ we have $-\log\sigma(z) = \operatorname{softplus}(z) - z$ and $-\log(1 - \sigma(z))
# = \operatorname{softplus}(z)$, hence
#
# $$\ell = -y \log\sigma(z) - (1-y)\log(1-\sigma(z)) = \operatorname{softplus}(z) - yz
#   \qquad \frac{\partial \ell}{\partial z} = \sigma(z) - y$$

# %%
score, truth = sympy.Symbol("z", real=True), sympy.Symbol("y", real=True)
sigmoid = 1 / (1 + sympy.exp(-score))
print("d sigma/dz = sigma (1 - sigma):", by_algebra(sigmoid, {score: sigmoid * (1 - sigmoid)}))
surprise = -truth * sympy.log(sigmoid) - (1 - truth) * sympy.log(1 - sigmoid)
algebra["binary cross-entropy"] = by_algebra(surprise, {score: sigmoid - truth})
print("dl/dz = sigma - y:", algebra["binary cross-entropy"])

# %%
scores, truths = torch.randn(5, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
two_logits = torch.stack([torch.zeros_like(scores), scores], dim=1)
same = torch.allclose(losses.binary_cross_entropy(scores, truths),
                      losses.cross_entropy(two_logits, truths))  # fmt: skip
print("one score and two logits have the same loss:", same)
checked["binary cross-entropy"] = check_gradient(
    losses.binary_cross_entropy, losses.binary_cross_entropy_grad, scores, truths
)

# %% [markdown]
# ### Label smoothing
#
# The cross-entropy is 0 only for infinite logits, so it pushes for ever. Label smoothing moves a
# share $\varepsilon$ of the label evenly to all $C$ classes (Szegedy et al. 2016):
#
# $$q = (1 - \varepsilon)\,y + \frac{\varepsilon}{C} \qquad
#   \ell = -\sum_c q_c \log p_c \qquad
#   \frac{\partial L}{\partial z} = \frac{p - q}{N}$$
#
# The gradient vanishes at $p = q$, at finite logits. For two classes and $\varepsilon = 0.1$ that
# is at $z = \log(0.95/0.05) = 2.94$.

# %%
checked["label smoothing"] = check_gradient(
    lambda z: losses.label_smoothing_cross_entropy(z, y, 0.1),
    lambda z: losses.label_smoothing_cross_entropy_grad(z, y, 0.1),
    z,
)
share = sympy.Symbol("epsilon", positive=True)
q = [(1 - share) * onehot[c] + share / 3 for c in range(3)]
algebra["label smoothing"] = by_algebra(
    -sum(target * sympy.log(chance) for target, chance in zip(q, softmax, strict=True)),
    {z: softmax[c] - q[c] for c, z in enumerate(symbols)},
)
print("p - q, by algebra:", algebra["label smoothing"])

# %%
line = torch.linspace(-2, 8, 400, dtype=torch.float64)
pairs = torch.stack([torch.zeros_like(line), line], dim=1)
ones = torch.ones(400, dtype=torch.long)
plain = losses.cross_entropy(pairs, ones, "none")
smooth = losses.label_smoothing_cross_entropy(pairs, ones, 0.1, "none")
with plots.styled_figure(2.6) as figure:
    axes = figure.subplots()
    axes.plot(line, plain, color=plots.GREY, label="cross-entropy: falls for ever")
    axes.plot(line, smooth, color=plots.BLUE, label="smoothed, ε = 0.1")
    axes.plot(line[smooth.argmin()], smooth.min(), "o", color=plots.BLUE)
    axes.set(xlabel="logit of the true class minus the other", ylabel="loss (nats)", ylim=(0, 2.2))
    axes.set_title(f"The smoothed loss has its minimum at {line[smooth.argmin()]:.2f}")
    axes.legend()
figure

# %% [markdown]
# ### Labels to leave out
#
# Where every token has a label, padding carries the label −100, and so do all pieces of a split
# word but the first (lessons 02 and 03). They count for nothing: the mean is over the rows that are
# left. Where none is left, PyTorch's mean is 0/0, and one NaN spoils every weight of the model.
# Ours is 0, with gradient 0.

# %%
some = torch.tensor([0, -100, 1, -100])
kept = losses.cross_entropy(z[[0, 2]], some[[0, 2]])
print("mean over what is left:", torch.allclose(losses.cross_entropy(z, some), kept))
none = torch.full((4,), -100)
print("nothing left, ours:", losses.cross_entropy(z, none).item(),
      " PyTorch's:", torch.nn.functional.cross_entropy(z, none).item())  # fmt: skip
checked["ignored labels"] = check_gradient(
    losses.cross_entropy, losses.cross_entropy_grad, z, some
)

# %% [markdown]
# ## 3. The update rule
#
# $$\theta \leftarrow \theta - \eta\, \nabla L(\theta) - \eta\,\lambda\,\theta$$
#
# Two moves: a step against the gradient, $\eta$ (the learning rate) times as long as it is, and a
# pull of every weight towards zero by the share $\eta\lambda$. The second is **decoupled weight
# decay**: it does not pass through the gradient. By hand, with $\theta = 2$, $\nabla L = 0.5$,
# $\eta = 0.1$, $\lambda = 0.2$: $2 - 0.05 - 0.04 = 1.91$.

# %%
theta, grad = (torch.tensor([v], dtype=torch.float64) for v in (2.0, 0.5))
new, _ = losses.sgd_step(theta, grad, learning_rate=0.1, weight_decay=0.2)
print(f"one step: {theta.item()} -> {new.item():.2f}")

# %% [markdown]
# ### For plain SGD it is an L2 penalty
#
# Add $\frac{\lambda}{2}\|\theta\|^2$ to the loss: its gradient is $\lambda\theta$, so
#
# $$\theta - \eta\,(\nabla L + \lambda\theta) = \theta - \eta\nabla L - \eta\lambda\theta$$
#
# The same update, with the same $\lambda$. (Loshchilov & Hutter 2019 call the learning rate
# $\alpha$ and do not multiply the decay by it; their $\eta_t$ is the schedule's factor. In their
# notation the two agree for $\lambda_{L2} = \lambda/\alpha$, proposition 1.) Over many steps on the
# head's risk:

# %%
def run(rule, **settings):
    """`steps` updates of the head from a fixed start."""
    theta, state = torch.ones(66, dtype=torch.float64) / 4, None
    for _ in range(steps):
        leaf = theta.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(risk_of(leaf), leaf)
        theta, state = rule(theta, grad, state, **settings)
    return theta


def apart(a, b):
    gap = (a - b).abs().max().item()
    return "equal to 1e-12" if gap < 1e-12 else f"apart by {gap:.3f}"


decoupled = run(losses.sgd_step, learning_rate=0.1, weight_decay=0.1)
penalised = run(losses.l2_penalty_step, learning_rate=0.1, penalty=0.1)
print("plain SGD:", apart(decoupled, penalised))

# %% [markdown]
# ### For momentum and for Adam it is not
#
# **Momentum** keeps a running sum of gradients, $m \leftarrow \mu m + \nabla L$, and steps along
# it, $\theta \leftarrow \theta - \eta m - \eta\lambda\theta$. A penalty's $\lambda\theta$ would
# stay in that sum and act again in later steps.
#
# **Adam** divides a running mean of the gradient by the root of the running mean of its square. A
# penalty's $\lambda\theta$ is divided with it, so a weight with large gradients hardly decays at
# all, and no $\lambda$ makes the two equal (proposition 2). AdamW (algorithm 2, with our $\lambda$)
# keeps the decay outside:
#
# $$m \leftarrow \beta_1 m + (1-\beta_1)\,g \quad
#   v \leftarrow \beta_2 v + (1-\beta_2)\,g^2 \quad
#   \hat m = \frac{m}{1-\beta_1^t} \quad \hat v = \frac{v}{1-\beta_2^t}$$
#
# $$\theta \leftarrow \theta - \eta\, \frac{\hat m}{\sqrt{\hat v} + \epsilon} - \eta\lambda\theta$$

# %%
decoupled = run(losses.sgd_step, learning_rate=0.1, weight_decay=0.1, momentum=0.9)
penalised = run(losses.l2_penalty_step, learning_rate=0.1, penalty=0.1, momentum=0.9)
print("SGD with momentum:", apart(decoupled, penalised))

adamw = run(losses.adamw_step, learning_rate=0.01, weight_decay=0.1)
adam_l2 = run(losses.l2_penalty_step, step=losses.adamw_step, learning_rate=0.01, penalty=0.1)
print("Adam:", apart(adamw, adam_l2))

# %% [markdown]
# How much does each weight decay? Two weights of size 1 whose gradients average to zero, so that
# only decay moves them; the second one's gradients are 100 times larger. After 200 steps with $\eta
# = 0.01$ and $\lambda = 0.1$, AdamW leaves $(1 - \eta\lambda)^{200} = 0.82$ of both. Adam with a
# penalty divides the decay by the gradient's size: at 1 that changes nothing, at 100 the decay is
# 100 times weaker.

# %%
def decay_only(rule, **settings):
    ends = []
    for sign in (+1, -1):  # two runs with opposite gradients: the noise cancels in their mean
        theta, state = torch.ones(2, dtype=torch.float64), None
        noise = sign * torch.tensor([1.0, 100.0], dtype=torch.float64)
        for t in range(200):
            theta, state = rule(theta, noise * (-1) ** t, state, learning_rate=0.01, **settings)
        ends.append(theta)
    return sum(ends) / 2


with_adamw = decay_only(losses.adamw_step, weight_decay=0.1)
with_adam_l2 = decay_only(losses.l2_penalty_step, step=losses.adamw_step, penalty=0.1)
pd.DataFrame(
    {"AdamW": with_adamw, "Adam with an L2 penalty": with_adam_l2},
    index=["gradients of size 1", "gradients of size 100"],
).round(2)

# %% [markdown]
# ### Adam's bias correction
#
# $m$ and $v$ start at zero. While the gradients keep one distribution,
#
# $$\mathbb{E}[m_t] = (1-\beta_1)\sum_{k=0}^{t-1} \beta_1^{k}\; \mathbb{E}[g]
#   = (1 - \beta_1^t)\,\mathbb{E}[g]$$
#
# and dividing by $1 - \beta_1^t$ takes the bias away. Without it, for a constant gradient, the
# first step is $0.1 / \sqrt{0.001} = 3.2$ times too long, and the tenth 6.5 times:

# %%
rows, m, v = [], 0.0, 0.0
for t in range(1, 1001):
    m, v = 0.9 * m + 0.1, 0.999 * v + 0.001  # the gradient is 1 at every step
    if t in (1, 2, 10, 100, 1000):
        rows.append([t, m, v, m / v**0.5, m / (1 - 0.9**t) / (v / (1 - 0.999**t)) ** 0.5])
pd.DataFrame(rows, columns=["step", "m", "v", "m / √v", "m̂ / √v̂"]).round(3)

# %% [markdown]
# The corrected first step is $\eta$ for *every* weight, whatever its gradient: one reason to begin
# with a small $\eta$ (warm-up).

# %%
grad = torch.tensor([1e-4, -1.0, 1e3], dtype=torch.float64)
moved, _ = losses.adamw_step(torch.zeros(3, dtype=torch.float64), grad, learning_rate=0.01)
print("gradients", grad.tolist(), " first step", [round(v, 4) for v in moved.tolist()])

# %% [markdown]
# ### Ours are PyTorch's
#
# The same gradients, the same start, in float64. SGD and AdamW are compared with `torch.optim` in
# both forms, as the papers write them and as optimizers compute them.

# %%
def torch_run(optimizer, **settings):
    theta = torch.nn.Parameter(torch.ones(66, dtype=torch.float64) / 4)
    rule = optimizer([theta], **settings)
    for _ in range(steps):
        rule.zero_grad()
        risk_of(theta).backward()
        rule.step()
    return theta.detach()


def penalised_adam(theta, grad, state, **settings):
    return losses.l2_penalty_step(theta, grad, state, step=losses.adamw_step_naive, **settings)


SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
lr, wd, mu = {"learning_rate": 0.05}, {"weight_decay": 0.1}, {"momentum": 0.9}
pd.Series(
    {
        "SGD": apart(run(losses.sgd_step, **lr), torch_run(SGD, lr=0.05)),
        "SGD, as written": apart(run(losses.sgd_step_naive, **lr), torch_run(SGD, lr=0.05)),
        "momentum": apart(run(losses.sgd_step, **lr, **mu), torch_run(SGD, lr=0.05, **mu)),
        "L2 and momentum": apart(run(losses.l2_penalty_step, penalty=0.1, **lr, **mu),
                                 torch_run(SGD, lr=0.05, **wd, **mu)),
        "AdamW": apart(run(losses.adamw_step, **lr, **wd), torch_run(AdamW, lr=0.05, **wd)),
        "AdamW, as written": apart(run(losses.adamw_step_naive, **lr, **wd),
                                   torch_run(AdamW, lr=0.05, **wd)),
        "Adam with L2": apart(run(penalised_adam, penalty=0.1, **lr),
                              torch_run(Adam, lr=0.05, **wd)),
    },
    name=f"against torch.optim, {steps} steps",
).to_frame()  # fmt: skip

# %% [markdown]
# ### See it: four rules on one surface
#
# A head with two weights on two badly scaled features: a long, narrow valley. Plain SGD bounces
# between its walls, momentum rolls along it, Adam takes steps of like size in both directions. Here
# $\eta = 0.5$, $\lambda = 0.1$, and $\beta = 0.8$ is momentum's $\mu$ and Adam's $\beta_1$. The
# *late loss* is the mean of the last 10 steps.

# %%
surface = LossSurface()
surface.figure

# %% [markdown]
# $\lambda$ is decoupled decay for SGD and AdamW and an L2 penalty for the other Adam; the cross
# marks the minimum with the penalty added. With sliders, when a kernel runs: move $\eta$, $\lambda$
# and $\beta$: at which $\eta$ does SGD stop bouncing? Where does a larger $\lambda$ pull the ends
# of the paths? (At 0.1; towards 0.)

# %%
widgets.explore(surface)

# %% [markdown]
# ### Learning-rate schedules
#
# $\eta$ changes over the $T$ steps $t = 0, 1, \dots$ of a run by a factor. During $w$ steps of
# warm-up it rises along $(t+1)/w$, so that step 0 is not lost. Then it stays ("constant"), falls
# along the line $1 - \frac{t-w}{T-w}$ ("linear"), or along half a cosine $\frac12\big(1 +
# \cos(\pi\frac{t-w}{T-w})\big)$. ULMFiT's **slanted triangle** (Howard & Ruder 2018, equation 3)
# goes up and down between $1/ratio$ and 1, with $ratio = 32$:
#
# $$cut = \lfloor T \cdot cut\_frac \rfloor \qquad
#   p = \begin{cases} t/cut & t < cut \\ 1 - \frac{t - cut}{cut\,(1/cut\_frac - 1)} & \text{else}
#   \end{cases} \qquad \eta_t = \eta_{max} \frac{1 + p\,(ratio - 1)}{ratio}$$
#
# Where $T \cdot cut\_frac$ is not whole, the rounding makes this fall too fast: for $T = 105$ and
# $cut\_frac = 0.1$ the last factor is −0.012, a step uphill. We fall over the $T - w$ steps that
# are left, which is the same where it is whole.

# %%
factors = {
    kind: [losses.lr_schedule(kind, t, 100, 10) for t in (0, 5, 10, 55, 99)]
    for kind in losses.SCHEDULES
}
as_written = [losses.lr_schedule_naive("slanted_triangular", t, 100, 10) for t in range(101)]
as_used = [losses.lr_schedule("slanted_triangular", t, 100, 10) for t in range(101)]
print("slanted triangle, the two forms agree:", np.allclose(as_written, as_used, rtol=1e-12))
pd.DataFrame(factors, index=pd.Index([0, 5, 10, 55, 99], name="step of 100")).round(3).T

# %% [markdown]
# With the same warm-up the slanted triangle is nearly the linear schedule; its line leads to $1/32$
# instead of 0:

# %%
schedules = Schedules()
schedules.figure

# %%
widgets.explore(schedules)

# %% [markdown]
# ### Clipping by the global norm
#
# One odd batch can have a gradient a hundred times the usual. Take all tensors as one long vector
# and scale it down to length $c$ where it is longer (Pascanu et al. 2013):
#
# $$g \leftarrow g \cdot \min\Big(1, \frac{c}{\|g\|}\Big) \qquad
#   \|g\| = \sqrt{\textstyle\sum_k \|g_k\|^2}$$
#
# One factor keeps the direction. Clipping each tensor by itself turns it:

# %%
grads = [torch.tensor([30.0, 40.0]), torch.tensor([0.6, 0.8])]
together, norm = losses.clip_by_global_norm(grads, 1.0)
apiece = [losses.clip_by_global_norm([g], 1.0)[0][0] for g in grads]
original = torch.cat(grads)
for name, clipped in {"together": together, "each by itself": apiece}.items():
    cosine = torch.cosine_similarity(torch.cat(clipped), original, dim=0)
    print(f"{name:15} norm {torch.cat(clipped).norm():.3f}, cosine with the gradient {cosine:.3f}")

# %% [markdown]
# ### Gradient accumulation is the large batch
#
# Memory holds 8 rows at a time, the step should see 20: run three micro-batches of 8, 8 and 4, add
# up their gradients, then step. The gradient of a sum is the sum of the gradients, so it is *equal*
# to the large batch, if each micro-batch adds its sum divided by the rows of the whole step.

# %%
def grad_of(rows, divide_by):
    leaf = torch.zeros(66, dtype=torch.float64, requires_grad=True)
    z = hidden[rows] @ leaf[:64].reshape(2, 32).T + leaf[64:]
    loss = losses.cross_entropy(z, labels[rows], reduction="sum") / divide_by
    return torch.autograd.grad(loss, leaf)[0]


micro = [slice(0, 8), slice(8, 16), slice(16, 20)]
large = grad_of(slice(0, 20), 20)
by_rows = sum(grad_of(rows, 20) for rows in micro)
by_means = sum(grad_of(rows, rows.stop - rows.start) for rows in micro) / len(micro)
print("sums over all rows of the step:", apart(by_rows, large))
print("mean of the micro-batches' means:", apart(by_means, large))

# %% [markdown]
# ## 4. An audit of a published derivation
#
# The tutorial that this kit grew from (it circulates without an author) derives a "Max Length" loss
# for summarization. With $H_i$ the length of the $i$-th of $n$ sentences it writes
#
# $$\ell(H, n) = -\sum_{i=1}^n \log\frac{H_i}{n}
#   \qquad\text{states}\qquad
#   \frac{\partial \ell}{\partial H_i} = -\frac{1}{n}\,(\delta H_i - n)$$
#
# with a $\delta$ that it does not define, and says that training *maximises* $\ell$. We take it
# step by step.
#
# **Step 1: differentiate.** $H_i$ stands in one term only, and
# $\log(H_i/n) = \log H_i - \log n$. The second part is a constant: $n$ drops out.

# %%
H, n, delta = sympy.symbols("H n delta", positive=True)
derivative = sympy.diff(-sympy.log(H / n), H)
algebra["Max Length, true gradient"] = by_algebra(-sympy.log(H / n), {H: -1 / H})
print("the true gradient:", derivative)
print("does it depend on n?", n in derivative.free_symbols)

# %% [markdown]
# **Step 2: ask autograd and finite differences.** First the true gradient, then the published one
# with $\delta = 1$, for three sentences of 3, 8 and 20 tokens.

# %%
lengths = torch.tensor([3.0, 8.0, 20.0], dtype=torch.float64)
loss, published = losses.max_length_loss, losses.max_length_loss_grad_as_published
checked["Max Length, true gradient"] = check_gradient(loss, losses.max_length_loss_grad, lengths)
print("published gradient right?", bool(check_gradient(loss, published, lengths)))

# %% [markdown]
# **Step 3: does any $\delta$ save it?** Set the two equal and solve for $\delta$. The one that fits
# is another one for each length, so no constant does:

# %%
published_gradient = -(delta * H - n) / n
fitting = sympy.solve(sympy.Eq(published_gradient, derivative), delta)[0]
print("delta =", sympy.factor(fitting))
print("for H = 3, 8, 20 and n = 3:", [str(fitting.subs({H: k, n: 3})) for k in (3, 8, 20)])

# %%
gradients = MaxLengthGradients()
gradients.figure

# %% [markdown]
# Drawn for $n = 8$ and $\delta = 1$. With sliders, when a kernel runs: move both. The curves meet
# at one length, and the true one never moves.

# %%
widgets.explore(gradients)

# %% [markdown]
# **Step 4: n drops out**, in numbers. The loss changes with $n$, its gradient does not:

# %%
for divisor in (1.0, 3.0, 30.0):
    print(f"n = {divisor:4}: loss {losses.max_length_loss(lengths, divisor):7.3f}, gradient",
          losses.max_length_loss_grad(lengths, divisor))  # fmt: skip

# %% [markdown]
# **Step 5: which way does it train?** Descent moves $H$ against $-1/H$, that is upwards, for ever.
# With steps so small that they become a motion in time $t$, $dH/dt = 1/H$, it is at $H(t) =
# \sqrt{H_0^2 + 2t}$. Ascent, as the text wants it, moves $H$ down to 0 at $t = H_0^2/2$, where the
# loss is infinite. Neither has an optimum.

# %%
def follow(direction, time, step=0.01):
    at = torch.tensor([4.0], dtype=torch.float64)
    for _ in range(round(time / step)):
        at = at - direction * step * losses.max_length_loss_grad(at)
    return at.item()


pd.DataFrame(
    {
        "descent": [follow(+1, t) for t in (0, 4, 7.5, 100)],
        "√(16 + 2t)": [math.sqrt(16 + 2 * t) for t in (0, 4, 7.5, 100)],
        "ascent": [follow(-1, t) for t in (0, 4, 7.5)] + [math.nan],
        "√(16 − 2t)": [math.sqrt(16 - 2 * t) for t in (0, 4, 7.5)] + [math.nan],
    },
    index=pd.Index([0, 4, 7.5, 100], name="time t"),
).round(2)

# %% [markdown]
# **Step 6: the domain.** The logarithm needs $H_i > 0$. An empty sentence has no loss, and a check
# there says so instead of returning a number:

# %%
try:
    check_gradient(losses.max_length_loss, losses.max_length_loss_grad, torch.tensor([5.0, 0.0]))
except ValueError as error:
    print(error)

# %% [markdown]
# **Step 7: the chain rule's order.** From the loss to the weights the way leads over
# $H(z)$ and $z(\theta)$. Each factor is a Jacobian, (outputs) × (inputs), and their product is one
# of matrices: only one order has fitting shapes.
#
# $$\underbrace{\frac{\partial\ell}{\partial\theta}}_{1\times d} =
#   \underbrace{\frac{\partial\ell}{\partial H}}_{1\times n}\;
#   \underbrace{\frac{\partial H}{\partial z}}_{n\times k}\;
#   \underbrace{\frac{\partial z}{\partial\theta}}_{k\times d}$$
#
# Here are $d = 2$ weights, $k = 4$ scores and $n = 3$ lengths, with a made-up smooth
# $z(\theta) = A\theta$ and $H(z) = e^{Bz}$:

# %%
A, B = torch.randn(4, 2, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
theta = torch.tensor([0.3, -0.2], dtype=torch.float64)
jacobian = torch.autograd.functional.jacobian
made = torch.exp(B @ A @ theta)
loss_by_length = losses.max_length_loss_grad(made)[None]  # (1, n)
length_by_z = jacobian(lambda z: torch.exp(B @ z), A @ theta)  # (n, k)
z_by_theta = A  # (k, d)
product = loss_by_length @ length_by_z @ z_by_theta
whole = jacobian(lambda t: losses.max_length_loss(torch.exp(B @ A @ t)), theta)
print("shapes", tuple(loss_by_length.shape), tuple(length_by_z.shape), tuple(z_by_theta.shape))
print("the product is the gradient:", torch.allclose(product[0], whole))
try:
    z_by_theta @ length_by_z @ loss_by_length
except RuntimeError as error:
    print("the other way round:", error)

# %% [markdown]
# **Step 8: the real $H$.** The length of a decoded sentence is a whole number: it counts the tokens
# until the end token wins. A small change of the weights leaves it as it is, so
# $\partial H / \partial\theta = 0$ almost everywhere and the chain is cut there.

# %%
def decoded_length(stop_logits):
    """Tokens until stopping is more likely than not."""
    return int((stop_logits > 0).int().argmax()) + 1


stop_logits = torch.tensor([-3.0, -2.0, -1.0, -0.5, 0.5, 1.0], dtype=torch.float64)
print("length", decoded_length(stop_logits),
      "and after a small change", decoded_length(stop_logits + 1e-3))  # fmt: skip

# %% [markdown]
# ### What stands and what falls
#
# | the text says | what we found |
# |---|---|
# | $\ell = -\sum\log(H_i/n)$ | a function one can write down, for $H_i > 0$ only |
# | $\partial\ell/\partial H_i = -\frac1n(\delta H_i - n)$ | wrong: $-1/H_i$, whatever $\delta$ is |
# | $n$ matters | not to the gradient, so not to training |
# | training maximises $\ell$ | sends every length to 0; minimising sends them to infinity |
# | a chain rule over $H$ and $z$ | its Jacobians fit in one order only, from the loss outwards |
# | $\theta$ is trained through $H$ | a decoded length is a whole number, its gradient is 0 |

# %% [markdown]
# ### Repair 1: lengths that share a budget
#
# Keep the sum of logarithms and fix what the lengths add up to: minimise $-\sum_i \log h_i$ subject
# to $\sum_i h_i = n$. The **Lagrangian** adds the constraint, times a multiplier $\mu$: $-\sum\log
# h_i + \mu(\sum h_i - n)$. Its derivative is zero at $-1/h_i + \mu = 0$: all $h_i$ are equal, and
# the constraint makes them 1.

# %%
h1, h2, h3, mu = sympy.symbols("h1 h2 h3 mu", positive=True)
lagrangian = -sum(map(sympy.log, (h1, h2, h3))) + mu * (h1 + h2 + h3 - 3)
solution = sympy.solve([sympy.diff(lagrangian, v) for v in (h1, h2, h3, mu)], dict=True)
print(solution)

# %% [markdown]
# As a loss without a constraint: scale first, $h_i = n H_i / \sum_k H_k$. It is $n$ times the
# divergence $\mathrm{KL}(q \,\|\, r) = \sum_i q_i \log (q_i/r_i) \ge 0$ of equal shares $q_i = 1/n$
# from the lengths' shares $r_i = H_i/\sum_k H_k$, so it is 0 only where all lengths are equal. Its
# gradient is $n/\sum_k H_k - 1/H_i$: lengths below the mean are pulled up, those above it down.

# %%
checked["length balance"] = check_gradient(
    losses.length_balance_loss, losses.length_balance_loss_grad, lengths
)
budget = h1 + h2 + h3
algebra["length balance"] = by_algebra(
    -sum(sympy.log(3 * h / budget) for h in (h1, h2, h3)),
    {h: 3 / budget - 1 / h for h in (h1, h2, h3)},
)
print("n / sum(H) - 1 / H, by algebra:", algebra["length balance"])
at = lengths.clone()
for _ in range(2000):
    at = at - 0.5 * losses.length_balance_loss_grad(at)
print("3, 8, 20 after descent:", at, f" loss {losses.length_balance_loss(at).abs():.4f}")

# %% [markdown]
# Why 12.6, when the mean of 3, 8 and 20 is 10.3? A common factor changes nothing, so the gradient
# is at right angles to $H$, and small steps keep $\sum_i H_i^2$:
# $\sqrt{(9 + 64 + 400)/3} = 12.56$.

# %% [markdown]
# ### Repair 2: a length with a gradient
#
# If a summary should have a certain length $\tau$, use one that is smooth: the *expected* length
# under the model's probabilities $q_k = \sigma(z_k)$ of stopping after token $k$, among at most $T$
# tokens. With $S_t$ the probability of still writing before token $t$, and $\partial q_k/\partial
# z_k = q_k(1-q_k)$,
#
# $$E = \sum_{t=0}^{T-1} S_t, \quad S_t = \prod_{k<t}(1-q_k), \qquad
#   \frac{\partial E}{\partial z_k} = -q_k \sum_{t>k} S_t$$
#
# Then add a multiple of $(E/\tau - 1)^2$ to the token loss below. Here alone, with $\tau = 5$:

# %%
checked["expected length"] = check_gradient(
    losses.expected_length, losses.expected_length_grad, stop_logits
)
q0, q1 = (1 / (1 + sympy.exp(-z)) for z in symbols[:2])
algebra["expected length"] = by_algebra(
    1 + (1 - q0) + (1 - q0) * (1 - q1),  # S_0 + S_1 + S_2
    {symbols[0]: -q0 * ((1 - q0) + (1 - q0) * (1 - q1)), symbols[1]: -q1 * (1 - q0) * (1 - q1)},
)
print("by algebra:", algebra["expected length"])
at = torch.full((12,), -3.0, dtype=torch.float64)
before = losses.expected_length(at)
for _ in range(200):
    excess = losses.expected_length(at) / 5 - 1
    at = at - 2 * (2 * excess / 5) * losses.expected_length_grad(at)
print(f"expected length {before:.2f}, after descent on (E/5 - 1)²: "
      f"{losses.expected_length(at):.2f}")  # fmt: skip

# %% [markdown]
# ### What summarizers really optimise
#
# The cross-entropy of each next token, given the *true* tokens before it (**teacher forcing**) and
# the document $x_b$; its mean over the $N$ tokens that are scored:
#
# $$L = -\frac{1}{N}\sum_{b,t} \log p_\theta\big(y_{b,t+1} \mid y_{b,\le t}, x_b\big)$$
#
# Position $t$ is scored on token $t+1$. The end token is one of them, so the length is learned like
# any other word, and the gradient is the one of section 2, $(p - y)/N$ at each position.

# %%
tokens = torch.tensor([[5, 2, 7, 1], [3, 4, 1, -100]])  # 1 ends a summary, -100 is padding
pd.DataFrame(
    {
        "position t": [0, 1, 2],
        "has read": ["5", "5 2", "5 2 7"],
        "is scored on": tokens[0, 1:].tolist(),
        "in row two": ["4", "1 (end)", "nothing"],
    }
)

# %%
token_logits = torch.randn(2, 4, 8, dtype=torch.float64)
agree = torch.allclose(losses.token_cross_entropy(token_logits, tokens),
                       losses.token_cross_entropy_naive(token_logits, tokens))  # fmt: skip
print("the double sum and the form that is used agree:", agree)
checked["next token"] = check_gradient(
    losses.token_cross_entropy, losses.token_cross_entropy_grad, token_logits, tokens
)

# %% [markdown]
# ## 5. An audit of a published table
#
# The same material prints this report for IMDB, and speaks of an "F1 of 85.3 %":

# %%
table = {
    "0": {"precision": 0.830, "recall": 0.817, "f1-score": 0.821, "support": 25000},
    "1": {"precision": 0.854, "recall": 0.879, "f1-score": 0.865, "support": 25000},
    "micro avg": {"precision": 0.835, "recall": 0.837, "f1-score": 0.835},
    "macro avg": {"precision": 0.837, "recall": 0.829, "f1-score": 0.833},
    "weighted avg": {"precision": 0.835, "recall": 0.837, "f1-score": 0.835},
}
pd.DataFrame(table).T

# %% [markdown]
# No data and no code are needed to check it: the columns depend on each other.
#
# **F1 from precision and recall.** $F_1 = 2PR/(P+R)$. A printed 0.830 stands for anything from
# 0.8295 to 0.8305, so the arithmetic gives an interval, and the printed F1 must touch it:

# %%
def f1(p, r):
    return 2 * p * r / (p + r)


for name in ("0", "1"):
    row = table[name]
    low, high = (f1(row["precision"] + d, row["recall"] + d) for d in (-0.0005, 0.0005))
    print(f"class {name}: F1 from {low:.4f} to {high:.4f}, printed {row['f1-score']:.3f}")

# %% [markdown]
# **Averages.** The macro average is the mean of the two class rows. Both classes have the same
# support, so the weighted average is the same mean:

# %%
pd.DataFrame(
    {
        "mean of the two rows": [(table["0"][k] + table["1"][k]) / 2 for k in table["0"]][:3],
        "macro avg as printed": list(table["macro avg"].values()),
        "weighted avg as printed": list(table["weighted avg"].values()),
    },
    index=["precision", "recall", "f1-score"],
).round(4)

# %% [markdown]
# **Micro average.** Each review gets one label, so each error is one false positive of one class
# and one false negative of the other. Summed over the classes the two counts are equal, hence
# micro precision = micro recall = micro F1 = accuracy. The table prints 0.835, 0.837, 0.835.
#
# **Is there any confusion matrix?** The recalls fix how many reviews of each class were right, to
# within the rounding. That leaves few matrices to try: all of them.
#
# `audit_report` does all of this for any such table; IMDB's real test set has 12,500 reviews of
# each class. Its verdicts: *consistent*; *rounding*, possible only at the edge of the intervals;
# *impossible*, for no true values; *differs*, not what was expected or claimed.

# %%
report = metrics.audit_report(table, expected_support=12500, claims={"F1": 0.853})
report.to_frame()

# %%
for check in ("confusion matrix", "rows of 1 / rows of 0", "F1 of macro avg"):
    print(f"{check}:", next(f.says for f in report.findings if f.check == check))

# %% [markdown]
# The macro F1 passes because a second definition is in use, the F1 of the row's own precision and
# recall; by the usual one, the mean of the two class rows, it is 0.843 above.
#
# **A proof without a search**, and without the supports. Let $\rho = n_1/n_0$ be the ratio of the
# classes. Precision of class 0 is $R_0 n_0 / (R_0 n_0 + (1-R_1) n_1)$, which fixes $\rho$, and so
# does the precision of class 1:
#
# $$\rho = \frac{R_0 (1-P_0)}{P_0 (1-R_1)} \qquad \rho = \frac{P_1 (1-R_0)}{R_1 (1-P_1)}$$

# %%
P0, R0, P1, R1 = (table[c][k] for c in "01" for k in ("precision", "recall"))
print(f"class 0 asks for {R0 * (1 - P0) / (P0 * (1 - R1)):.2f} positive reviews for one negative")
print(f"class 1 asks for {P1 * (1 - R0) / (R1 * (1 - P1)):.2f}")
print("the supports say", table["1"]["support"] / table["0"]["support"])

# %% [markdown]
# Three different ratios, and the intervals above show that rounding moves only the second decimal.
# No data set of any size gives this table. For comparison, a report computed from predictions
# (simulated ones, right in 85 % of cases) passes every check:

# %%
generator = np.random.default_rng(seed)
truth = np.repeat([0, 1], 12500)
guess = np.where(generator.random(25000) < 0.85, truth, 1 - truth)
computed = metrics.classification_report(truth, guess, ["0", "1"])
audit = metrics.audit_report(computed, expected_support=12500)
print("possible:", audit.possible, " verdicts:", sorted({f.verdict for f in audit.findings}))

# %% [markdown]
# ### The listing beside the table
#
# The same text's code has faults that can be shown as well. **Two settings**, both said to be
# those of the run:

# %%
pd.DataFrame(
    {"one place": ["1e-5", "32", "10"], "another place": ["2e-5", "16", "5"]},
    index=["learning rate", "batch size", "epochs"],
)

# %% [markdown]
# **The model's name.** `gpt3` can't be loaded by anybody: its weights were never released.

# %%
try:
    load_model("gpt3")
except ValueError as error:
    print(error)

# %% [markdown]
# **Padding without a pad token.** GPT-style tokenizers have none until one is set:

# %%
tokenizer = load_model("tiny-decoder").tokenizer
tokenizer.pad_token = None
try:
    tokenizer(["short", "a longer one"], padding=True)
except ValueError as error:
    print(str(error).split(". ")[0])

# %% [markdown]
# **An `evaluate` that slices numbers.** Inside a loop over single labels it takes `label[:n]`:

# %%
for label in [1, 0]:
    try:
        label[:1]
    except TypeError as error:
        print(f"label {label}:", error)

# %% [markdown]
# **The test set as a validation set.** Its score is printed after every epoch and the best one is
# reported. Take 10 models that are *equally* good, right on 85 % of reviews, report the best of
# them on 500 test reviews, and do that 2,000 times:

# %%
scores = generator.binomial(500, 0.85, size=(2000, 10)) / 500
print(f"each model's true accuracy 0.850, mean of the best of ten {scores.max(axis=1).mean():.3f}")
print(f"the best of ten is above 0.85 in {(scores.max(axis=1) > 0.85).mean():.1%} of the trials")
large = generator.binomial(25000, 0.85, size=(2000, 10)) / 25000
print(f"with 25,000 test reviews the mean of the best of ten is {large.max(axis=1).mean():.4f}")

# %% [markdown]
# The gain shrinks with the test set, and epochs of one run resemble each other, which makes it
# smaller still. But nobody can say how large it was in a given table: choose by validation rows.

# %% [markdown]
# ## 6. Beyond one loss
#
# The formulas of later lessons, each with its check.
#
# ### Knowledge distillation
#
# A student with logits $z$ learns from a teacher's softened probabilities (Hinton et al. 2015).
# With $p^{(T)}(z) = \operatorname{softmax}(z/T)$ and teacher logits $v$:
#
# $$L = T^2 \cdot \frac1N\sum_i \mathrm{KL}\big(p^{(T)}(v_i)\,\|\,p^{(T)}(z_i)\big) \qquad
#   \frac{\partial L}{\partial z} = \frac{T}{N}\big(p^{(T)}(z) - p^{(T)}(v)\big)$$

# %%
student, teacher = torch.randn(2, 4, 3, dtype=torch.float64) * 2
checked["distillation"] = check_gradient(
    lambda z: losses.distillation_loss(z, teacher, temperature=3.0),
    lambda z: losses.distillation_grad(z, teacher, temperature=3.0),
    student,
)
T = sympy.Symbol("T", positive=True)
target = sympy.symbols("p0:3", positive=True)  # the teacher's probabilities
target = [*target[:2], 1 - target[0] - target[1]]
soft = [sympy.exp(z / T) / sum(sympy.exp(k / T) for k in symbols) for z in symbols]
algebra["distillation"] = by_algebra(
    T**2 * sum(p * sympy.log(p / q) for p, q in zip(target, soft, strict=True)),
    {z: T * (soft[c] - target[c]) for c, z in enumerate(symbols)},
)
print("T (p(z) - p(v)), by algebra:", algebra["distillation"])

# %% [markdown]
# **Why $T^2$.** Without it the gradient shrinks as $1/T^2$: raising $T$ would switch the teacher
# off. With it, the gradient tends to a limit, that of a squared error between centred logits,
# $\frac{1}{NC}\big((z-\bar z) - (v - \bar v)\big)$.

# %%
def centred(z):
    return z - z.mean(dim=1, keepdim=True)


limit = (centred(student) - centred(teacher)) / student.numel()
rows = []
for T in (1.0, 3.0, 10.0, 100.0, 1000.0):
    grad = losses.distillation_grad(student, teacher, temperature=T)
    rows.append([T, (grad / T**2).norm(), grad.norm(), (grad - limit).norm() / limit.norm()])
columns = ["T", "gradient without T²", "gradient with T²", "distance from the limit, relative"]
pd.DataFrame([[f"{float(v):.3g}" for v in row] for row in rows], columns=columns)

# %% [markdown]
# ### LoRA
#
# A frozen layer $W_0$ plus a trained one of rank $r$ (Hu et al. 2021). $B$ starts at 0, so the
# layer starts as the frozen one and $A$ gets no gradient in the first step. With $s = \alpha/r$, a
# scale that is chosen once, and $G = \partial L/\partial y$:
#
# $$y = xW_0^\top + s\,(xA^\top)B^\top \qquad
#   \frac{\partial L}{\partial A} = s\,B^\top G^\top x \qquad
#   \frac{\partial L}{\partial B} = s\,G^\top x A^\top$$

# %%
x, W0, A, B, G = (torch.randn(*shape, dtype=torch.float64)
                  for shape in [(4, 6), (5, 6), (2, 6), (5, 2), (4, 5)])  # fmt: skip


def lora_loss(x, A, B):
    return (G * losses.lora_forward(x, W0, A, B, alpha=8)).sum()  # a loss with dL/dy = G


def lora_gradients(x, A, B):
    return losses.lora_grads(x, W0, A, B, 8, G)


checked["LoRA"] = check_gradient(lora_loss, lora_gradients, x, A, B)
xs, ws, down, up, gs = (sympy.Matrix(2, 2, sympy.symbols(f"{name}:4")) for name in "xwabg")
scale = sympy.Symbol("s")
output = xs * ws.T + scale * (xs * down.T) * up.T
pairs = [(down, scale * up.T * gs.T * xs), (up, scale * gs.T * xs * down.T),
         (xs, gs * ws + scale * gs * up * down)]  # fmt: skip
algebra["LoRA"] = by_algebra(
    sum(g * y for g, y in zip(gs, output, strict=True)),
    {x: claim for of, claims in pairs for x, claim in zip(of, claims, strict=True)},
)
print("by algebra:", algebra["LoRA"])

# %%
start = losses.lora_forward(x, W0, A, torch.zeros_like(B), 8)
first = losses.lora_grads(x, W0, A, torch.zeros_like(B), 8, G)
merged = losses.lora_forward_naive(x, W0, A, B, 8)
print("with B = 0 it is the frozen layer:", torch.equal(start, x @ W0.T))
print(f"first gradients: of A {first.a.norm():.1f}, of B {first.b.norm():.1f}")
print("merged into one matrix it gives the same:",
      torch.allclose(merged, losses.lora_forward(x, W0, A, B, 8)))  # fmt: skip
print(f"weights at 768 x 768, r = 8: {8 * 2 * 768:,} instead of {768 * 768:,}")

# %% [markdown]
# ### The bottleneck adapter
#
# Inserted after a layer, with a skip connection (Houlsby et al. 2019):
# $y = h + U\,\varphi(Dh + c) + d$, with $\varphi$ the GELU, $\varphi(a) = a\,\Phi(a)$, and
# $\Phi(a)$ the probability that a standard normal number is below $a$. With $a = Dh + c$ and
# $S = (GU)\odot\varphi'(a)$, entry by entry: $\partial L/\partial h = G + SD$,
# $\partial L/\partial D = S^\top h$, $\partial L/\partial U = G^\top\varphi(a)$. The $G$ alone is
# the skip connection's.

# %%
parts = [torch.randn(*s, dtype=torch.float64) for s in [(4, 6), (2, 6), (2,), (6, 2), (6,)]]
G = torch.randn(4, 6, dtype=torch.float64)


def adapter_loss(hidden, down, down_bias, up, up_bias):
    return (G * losses.adapter_forward(hidden, down, down_bias, up, up_bias)).sum()


checked["adapter"] = check_gradient(
    adapter_loss, lambda *parts: losses.adapter_grads(*parts, G), *parts
)
h, D, c, U, d, g = sympy.symbols("h D c U d g", real=True)  # everything of size 1
a = D * h + c
normal = (1 + sympy.erf(a / sympy.sqrt(2))) / 2
slope = normal + a * sympy.exp(-(a**2) / 2) / sympy.sqrt(2 * sympy.pi)
S = g * U * slope
algebra["adapter"] = by_algebra(
    g * (h + U * a * normal + d), {h: g + S * D, D: S * h, c: S, U: g * a * normal, d: g}
)
print("by algebra:", algebra["adapter"])

# %% [markdown]
# ### The worst small change of an input
#
# Adversarial training asks for the $\delta$ that raises the loss most. To first order
# $\ell(x+\delta) \approx \ell(x) + \langle g, \delta\rangle$ with $g = \partial\ell/\partial x$.
# Hölder's inequality, $\langle g,\delta\rangle \le \|g\|_2\|\delta\|_2$ and $\langle
# g,\delta\rangle \le \|g\|_1\|\delta\|_\infty$, gives the maximiser in each ball, the *fast
# gradient method* (FGM):
#
# $$\|\delta\|_2 \le \varepsilon:\ \delta = \varepsilon\frac{g}{\|g\|_2} \qquad
#   \|\delta\|_\infty \le \varepsilon:\ \delta = \varepsilon\operatorname{sign}(g)$$
#
# Against 10,000 random perturbations on the boundary of the same ball, $\varepsilon = 1$:

# %%
g = torch.tensor([[3.0, -1.0, 0.5, 2.0]], dtype=torch.float64)
random = torch.randn(10_000, 4, dtype=torch.float64)
on_ball = {"l2": random / random.norm(dim=1, keepdim=True),
           "linf": random / random.abs().amax(dim=1, keepdim=True)}  # fmt: skip
bound = {"l2": g.norm().item(), "linf": g.abs().sum().item()}
pd.DataFrame(
    {
        norm: [(losses.fgm_perturbation(g, 1.0, norm) @ g.T).item(), bound[norm],
               (on_ball[norm] @ g.T).max().item()]
        for norm in ("l2", "linf")
    },
    index=["FGM's <g, delta>", "Hölder's bound", "best of 10,000 random ones"],
).round(3)  # fmt: skip

# %% [markdown]
# FGM takes one step. **PGD**, projected gradient descent (Madry et al. 2018), takes several of
# length $\alpha$ in FGM's direction $d$, and after each comes back to the nearest point of the
# ball: $\delta \leftarrow \Pi_\varepsilon\big(\delta + \alpha\,d(g)\big)$. Where the loss is curved
# it finds more. The gradient with respect to the input is one more check:

# %%
point, target = torch.tensor([[0.6, 0.2, -0.4]], dtype=torch.float64), torch.tensor([1])
V = torch.tensor([[-1.6, 0.0, -2.4], [4.1, 5.1, -0.7]], dtype=torch.float64)


def curved(x):
    return losses.cross_entropy(torch.tanh(x @ V.T) * 3, target)


def slope(x):
    squashed = torch.tanh(x @ V.T)
    return (losses.cross_entropy_grad(squashed * 3, target) * 3 * (1 - squashed**2)) @ V


checked["loss by input"] = check_gradient(curved, slope, point)
fgm = losses.fgm_perturbation(slope(point), 0.8)
pgd = losses.pgd_perturbation(slope, point, epsilon=0.8, step_size=0.2, steps=20)
print(f"loss {curved(point):.3f}, after FGM {curved(point + fgm):.3f}, "
      f"after PGD {curved(point + pgd):.3f}")  # fmt: skip
print(f"size of the change: FGM {fgm.norm():.3f}, PGD {pgd.norm():.3f}")

# %% [markdown]
# ### Several tasks at once
#
# The plain way is a weighted sum $L = \sum_k w_k L_k$. Kendall et al. (2018) learn the weights:
# with $s_k = \log\sigma_k^2$ and $c_k = 1$ for a cross-entropy, $\frac12$ for a squared error,
#
# $$L = \sum_k c_k\, e^{-s_k} L_k + \tfrac12 s_k \qquad
#   \frac{\partial L}{\partial L_k} = c_k e^{-s_k} \qquad
#   \frac{\partial L}{\partial s_k} = \tfrac12 - c_k e^{-s_k} L_k$$
#
# A noisy task gets little weight; the term $s_k/2$ keeps it from calling everything noise. For
# fixed losses the optimum is $\sigma_k^2 = 2 c_k L_k$.

# %%
kinds = ("classification", "regression")
task_losses = torch.tensor([0.5, 8.0], dtype=torch.float64)
log_variances = torch.zeros(2, dtype=torch.float64)
checked["uncertainty weights"] = check_gradient(
    lambda task_losses, log_variances:
        losses.uncertainty_weighted_loss(task_losses, log_variances, kinds),
    lambda task_losses, log_variances:
        losses.uncertainty_weighted_loss_grad(task_losses, log_variances, kinds),
    task_losses, log_variances,
)  # fmt: skip
k, L, s = sympy.symbols("c L s", positive=True)
algebra["uncertainty weights"] = by_algebra(
    k * sympy.exp(-s) * L + s / 2,
    {L: k * sympy.exp(-s), s: sympy.Rational(1, 2) - k * sympy.exp(-s) * L},
)
print("by algebra:", algebra["uncertainty weights"])

# %%
for _ in range(2000):
    grad = losses.uncertainty_weighted_loss_grad(task_losses, log_variances, kinds).log_variances
    log_variances = log_variances - 0.05 * grad
print("losses", task_losses.tolist(), " learned variances",
      [round(v, 3) for v in log_variances.exp().tolist()])  # fmt: skip

# %%
weights = torch.tensor([0.7, 0.3], dtype=torch.float64)
checked["weighted sum"] = check_gradient(
    lambda task_losses: losses.multitask_loss(task_losses, weights), weights, task_losses
)

# %% [markdown]
# ### Tags and spans
#
# **Tagging** scores every token that carries a tag (BIO: *begin*, *inside*, *outside*), and takes
# one mean over all of them. **Answer spans** put one softmax over the positions for the start and
# one for the end, with padding at probability 0:
# $L = -\frac{1}{2N}\sum_i \big(\log p^{start}_{s_i} + \log p^{end}_{e_i}\big)$. Both are section
# 2's loss at more places, so both have its gradient.

# %%
tag_logits = torch.randn(2, 4, 3, dtype=torch.float64)
tags = torch.tensor([[-100, 1, 2, -100], [-100, 0, -100, -100]])  # 0 = O, 1 = B, 2 = I
checked["tagging"] = check_gradient(
    losses.tagging_loss, losses.tagging_loss_grad, tag_logits, tags
)
starts, ends = torch.randn(2, 2, 5, dtype=torch.float64)
mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
place = torch.tensor([1, 0]), torch.tensor([3, 2])
checked["span"] = check_gradient(
    lambda starts, ends: losses.span_loss(starts, ends, *place, mask),
    lambda starts, ends: losses.span_loss_grad(starts, ends, *place, mask),
    starts, ends,
)  # fmt: skip

# %% [markdown]
# The mean over all tagged tokens is not the mean of the rows' means: with two tags in the first row
# and one in the second, the third tag would weigh twice as much.

# %%
per_row = [losses.tagging_loss(tag_logits[[i]], tags[[i]]) for i in (0, 1)]
print(f"over all tags {losses.tagging_loss(tag_logits, tags):.4f}, "
      f"mean of the rows' means {(per_row[0] + per_row[1]) / 2:.4f}")  # fmt: skip

# %% [markdown]
# ## Summary
#
# Every gradient of this lesson, by algebra, against autograd and against finite differences. Where
# the algebra is "in the text", it follows in a line: ignored labels, next tokens, tags and spans
# are section 2's loss at other places, a weighted sum is linear, and the loss by its input is a
# chain of factors that stand in the code.

# %%
pd.DataFrame(
    {
        "by algebra": [algebra.get(name, "in the text") for name in checked],
        "tensors": [len(result.tensors) for result in checked.values()],
        "autograd": [all(t.autograd.ok for t in r.tensors) for r in checked.values()],
        "finite differences": [all(t.differences.ok for t in r.tensors) for r in checked.values()],
    },
    index=list(checked),
)

# %% [markdown]
# - The **risk** is a mean over rows: add up sums, divide once. A batch mean estimates it with a
#   variance of $\sigma^2/B$.
# - The gradient of the **cross-entropy** is $p - y$, for the head it is $G^\top h$, and the head's
#   problem is convex. Use the log-sum-exp form, in float32.
# - **Weight decay** equals an L2 penalty for plain SGD only. AdamW keeps it out of the gradient.
# - **Clip** by one norm for all tensors; **accumulate** sums, not means.
# - A **derivation** is checked by three independent ways, a **table** by its own arithmetic. The
#   published ones failed both.

# %% [markdown]
# ## Exercises
#
# Write these yourself in [`exercises/01_math.ipynb`](exercises/01_math.ipynb): there each function
# is a stub, with hints and a check that names your mistake. Here they stand solved. In JupyterLab
# the solutions are folded, so open one when you have tried; elsewhere they stand open.

# %% tags=["exercise-setup"]
import torch

from tutorkit.checks import lesson_01

# %% [markdown] tags=["exercise"]
# ### Exercise 1: the risk from the means of batches
#
# **Goal**: combine batch means into the mean over all rows, also when the last batch is
# short.
#
# **Difficulty**: ●○○ **Minutes**: 5
#
# **Signature**: `risk_from_batches(batch_means, batch_sizes)`: (K,), (K,) whole numbers → a scalar
# tensor

# %% tags=["solution"] jupyter={"source_hidden": true}
def risk_from_batches(batch_means, batch_sizes):
    """The mean loss over all rows of K batches.

    batch_means: (K,) mean loss of each batch; batch_sizes: (K,) its rows. Returns a scalar tensor.
    """
    ### BEGIN SOLUTION
    sums = batch_means * batch_sizes  # (K,)
    return sums.sum() / batch_sizes.sum()
    ### END SOLUTION

# %% tags=["check"]
lesson_01.risk_from_batches.check(risk_from_batches)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: the gradient of the cross-entropy
#
# **Goal**: write $(p - y)/N$, the gradient that every classifier starts its backward pass
# with.
#
# **Difficulty**: ●○○ **Minutes**: 10
#
# **Signature**: `cross_entropy_gradient(logits, labels)`: (N, C), (N,) → (N, C)

# %% tags=["solution"] jupyter={"source_hidden": true}
def cross_entropy_gradient(logits, labels):
    """The gradient of the mean cross-entropy with respect to the logits.

    logits: (N, C); labels: (N,) class numbers. Returns (N, C).
    """
    ### BEGIN SOLUTION
    p = torch.softmax(logits, dim=1)  # (N, C)
    y = torch.nn.functional.one_hot(labels, logits.shape[1])  # (N, C)
    return (p - y) / len(logits)
    ### END SOLUTION

# %% tags=["check"]
lesson_01.cross_entropy_gradient.check(cross_entropy_gradient)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: label smoothing
#
# **Goal**: compute the mean cross-entropy against smoothed labels
# $q = (1-\varepsilon)\,y + \varepsilon/C$.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `smoothed_loss(logits, labels, smoothing)`: (N, C), (N,), a number → a scalar
# tensor

# %% tags=["solution"] jupyter={"source_hidden": true}
def smoothed_loss(logits, labels, smoothing):
    """The mean of -sum_c q_c log p_c over the rows.

    logits: (N, C); labels: (N,) class numbers; smoothing: the share that is spread over all C
    classes. Returns a scalar tensor.
    """
    ### BEGIN SOLUTION
    classes = logits.shape[1]
    onehot = torch.nn.functional.one_hot(labels, classes)
    q = (1 - smoothing) * onehot + smoothing / classes  # (N, C)
    log_p = torch.log_softmax(logits, dim=1)
    return -(q * log_p).sum(dim=1).mean()
    ### END SOLUTION

# %% tags=["check"]
lesson_01.smoothed_loss.check(smoothed_loss)

# %% [markdown] tags=["exercise"]
# ### Exercise 4: the mean over what counts
#
# **Goal**: average token losses over the tokens with a label other than −100, and return 0
# where there is none.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `mean_over_labelled(losses, labels)`: (B, T), (B, T) → a scalar tensor

# %% tags=["solution"] jupyter={"source_hidden": true}
def mean_over_labelled(losses, labels):
    """The mean of the losses whose label is not -100; 0 if there is none.

    losses: (B, T); labels: (B, T). Returns a scalar tensor of the losses' dtype.
    """
    ### BEGIN SOLUTION
    kept = labels != -100  # (B, T)
    return (losses * kept).sum() / kept.sum().clamp(min=1)
    ### END SOLUTION

# %% tags=["check"]
lesson_01.mean_over_labelled.check(mean_over_labelled)

# %% [markdown] tags=["exercise"]
# ### Exercise 5: one step of AdamW
#
# **Goal**: turn the AdamW update of section 3 into code, with $\beta = (0.9, 0.999)$ and
# $\epsilon = 10^{-8}$.
#
# **Difficulty**: ●●● **Minutes**: 20
#
# **Signature**: `adamw(theta, grad, first, second, step, learning_rate, weight_decay)`: four
# tensors of one shape, and three numbers → (theta, first, second)
#
# `first` and `second` are $m$ and $v$ as the step before left them, uncorrected; `step` is $t$, 1
# at the first step.

# %% tags=["solution"] jupyter={"source_hidden": true}
def adamw(theta, grad, first, second, step, learning_rate, weight_decay):
    """One AdamW step; returns the new (theta, first, second), each a new tensor.

    theta, grad, first (m), second (v): tensors of one shape; step: t, counted from 1.
    """
    ### BEGIN SOLUTION
    first = 0.9 * first + 0.1 * grad
    second = 0.999 * second + 0.001 * grad**2
    m = first / (1 - 0.9**step)
    v = second / (1 - 0.999**step)
    direction = m / (v.sqrt() + 1e-8)
    theta = theta - learning_rate * direction - learning_rate * weight_decay * theta
    return theta, first, second
    ### END SOLUTION

# %% tags=["check"]
lesson_01.adamw.check(adamw)

# %% [markdown] tags=["exercise"]
# ### Exercise 6: clip two gradients together
#
# **Goal**: scale both by one factor so that their joint norm is at most `max_norm`.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `clip_together(first, second, max_norm)`: two tensors and a number → two tensors

# %% tags=["solution"] jupyter={"source_hidden": true}
def clip_together(first, second, max_norm):
    """Both gradients, scaled by one factor where their joint norm is above max_norm.

    first, second: tensors of any shapes; max_norm: a number above 0. Returns (first, second).
    """
    ### BEGIN SOLUTION
    norm = (first.pow(2).sum() + second.pow(2).sum()).sqrt()
    factor = torch.clamp(max_norm / norm, max=1.0)
    return first * factor, second * factor
    ### END SOLUTION

# %% tags=["check"]
lesson_01.clip_together.check(clip_together)

# %% [markdown] tags=["exercise"]
# ### Exercise 7: the gradient that the text should have stated
#
# **Goal**: differentiate $\ell(H) = -\sum_i \log(H_i/n)$.
#
# **Difficulty**: ●○○ **Minutes**: 5
#
# **Signature**: `max_length_gradient(lengths)`: (n,) lengths above 0 → (n,)

# %% tags=["solution"] jupyter={"source_hidden": true}
def max_length_gradient(lengths):
    """The gradient of -sum_i log(H_i / n) with respect to the lengths H.

    lengths: (n,), all above 0. Returns (n,).
    """
    ### BEGIN SOLUTION
    return -1 / lengths
    ### END SOLUTION

# %% tags=["check"]
lesson_01.max_length_gradient.check(max_length_gradient)

# %% [markdown] tags=["exercise"]
# ### Exercise 8: the gradient of distillation
#
# **Goal**: derive $\partial L/\partial z$ of section 6: which powers of $T$ are left?
#
# **Difficulty**: ●●● **Minutes**: 15
#
# **Signature**: `distillation_gradient(student_logits, teacher_logits, temperature)`: (N, C),
# (N, C), a number → (N, C)

# %% tags=["solution"] jupyter={"source_hidden": true}
def distillation_gradient(student_logits, teacher_logits, temperature):
    """The gradient of T² KL(teacher ‖ student), mean over rows, by the student's logits.

    student_logits, teacher_logits: (N, C); temperature: T. Returns (N, C).
    """
    ### BEGIN SOLUTION
    p = torch.softmax(teacher_logits / temperature, dim=1)
    q = torch.softmax(student_logits / temperature, dim=1)
    return temperature * (q - p) / len(student_logits)
    ### END SOLUTION

# %% tags=["check"]
lesson_01.distillation_gradient.check(distillation_gradient)

# %% [markdown] tags=["exercise"]
# ### Exercise 9: the accuracy behind a table
#
# **Goal**: compute the accuracy from the recall and the support of each class.
#
# **Difficulty**: ●○○ **Minutes**: 5
#
# **Signature**: `accuracy_from_recalls(recalls, supports)`: (C,), (C,) whole numbers → a scalar
# tensor
#
# Then ask it about section 5: which accuracy do the class rows imply, and which one does the micro
# average print? (0.848; 0.835 to 0.837.)

# %% tags=["solution"] jupyter={"source_hidden": true}
def accuracy_from_recalls(recalls, supports):
    """The share of all rows that were right.

    recalls: (C,) share of each class that was right; supports: (C,) its rows. Returns a scalar
    tensor.
    """
    ### BEGIN SOLUTION
    right = recalls * supports  # (C,) rows of each class that were right
    return right.sum() / supports.sum()
    ### END SOLUTION

# %% tags=["check"]
lesson_01.accuracy_from_recalls.check(accuracy_from_recalls)

# %% [markdown]
# ## Further reading
#
# - I. Goodfellow, Y. Bengio, A. Courville, *Deep Learning*, 2016: sections 6.2 (losses and output
#   units) and 8.1 to 8.5 (optimization).
# - D. Kingma, J. Ba, *Adam*, ICLR 2015; I. Loshchilov, F. Hutter, *Decoupled Weight Decay
#   Regularization*, ICLR 2019. Its proposition 2 is short, and the reason for AdamW.
# - J. Howard, S. Ruder, *Universal Language Model Fine-tuning for Text Classification*, ACL 2018.
# - C. Szegedy et al., *Rethinking the Inception Architecture*, CVPR 2016, section 7; R. Pascanu,
#   T. Mikolov, Y. Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013.
# - G. Hinton, O. Vinyals, J. Dean, *Distilling the Knowledge in a Neural Network*, 2015; E. Hu et
#   al., *LoRA*, 2021; N. Houlsby et al., *Parameter-Efficient Transfer Learning for NLP*, 2019.
# - T. Miyato, A. Dai, I. Goodfellow, ICLR 2017, and A. Madry et al., ICLR 2018, on perturbations;
#   A. Kendall, Y. Gal, R. Cipolla, CVPR 2018, on several tasks.
# - J. Opitz, S. Burst, *Macro F1 and Macro F1*, 2019: two different numbers under one name.
#
# Next: from texts to tensors, [`02_data`](02_data.ipynb).
