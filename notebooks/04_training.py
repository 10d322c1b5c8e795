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
# # The training loop, grown step by step
#
# A training loop is a few lines that anybody can write, and some more that keep it from going wrong
# in silence. Here it grows from the few lines to the form in the package. Most parts come after
# a run that fails without them. In the last sections it is killed, resumed, and used to fine-tune a
# pretrained model.
#
# **After this lesson you can** write the loop from an empty cell, tell from a loss curve which of
# its parts is missing, stop a run and take it up again with the same result, and find three flaws
# of a kind seen in published work.
#
# **Time**: about a minute to run on two CPU cores, and not much faster on a GPU; two to three hours
# to read, the exercises not counted. **Needs**: the installed package. The weights of `minilm`
# (about 90 MB) are fetched once and kept. The update rules themselves (AdamW, schedules, clipping)
# are in [`01_math`](01_math.ipynb), section 3.

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
model = "minilm"  # the pretrained model
dataset = "reviews"  # where the texts come from
rows = 440  # texts of a split that are used, at most
max_length = 64  # tokens a text
batch_size = 16  # rows in one forward pass
fine_tuned_rows = 160  # texts in the fine-tuning run of section 13, at most
seed = 0  # of new weights, the order of rows, and dropout

# %%
import copy
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from tutorkit import data, heads, losses, metrics, plots, sources, training, widgets
from tutorkit.board import TrainingBoard
from tutorkit.models import load_model
from tutorkit.training import TrainConfig
from tutorkit.training_figures import (
    StepSizes,
    choice_by_score,
    choice_figure,
    loss_figure,
    panels_figure,
)

splits = sources.load_splits(dataset, seed)
parts = {name: data.take_rows(splits[name], rows, seed, name) for name in splits}
loaded = load_model(model, seed=seed)
print({name: len(part) for name, part in parts.items()})

# %% [markdown]
# ## 1. Five examples first
#
# A model with millions of weights can learn five texts by heart. If a loop can't bring their loss
# to zero, something in it is broken, and no amount of data or patience will mend it. So this is the
# first test of every loop. It takes seconds.
#
# The loop in its smallest form: predict, measure, clear the old gradients, compute new ones, step.

# %%
def overfit(network, batch, learning_rate, steps):
    """Train on one batch again and again; returns the loss before each step."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    found = []
    for _ in range(steps):
        logits = network(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = losses.cross_entropy(logits, batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


shortest = sorted(parts["train"], key=lambda row: len(row["text"]))
negative, positive = ([row for row in shortest if row["label"] == label] for label in (0, 1))
five = negative[:2] + positive[:3]
for row in five:
    print(row["label"], row["text"])

# %%
def as_batch(rows, tokenizer):
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    return data.SentimentDataset(texts, labels, tokenizer, 32).batch(range(len(rows)))


found = overfit(
    copy.deepcopy(loaded.model), as_batch(five, loaded.tokenizer), learning_rate=3e-4, steps=15
)
print(f"before: near log 2 {abs(found[0] - 0.69) < 0.3}")
print(f"after {len(found)} steps: below 0.05 {found[-1] < 0.05}")

# %%
loss_figure({"five reviews": found}, f"{model} learns five reviews by heart")

# %% [markdown]
# The model was in evaluation mode, without dropout: with dropout the loss of even a perfect loop
# keeps jumping.
#
# ### What this test catches
#
# The right loop and six with one mistake each, on the same five texts. All of them run without an
# error. To have it quickly, the model is `tiny`, two layers with random weights.

# %%
def update(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def no_step(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()


def cleared_too_late(optimizer, loss):
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()

# %%
def passes(after_loss, learning_rate=3e-3, trained=lambda network: network, labels=lambda y: y):
    """Whether 60 steps of a loop bring the loss of the five texts below 0.05."""
    tiny = load_model("tiny", seed=seed)
    batch, network = as_batch(five, tiny.tokenizer), tiny.model
    optimizer = torch.optim.AdamW(trained(network).parameters(), lr=learning_rate)
    torch.manual_seed(seed)
    for _ in range(60):
        logits = network(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = losses.cross_entropy(logits, labels(batch["labels"]))
        after_loss(optimizer, loss)
    return loss.item() < 0.05


pd.Series({
    "the right loop": passes(update),
    "no optimizer.step()": passes(no_step),
    "zero_grad() between backward() and step()": passes(cleared_too_late),
    "optimizer made for a copy of the model": passes(update, trained=copy.deepcopy),
    "labels in a new order at each step": passes(update, labels=lambda y: y[torch.randperm(5)]),
    "labels of other rows, always the same": passes(update, labels=lambda y: y.roll(1)),
    "all labels turned round": passes(update, labels=lambda y: 1 - y),
}, name="passes").to_frame()  # fmt: skip

# %% [markdown]
# The last two lines are a warning: a loop that passes is able to learn. It passes with labels of
# other rows as well, if they stay the same. So the test does not say that what is learned is right;
# for that, look at some rows of a batch.

# %% [markdown]
# ## 2. A small setting
#
# To see a dozen runs go wrong, each must be short. So the backbone stays as it is, its pooled
# hidden states are computed once, and only a small head is trained on them. What fails here fails
# in the same way when everything is trained, only more slowly.

# %%
@torch.no_grad()
def states_of(part):
    """The mean over the real tokens of the last hidden states, (N, H)."""
    texts = data.SentimentDataset(part["text"], part["label"], loaded.tokenizer, max_length)
    pooled = torch.zeros(len(texts), loaded.model.config.hidden_size, dtype=torch.float64)
    for chosen in data.evaluation_batches(texts.lengths, 32):
        batch = texts.batch(chosen)
        mask = batch["attention_mask"]
        hidden = loaded.model.base_model(batch["input_ids"], attention_mask=mask).last_hidden_state
        pooled[chosen] = heads.pool(hidden, mask, "mean").double()
    return pooled


states = {name: states_of(part) for name, part in parts.items()}
scale = states["train"].std()  # one number for all: the spread of the training states becomes 1
states = {name: values / scale for name, values in states.items()}
print({name: tuple(values.shape) for name, values in states.items()})

# %% [markdown]
# The loop should not notice the difference. So the states come in a data set that makes the same
# batches as `SentimentDataset`, and the head is called like a model: `input_ids` holds states
# instead of ids.

# %%
class States:
    """Hidden states and labels in the shape of a data set of texts."""

    def __init__(self, states, labels):
        self.states, self.labels = states, np.asarray(labels)
        self.lengths = np.ones(len(labels), dtype=int)  # one "token" a row

    def __len__(self):
        return len(self.labels)

    def batch(self, rows):
        rows = torch.as_tensor(np.asarray(rows))
        mask = torch.ones(len(rows), 1, dtype=torch.long)
        labels = torch.from_numpy(self.labels)[rows]
        return {"input_ids": self.states[rows], "attention_mask": mask, "labels": labels}


train, validation, test = (States(states[name], parts[name]["label"]) for name in parts)
print({name: tuple(tensor.shape) for name, tensor in train.batch(range(16)).items()})

# %%
class Head(torch.nn.Module):
    """Hidden layers, dropout, two scores; called like a model that reads token ids."""

    def __init__(self, width, hidden=64, layers=1, norm=False, dropout=0.2):
        super().__init__()
        inner = []
        for _ in range(layers):
            inner += [torch.nn.Linear(width, hidden), torch.nn.ReLU()]
            inner += [torch.nn.LayerNorm(hidden)] if norm else []
            width = hidden
        self.layers = torch.nn.Sequential(
            *inner, torch.nn.Dropout(dropout), torch.nn.Linear(hidden, 2)
        )

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.layers(input_ids))


def new_head(seed=seed, **shape):
    torch.manual_seed(seed)
    return Head(train.states.shape[1], **shape).double().train()


print("weights of a head:", f"{sum(p.numel() for p in new_head().parameters()):,}")

# %% [markdown]
# ## 3. One batch, one epoch
#
# One **step** looks at one batch. One **epoch** looks at every row once. A run is some epochs.

# %%
def forward(network, dataset, rows):
    """Logits (B, C) and labels (B,) of some rows."""
    batch = dataset.batch(rows)
    logits = network(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits, batch["labels"]


def step(network, optimizer, dataset, rows):
    """One optimizer step on one batch; returns its loss."""
    loss = losses.cross_entropy(*forward(network, dataset, rows))
    update(optimizer, loss)
    return loss.item()


network = new_head()
optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
starts = range(0, len(train), batch_size)
batches = [range(len(train))[start : start + batch_size] for start in starts]
one_epoch = [step(network, optimizer, train, rows) for rows in batches]
print("rows", len(train), " steps", len(one_epoch), " rows of the last step", len(batches[-1]))

# %% [markdown]
# Now the whole run, with everything open that the next sections will get wrong: the step, the order
# of the rows, the learning rate of each step, the optimizer, and what happens after an epoch.

# %%
def shuffled(epoch):
    """The batches of an epoch, in an order that depends on the seed and the epoch alone."""
    order = np.random.default_rng((seed, epoch)).permutation(len(train))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def run(network, dataset=None, step=step, order=shuffled, rate=lambda t, total: 3e-3,
        optimizer=torch.optim.AdamW, epochs=5, watch=None, **settings):  # fmt: skip
    """Train a network; returns the loss of each step.

    watch: called with the network and the epoch after each epoch; True ends the run.
    """
    total, found = epochs * len(order(0)), []
    optimizer = optimizer(network.parameters(), lr=rate(0, total), **settings)
    torch.manual_seed(seed)  # for dropout
    for epoch in range(epochs):
        for rows in order(epoch):
            for group in optimizer.param_groups:
                group["lr"] = rate(len(found), total)
            found.append(step(network, optimizer, dataset or train, rows))
        if watch is not None and watch(network, epoch):
            break
    return found


per_epoch = len(shuffled(0))
good = run(new_head())
loss_figure({"five epochs": good}, "The head learns")

# %% [markdown]
# The loss starts at that of guessing, $\log 2$, and falls. Steps differ because batches differ; the
# line is a running mean. Keep this picture beside the ones that follow.
#
# ### It goes wrong: gradients that are never cleared
#
# PyTorch *adds* new gradients to the old ones. Without `zero_grad()` each step follows the sum of
# all gradients since the start, most of them computed for weights that are long gone.

# %%
def step_without_zero_grad(network, optimizer, dataset, rows):
    loss = losses.cross_entropy(*forward(network, dataset, rows))
    loss.backward()
    optimizer.step()
    return loss.item()


careless = run(new_head(), step=step_without_zero_grad)
loss_figure({"with zero_grad()": good, "without": careless})

# %% tags=["nbval-ignore-output"]
def last_epoch(found):
    """The mean loss of the last epoch's steps."""
    return np.mean(found[-per_epoch:])


for name, losses_of_run in {"with zero_grad()": good, "without": careless}.items():
    print(f"{name}: mean loss of the last epoch {last_epoch(losses_of_run):.2f}")

# %%
print("last epoch, at least 1.3 times the loss:", last_epoch(careless) > 1.3 * last_epoch(good))
print("the first step is the same:", careless[0] == good[0])

# %% [markdown]
# It does learn a little: that is why this flaw survives. Adam divides by the size of the gradient,
# so it hides that the sum keeps growing. What it can't hide is that the direction is stale.

# %% [markdown]
# ## 4. The order of rows
#
# Files are often sorted by label. IMDB is: first one class, then the other. Read in that order,
# nearly every batch holds one class only, and the cheapest way to a low loss is to say that class
# always.

# %%
def sorted_by_label(epoch):
    order = np.argsort(train.labels, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


in_order = run(new_head(), order=sorted_by_label)
with plots.styled_figure(2.6) as figure:
    axes = figure.subplots()
    axes.plot(range(1, len(good) + 1), good, color=plots.BLUE, linewidth=1, label="shuffled")
    axes.plot(range(1, len(in_order) + 1), in_order, color=plots.VERMILLION, label="sorted")
    for start in range(0, len(in_order), per_epoch):
        axes.axvline(start + per_epoch / 2, color=plots.GREY, linewidth=0.8, linestyle=":")
    axes.set(title="Loss of each step (dotted: where the second class begins)",
             xlabel="optimizer step", ylim=(0, 1.5))  # fmt: skip
    axes.legend()
figure

# %% tags=["nbval-ignore-output"]
half = per_epoch // 2
first_half, second_half = in_order[half - 4 : half - 1], in_order[half + 1 : half + 4]
print(f"three steps at the end of the first class: {np.mean(first_half):.3f}")
print(f"three steps at the start of the second: {np.mean(second_half):.1f}")
for name, losses_of_run in {"sorted": in_order, "shuffled": good}.items():
    print(f"{name}: mean loss of the last epoch {last_epoch(losses_of_run):.2f}")

# %%
print("sure of the first class at the end of its half:", np.mean(first_half) < 0.1)
for name, losses_of_run in {"sorted": in_order, "shuffled": good}.items():
    print(f"{name}: still near the loss of guessing: {last_epoch(losses_of_run) > 0.6}")

# %% [markdown]
# In the first half epoch the loss falls to 0: the head says "negative" to everything. Then the
# second class begins, the loss leaves the frame for some steps, and from there on nearly nothing is
# learned.
#
# So the rows are shuffled, anew for every epoch, and from (seed, epoch) alone: section 12 needs
# that. For texts of unequal length, `data.training_batches` shuffles as well and puts similar
# lengths together (lesson 02 shows what that saves); with equal lengths it is a plain shuffle:

# %%
batches = data.training_batches(train.lengths, batch_size, seed, epoch=0)
ours = sorted(tuple(sorted(rows)) for rows in shuffled(0))
print("the same batches:", ours == sorted(tuple(sorted(rows)) for rows in batches))
every = sorted(int(row) for rows in batches for row in rows)
print("every row once:", every == list(range(len(train))))

# %% [markdown]
# ## 5. How large a step
#
# **Too small**, and nothing happens in the time there is. **Too large**, and the loss rises above
# that of guessing: the model is sure of itself and wrong. A good value is found by trying powers of
# three or ten on few steps.

# %%
def constant(learning_rate):
    return lambda t, total: learning_rate


rates = {"0.003": 3e-3, "0.1": 0.1, "0.00003": 3e-5}
tried = {name: run(new_head(), rate=constant(value)) for name, value in rates.items()}
loss_figure(tried, "Learning rates", each_step=True)

# %%
pd.DataFrame({
    "learns": [last_epoch(tried[name]) < 0.5 for name in rates],
    "more than ten losses above 1": [sum(x > 1 for x in tried[name]) > 10 for name in rates],
}, index=pd.Index(rates, name="learning rate"))  # fmt: skip

# %% [markdown]
# ### It goes wrong: no warm-up
#
# Adam divides each gradient by its own size, so its *first* step moves every weight by the full
# learning rate, in the direction that a single batch happened to give (lesson 01). By hand: a
# hidden unit sums over $H$ inputs of size about 1. If all its weights move by $\eta$ in the
# direction of the signs of the inputs, the sum moves by about $\eta H$. With $H = 384$ and
# $\eta = 0.03$ that is 11.5, where it was about 1 before. In a deeper network each layer does so.
#
# A head of three layers, each followed by a LayerNorm as in BERT; twelve seeds with and without
# warm-up over a tenth of the steps. Both decline linearly to zero, both are clipped (section 6).

# %%
def clipped_step(network, optimizer, dataset, rows, max_grad_norm=1.0):
    loss = losses.cross_entropy(*forward(network, dataset, rows))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
    optimizer.step()
    return loss.item()


def scheduled(peak, warmup_ratio):
    def rate(t, total):
        return peak * losses.lr_schedule("linear", t, total, round(warmup_ratio * total))

    return rate


def deep_run(peak, warmup_ratio, seed=seed, epochs=4):
    network = new_head(seed, layers=3, norm=True)
    return run(network, step=clipped_step, rate=scheduled(peak, warmup_ratio), epochs=epochs)


groups = {f"{name} warm-up": [deep_run(0.03, ratio, s) for s in range(12)]
          for name, ratio in (("10 %", 0.1), ("no", 0.0))}  # fmt: skip
panels_figure(groups)

# %% tags=["nbval-ignore-output"]
ends = {name: np.array([last_epoch(found) for found in runs]) for name, runs in groups.items()}
for name, values in ends.items():
    above = (values > 0.6).sum()
    print(f"{name}: ends above 0.6: {above} of {len(values)}, mean {values.mean():.2f}")

# %%
for name, values in ends.items():
    print(f"{name}: some of 12 seeds end above 0.6: {(values > 0.6).any()}")
print("mean over the seeds, lower with warm-up:",
      ends["10 % warm-up"].mean() < ends["no warm-up"].mean())  # fmt: skip

# %% [markdown]
# A run that ends at $\log 2$ gives every text nearly the same answer, and has not come out of it in
# these four epochs. Fine-tuned BERT models do this too, with the seed as the only difference, and a
# warm-up is part of the remedy (Mosbach et al. 2021).
#
# ### See it: choose a peak and a warm-up
#
# Each choice makes a run of the deeper head, three epochs long. Warm-up and decline are straight
# lines; they look curved because the axis of the learning rate is logarithmic.

# %%
def trial(learning_rate, warmup_ratio):
    total = 3 * per_epoch
    rates = [scheduled(learning_rate, warmup_ratio)(t, total) for t in range(total)]
    return rates, deep_run(learning_rate, warmup_ratio, epochs=3)


step_sizes = StepSizes(trial)
step_sizes.figure

# %% [markdown]
# Where does it stop learning on the way up? Which of the failing rates does a longer warm-up save?

# %%
widgets.explore(step_sizes)

# %% [markdown]
# The answers, as the mean loss of the last epoch. $\log 2$ is 0.69: a run that ends near it, or
# above, has learned nothing.

# %% tags=["nbval-ignore-output"]
shares, peaks = (0.0, 0.1, 0.5), (0.0001, 0.001, 0.01, 0.03, 0.1)
pd.DataFrame({
    f"{100 * share:.0f} % warm-up": [last_epoch(trial(peak, share)[1]) for peak in peaks]
    for share in shares
}, index=pd.Index(peaks, name="learning rate")).round(2)  # fmt: skip

# %% [markdown]
# On the way up the loss falls, is lowest somewhere in the middle, and rises again until the run is
# back at guessing. The second answer is seldom clear from one seed: along a line of the table the
# loss rises as well as falls. A warm-up lowers the risk that a run fails, as over the twelve seeds
# above; it does not make every rate usable, and at the best ones it changes little.

# %% [markdown]
# ## 6. A few odd rows
#
# A broken row, an overflow, a text that is all noise: one gradient can be a thousand times the
# usual. Here one row in a hundred is 1,000 times too large. The optimizer is SGD with momentum,
# which follows a gradient as long as it is. Losses above 10,000 are drawn at 10,000.

# %%
broken = States(train.states.clone(), train.labels)
odd = range(7, len(train), 100)
broken.states[list(odd)] *= 1000
usual = [not set(rows) & set(odd) for epoch in range(5) for rows in shuffled(epoch)]

usual_steps = [number for number, clean in enumerate(usual, start=1) if clean]
sgd = {"optimizer": torch.optim.SGD, "momentum": 0.9, "rate": constant(0.01)}
fitted, found = {}, {}
for name, chosen in {"clipped": clipped_step, "not clipped": step}.items():
    fitted[name] = new_head()
    found[name] = list(itertools.compress(run(fitted[name], broken, chosen, **sgd), usual))
loss_figure(found, "Steps without an odd row", steps=usual_steps, each_step=True)

# %% tags=["nbval-ignore-output"]
@torch.no_grad()
def clean_loss(network):
    """The mean loss over the training rows as they should be, without dropout; keeps the mode."""
    mode = network.training
    network.eval()
    loss = losses.cross_entropy(*forward(network, train, range(len(train)))).item()
    network.train(mode)
    return loss


clean = {name: clean_loss(network) for name, network in fitted.items()}
for name, loss in clean.items():
    print(f"{name}: loss of the training rows as they should be {loss:.3g}")

# %%
for name, loss in clean.items():
    print(f"{name}: learns the training rows as they should be: {loss < 0.5}")

# %% [markdown]
# **Clipping** scales the gradient of a step down to a largest norm, usually 1 (lesson 01). One odd
# row then costs one step. Adam divides $m$, the running mean of gradients, by the root of $v$, a
# running mean of squares, and is hurt less at once. But $v$ remembers. By hand, for one gradient of
# 1,000 among gradients of 1: $\sqrt v \approx \sqrt{0.001} \cdot 1000 \approx 32$ just after, with
# $\beta_2 = 0.999$, and $m \approx 0.1 \cdot 1000 = 100$, with $\beta_1 = 0.9$. So the odd step
# itself is only about three times the usual. Then $m$ forgets it in some 50 steps, $v$ in
# thousands. In between, the weights it belongs to move up to 30 times more slowly.

# %%
m, v, moved = 1.0, 1.0, []
for t in range(20_000):
    gradient = 1000.0 if t == 0 else 1.0
    m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    if t == 0:
        print(f"√v just after: {v**0.5:.0f}")
    moved.append(m / v**0.5)
print(f"the odd step: {moved[0]:.1f} times the usual")
slowest = int(np.argmin(moved))
print(f"after {slowest} steps: 1/{1 / moved[slowest]:.0f} of the usual")
half_again = next(t for t in range(slowest, len(moved)) if moved[t] >= 0.5)
print(f"back to half of the usual after {half_again:,} steps")

# %% [markdown]
# ## 7. A step larger than memory
#
# Memory may hold 16 rows where the step should see 40. Run micro-batches of 16, 16 and 8, let
# `backward()` add up their gradients (here that habit is welcome), then step once. Each micro-batch
# must contribute its *sum*, divided by the rows of the whole step. What a row weighs in each form:

# %%
sizes = [16, 16, 8]
pd.DataFrame({
    "sum / all rows": [1 / sum(sizes) for _ in sizes],
    "mean of means": [1 / n / len(sizes) for n in sizes],
}, index=pd.Index(sizes, name="rows of the micro-batch")).round(4)  # fmt: skip

# %%
def accumulated_step(network, optimizer, dataset, rows, by_sums=True):
    """One step over micro-batches of `batch_size`, by sums or (wrong) by means."""
    optimizer.zero_grad()
    micro = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    loss_sum = 0.0
    for part in micro:
        logits, labels = forward(network, dataset, part)
        total = losses.cross_entropy(logits, labels, reduction="sum")
        (total / (len(rows) if by_sums else len(part) * len(micro))).backward()
        loss_sum += total.item()
    optimizer.step()
    return loss_sum / len(rows)


def by_means(*arguments):
    return accumulated_step(*arguments, by_sums=False)


def of_40(epoch):
    order = np.concatenate(shuffled(epoch))
    return [order[i : i + 40] for i in range(0, len(order), 40)]


ends = {}
for name, chosen in {"at once": step, "sums": accumulated_step, "means": by_means}.items():
    network = new_head(dropout=0.0)
    run(network, step=chosen, order=of_40, epochs=2)
    ends[name] = torch.cat([p.detach().flatten() for p in network.parameters()])
gaps = {name: (ends[name] - ends["at once"]).abs().max().item() for name in ("sums", "means")}
for name, gap in gaps.items():
    print(f"accumulated by {name}: the weights of the large batch {gap < 1e-6}")

# %% tags=["nbval-ignore-output"]
for name, gap in gaps.items():
    print(f"accumulated by {name}: the largest distance of a weight {gap:.1g}")

# %% [markdown]
# The means are a small error here. In language modelling a micro-batch counts labelled tokens, and
# those differ by large factors. In 2024 the trainer of `transformers`, and others with it, turned
# out to average means (pull request 34191 mended it).

# %% [markdown]
# ## 8. Evaluation
#
# Evaluation asks the model that will be used: without dropout, without gradients, over all rows,
# sums divided once. The most frequent flaw is to stay in training mode. Then dropout switches units
# off at random, and the score is a lottery:

# %%
@torch.no_grad()
def score_now(network, dataset):
    """The mean loss, in whatever mode the network is."""
    return losses.cross_entropy(*forward(network, dataset, range(len(dataset)))).item()


network = new_head()
run(network, epochs=3)
for mode in (True, False):
    network.train(mode)
    scores = [score_now(network, validation) for _ in range(20)]
    print(f"training mode {mode!s:5}: different scores in 20 calls: {len(set(scores))}")

# %% [markdown]
# The opposite flaw is quieter: a helper calls `model.eval()` and leaves it there. From the first
# evaluation on, the run trains without dropout, and no error says so. Hence our version puts every
# module back into the mode it was in.

# %%
@torch.no_grad()
def evaluate(network, dataset, batch_size=64):
    """The mean loss and the accuracy on a data set; the network's mode is kept."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    total, hits = 0.0, 0
    for rows in data.evaluation_batches(dataset.lengths, batch_size):
        logits, labels = forward(network, dataset, rows)
        total += losses.cross_entropy(logits.double(), labels, reduction="sum").item()
        hits += (logits.argmax(dim=1) == labels).sum().item()
    for module, mode in modes:
        module.training = mode
    return total / len(dataset), hits / len(dataset)


network.train()
print("the same score in 20 calls:", len({evaluate(network, validation) for _ in range(20)}) == 1)
print("still in training mode:", all(module.training for module in network.modules()))
theirs = training.evaluate(network, validation, precision="fp32", device="cpu")
print("the package's:", np.allclose((theirs.loss, theirs.accuracy), evaluate(network, validation)))

# %% [markdown]
# ## 9. When to stop
#
# Training loss falls as long as you wait. The loss on rows that the model has not seen falls, turns
# and rises: from there on the model learns its training rows by heart, and grows surer of all its
# answers, the wrong ones too. Accuracy counts an answer as right or wrong, sure or not, so it need
# not fall with it.

# %%
curve = []


def note(network, epoch):
    curve.append((evaluate(network, train)[0], *evaluate(network, validation)))


run(new_head(), epochs=20, rate=constant(5e-4), watch=note)
table = pd.DataFrame(curve, columns=["train", "validation", "accuracy"])
with plots.styled_figure(2.6) as figure:
    left, right_side = figure.subplots(1, 2)
    epochs = range(1, len(table) + 1)
    left.plot(epochs, table["train"], color=plots.BLUE, label="training rows")
    left.plot(epochs, table["validation"], color=plots.VERMILLION, label="validation rows")
    left.set(title="Loss", xlabel="epoch", ylim=(0, None))
    left.legend()
    right_side.plot(epochs, table["accuracy"], "o-", color=plots.VERMILLION)
    right_side.set(title="Validation accuracy", xlabel="epoch", ylim=(0.4, 1))
    for axes in (left, right_side):
        axes.set_xticks(range(0, len(table) + 1, 5))
figure

# %%
lowest = int(table["validation"].argmin())
print("validation loss, lowest in the first half:", 0 < lowest < len(table) / 2)
print("at the end higher by more than 0.1:",
      table["validation"].iloc[-1] > table["validation"].min() + 0.1)  # fmt: skip
print("training loss still falling:", table["train"].iloc[-1] < table["train"].iloc[lowest] - 0.1)

# %% [markdown]
# **Early stopping** keeps the weights of the best evaluation so far, and ends the run after
# `patience` evaluations without a new best. Three details decide whether it works. The weights are
# *copied* (`state_dict()` gives the tensors that training goes on changing). The count starts anew
# at each best. At the end the best weights are put back.
#
# Best is the highest accuracy, since that is what the model is asked for in the end; being too sure
# raises the loss and changes no answer. The price: accuracy on few rows wavers by chance, so its
# highest point may come late, long after the loss has turned. A short `patience` bounds how late,
# and may miss a peak that was more than chance.

# %%
class Best:
    """The best weights of a run so far: highest accuracy, of equals the lowest loss."""

    def __init__(self, patience):
        self.patience, self.bad, self.rank, self.weights = patience, 0, None, None

    def look(self, network, loss, accuracy):
        """Compare an evaluation; True if it is time to stop."""
        rank = (accuracy, -loss)
        if self.rank is None or rank > self.rank:
            self.rank, self.bad = rank, 0
            self.weights = copy.deepcopy(network.state_dict())
        else:
            self.bad += 1
        return self.bad >= self.patience


network, best = new_head(), Best(patience=3)


def watch(network, epoch):
    return best.look(network, *evaluate(network, validation))


found = run(network, epochs=20, rate=constant(5e-4), watch=watch)  # the run above, once more
network.load_state_dict(best.weights)
loss, accuracy = evaluate(network, validation)
print("stopped before the last epoch:", len(found) < 20 * per_epoch)
print("the network holds the best weights:", (accuracy, -loss) == best.rank)

# %% tags=["nbval-ignore-output"]
stopped = len(found) // per_epoch
print("all 20 epochs: lowest loss in epoch", lowest + 1,
      " highest accuracy in epoch", int(table["accuracy"].argmax()) + 1)  # fmt: skip
print("with patience: stopped after epoch", stopped,
      " best epoch", stopped - best.bad, f" accuracy {accuracy:.2f}")  # fmt: skip

# %% [markdown]
# ## 10. A choice needs rows of its own
#
# Early stopping chooses among evaluations, a search chooses among settings. Whatever was chosen
# *by* a score has a score that is too good: part of what made it the best is luck, and luck does
# not carry over to other rows. Twelve seeds, five epochs each, make 60 candidates:

# %%
both = States(torch.cat([validation.states, test.states]),
              np.concatenate([validation.labels, test.labels]))  # fmt: skip
candidates = []


@torch.no_grad()
def collect(network, epoch):
    logits, labels = forward(network.eval(), both, range(len(both)))
    candidates.append((logits.argmax(dim=1) == labels).numpy())
    network.train()


for number in range(12):
    run(new_head(number), watch=collect)
correct = np.array(candidates)
print("candidates and rows:", correct.shape)

# %% [markdown]
# Their accuracies on all of these rows:

# %% tags=["nbval-ignore-output"]
scores = correct.mean(axis=1)
print(f"lowest {scores.min():.2f}, middle {np.median(scores):.2f}, highest {scores.max():.2f}")

# %% [markdown]
# Can the differences be told from luck? Split the rows at random into two halves, choose the
# best of $K$ candidates by the first half, and look at its accuracy on the second. Repeated 500
# times for each $K$:

# %%
counts = [1, 2, 5, 10, 20, 60]
chosen_by, fresh = choice_by_score(correct, counts, seed=seed)
choice_figure(counts, chosen_by, fresh)

# %%
optimism = dict(zip(counts, chosen_by - fresh, strict=True))
print("K = 1, nothing chosen: the two agree within 0.01:", abs(optimism[1]) < 0.01)
print("K = 60, too good by more than 0.03:", optimism[60] > 0.03)
print("it grows with K:", optimism[1] < optimism[5] < optimism[60])

# %% [markdown]
# On the rows it was chosen by, the score rises with every candidate tried. On fresh rows nothing is
# gained. That curve may even fall below its start: both halves share the same rows, so luck that
# one half has is missing in the other. Hence three splits: **train** for the weights,
# **validation** for every choice (the epoch to stop at, the learning rate, the model), **test** for
# one number at the very end. If the test set chose anything, what you report is the upper curve.
# Exercise 4 finds such a line.

# %% [markdown]
# ## 11. The final form
#
# All parts together, as the package has them, with settings in a `TrainConfig`. First the
# optimizer: no weight decay on biases and norms (a LayerNorm's scale pulled to zero switches its
# layer off).

# %%
def make_optimizer(network, config):
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def steps_of_epoch(dataset, config, epoch):
    """The optimizer steps of an epoch: for each, its micro-batches as row numbers."""
    batches = data.training_batches(dataset.lengths, config.batch_size, config.seed, epoch)
    size = config.gradient_accumulation_steps
    return [batches[i : i + size] for i in range(0, len(batches), size)]


config = TrainConfig(
    epochs=2, batch_size=batch_size, learning_rate=3e-3, precision="fp32", device="cpu", seed=seed
)
print("tensors with decay and without:",
      [len(group["params"]) for group in make_optimizer(new_head(), config).param_groups],
      " steps of an epoch", len(steps_of_epoch(train, config, epoch=0)))  # fmt: skip

# %% [markdown]
# One step: the seed of dropout, the learning rate, the gradient by sums over micro-batches,
# clipping, the update.

# %%
def train_step(network, optimizer, dataset, batches, number, total, config):
    """Optimizer step `number` (from 0) of `total`, over one or more micro-batches."""
    torch.manual_seed(config.seed * 1_000_003 + number)  # dropout depends on seed and step alone
    warmup = round(config.warmup_ratio * total)
    rate = config.learning_rate * losses.lr_schedule(config.schedule, number, total, warmup)
    for group in optimizer.param_groups:
        group["lr"] = rate
    network.train()
    optimizer.zero_grad()
    rows, mean = sum(len(part) for part in batches), 0.0
    for part in batches:
        logits, labels = forward(network, dataset, part)
        loss = losses.cross_entropy(logits.float(), labels, reduction="sum") / rows
        loss.backward()
        mean += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm).item()
    optimizer.step()
    return {"step": number + 1, "loss": mean, "learning_rate": rate, "grad_norm": norm}

# %% [markdown]
# And the run: epochs of steps, evaluations within an epoch, the best weights at the end.

# %%
def fit(network, dataset, validation, config):
    """Fine-tune in place; at the end the network holds the weights of its best evaluation."""
    optimizer, best = make_optimizer(network, config), Best(config.patience or 10**9)
    epochs = [steps_of_epoch(dataset, config, epoch) for epoch in range(config.epochs)]
    share = len(epochs[0]) / config.evaluations_per_epoch
    # After which steps of an epoch to evaluate, the last one among them.
    looks = {round(share * k) for k in range(1, config.evaluations_per_epoch + 1)}
    # All steps of the run: whether to evaluate after it, and its micro-batches.
    plan = [(n in looks, each) for epoch in epochs for n, each in enumerate(epoch, start=1)]
    history = {"steps": [], "evaluations": []}
    for done, (look, batches) in enumerate(plan):
        line = train_step(network, optimizer, dataset, batches, done, len(plan), config)
        history["steps"].append(line)
        if look:
            loss, accuracy = evaluate(network, validation)
            history["evaluations"].append({"step": done + 1, "loss": loss, "accuracy": accuracy})
            if best.look(network, loss, accuracy):
                break
    network.load_state_dict(best.weights)
    network.eval()
    return history


mine = new_head()
history = fit(mine, train, validation, config)
print("steps", len(history["steps"]), " evaluations", len(history["evaluations"]))

# %% [markdown]
# ### It is the package's
#
# `tutorkit.training.fit` on the same start, with the same seed:

# %%
theirs = new_head()
state = training.fit(theirs, train, validation, config)
for name in ("loss", "learning_rate", "grad_norm"):
    a, b = ([line[name] for line in lines] for lines in (history["steps"], state.steps))
    print(f"{name} of every step:", np.allclose(a, b, rtol=1e-5))
print("validation accuracies:", [e["accuracy"] for e in history["evaluations"]]
      == [e["accuracy"] for e in state.evaluations])  # fmt: skip
pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
print("final weights:", all(torch.allclose(a, b, atol=1e-6) for a, b in pairs))

# %% [markdown]
# From here on we use the package's. It has the same parts, and adds what a long run needs: mixed
# precision, several GPUs, a forward pass of BERT that suits a CPU (`tutorkit/fast_bert.py`: the
# same numbers, sooner), a `FloatingPointError` where a loss or a gradient is no finite number,
# checkpoints, and **callbacks**, functions that it calls at each event. The order of events,
# printed by one:

# %%
events = []
with tempfile.TemporaryDirectory() as folder:
    training.fit(new_head(), train, validation, replace(config, epochs=1), Path(folder),
                 callbacks=[lambda event, state: events.append(event)])  # fmt: skip
for event, group in itertools.groupby(events):
    count = len(list(group))
    print(f"{event} × {count}" if count > 1 else event)
print("all kinds:", training.EVENTS)

# %% [markdown]
# A callback that sets `state.stop = True` ends the run after the current step. Anything that
# watches a run (a progress bar, a logger, a stop button) is a callback, and the loop knows of none.
# Which settings a config refuses, it says at once:

# %%
for wrong in ({"learning_rate": "1e-4"}, {"max_grad_norm": 0}, {"schedule": "cosin"}):
    try:
        TrainConfig(**wrong)
    except ValueError as error:
        print("ValueError:", error)

# %% [markdown]
# ## 12. Killed and resumed
#
# Machines are switched off and notebooks are closed. A run can go on as if nothing had happened if
# everything is saved that its next step depends on. For this loop that is:
#
# | what | if it is left out |
# |---|---|
# | weights | the run starts anew |
# | Adam's $m$, $v$ and step count | its first steps are again full steps in every weight |
# | number of the step | warm-up again, and rows of the epoch twice |
# | best weights and their score | a worse evaluation counts as best |
# | random state of order and dropout | other losses from then on |
#
# The last one needs no file here: order and dropout are functions of (seed, epoch) and (seed,
# step). We kill a run in the middle of an epoch and start it again.

# %%
class Killed(Exception):
    pass


def killer(at):
    def callback(event, state):
        if event == "step" and state.step == at:
            raise Killed

    return callback


long = replace(config, epochs=3, evaluations_per_epoch=1, checkpoint_every=10)
whole = new_head()
uninterrupted = training.fit(whole, train, validation, long)

runs_folder = tempfile.TemporaryDirectory()
folder = Path(runs_folder.name)
try:
    training.fit(new_head(), train, validation, long, folder,
                 callbacks=[killer(at=per_epoch * 5 // 3)])  # fmt: skip
except Killed:
    print("killed after step", per_epoch * 5 // 3, "of", uninterrupted.total_steps)
print(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")))

# %% [markdown]
# The weights alone, first. The step's number and its rows are right, and only the optimizer is new:
# its first loss is right, as it should be with the same weights. The others are not.

# %%
newest = max(folder.glob("step-*"))
start = int(newest.name.removeprefix("step-"))
half = new_head()
half.load_state_dict(load_file(newest / "model.safetensors"))
optimizer = make_optimizer(half, long)  # its m, v and step count are those of a new run
again = []
for number in range(start, min(start + 20, uninterrupted.total_steps)):
    epoch, done = divmod(number, per_epoch)
    batches = steps_of_epoch(train, long, epoch)[done]
    line = train_step(half, optimizer, train, batches, number, 3 * per_epoch, long)
    again.append(line["loss"])
equal = np.isclose(again, [line["loss"] for line in uninterrupted.steps[start : start + 20]])
print(f"first loss right: {equal[0]}, of the next {len(equal) - 1}: {equal[1:].sum()}")

# %% [markdown]
# Now `fit` with the same folder. It finds the newest checkpoint, checks that it belongs to this
# run, and goes on:

# %%
other = new_head(seed=seed + 99)  # its weights will be replaced by the saved ones
resumed = training.fit(other, train, validation, long, folder)
print("resumed from step", resumed.resumed_from_step, "of", resumed.total_steps)
same = [torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True)]
print("the same weights, bit for bit:", all(same))
print("the same losses:", [line["loss"] for line in uninterrupted.steps]
      == [line["loss"] for line in resumed.steps])  # fmt: skip

# %% [markdown]
# A folder of another run is refused, and the network's weights are left as they were. Compared are
# the settings, and the labels and lengths of the training rows; other texts of the same labels and
# lengths would not be noticed.

# %%
try:
    training.fit(new_head(), train, validation, replace(long, learning_rate=1e-3), folder)
except ValueError as error:
    print(str(error).replace(str(folder), "FOLDER"))
runs_folder.cleanup()

# %% [markdown]
# ## 13. The real thing
#
# The same `fit`, with the whole model and texts. In JupyterLab a board shows the curves while they
# grow, and a button that stops after the current step; elsewhere it prints a line now and then.

# %% tags=["nbval-ignore-output"]
def as_texts(part):
    return data.SentimentDataset(part["text"], part["label"], loaded.tokenizer, max_length)


few = data.take_rows(parts["train"], fine_tuned_rows, seed)
config = TrainConfig(
    epochs=2, batch_size=batch_size, learning_rate=3e-4, evaluations_per_epoch=1, seed=seed
)
state = training.fit(
    loaded.model, as_texts(few), as_texts(parts["validation"]), config, callbacks=[TrainingBoard()]
)
plots.learning_curves(state.history)

# %%
print("steps:", state.step, " evaluations:", len(state.evaluations))
print("the model is in evaluation mode:", not loaded.model.training)
kept = training.evaluate(loaded.model, as_texts(parts["validation"]), batch_size * 2)
print("and holds the best weights:", np.isclose(kept.accuracy, state.best["accuracy"]))

# %% [markdown]
# The validation rows chose among the evaluations, so their score may be too good (section 10). The
# number to report comes from the test rows, once, with its 95 % interval:

# %% tags=["nbval-ignore-output"]
final = training.evaluate(loaded.model, as_texts(parts["test"]), batch_size * 2)
n = len(parts["test"])
low, high = metrics.accuracy_interval(round(final.accuracy * n), n)
print(f"test accuracy {final.accuracy:.2f} ({low:.2f} to {high:.2f}), n = {n}")
print("training rows: here", len(few), " for the heads of sections 3 to 12", len(train))

# %% [markdown]
# That this need not be above the small head of section 9 is no sign against fine-tuning: to be
# quick, this run saw fewer rows, each twice, and the interval is wide. Raise `fine_tuned_rows` for
# a fair comparison.

# %% [markdown]
# ## Summary
#
# | part of the loop | the run without it |
# |---|---|
# | five examples first | broken loops train for hours |
# | `zero_grad()` | stale directions; it learns, but badly |
# | shuffling | one class at a time, one answer for all |
# | learning rate by trial | nothing happens, or losses above $\log 2$ |
# | warm-up | some seeds still guess after four epochs |
# | clipping | one odd row spoils the weights |
# | sums in accumulation | rows of short micro-batches weigh more |
# | `eval()`, and back | scores by lottery, or training without dropout |
# | early stopping, best weights | the last weights: surer, not better |
# | rows of their own for each choice | scores that new rows don't confirm |
# | optimizer, step, seeds in the checkpoint | a resumed run is another run |
#
# The package's `train_step`, `evaluate` and `fit` are these parts, and what section 11 says they
# add; a test holds the ones of this notebook equal to them.

# %% [markdown]
# ## Exercises
#
# Write these yourself in [`exercises/04_training.ipynb`](exercises/04_training.ipynb): there each
# function is a stub, with hints and a check that names your mistake. Here they stand solved. In
# JupyterLab the solutions are folded, so open one when you have tried; elsewhere they stand open.
# The last three are "spot the flaw" labs: each holds a kind of mistake seen in published work.

# %% tags=["exercise-setup"]
import math

import torch

from tutorkit.checks import lesson_04

# %% [markdown] tags=["exercise"]
# ### Exercise 1: the learning rate of every step
#
# **Goal**: write the schedule of section 5: warm-up along a straight line, then straight down
# towards 0.
#
# **Difficulty**: ●○○ **Minutes**: 10
#
# **Signature**: `learning_rates(peak, total, warmup)`: a number, two whole numbers → (total,)
# float64
#
# The first step has the rate peak / warmup, the last step of the warm-up has peak, and so has the
# step after it. Step `total` would have 0, and there is none. A list becomes float64 by
# `torch.tensor(values, dtype=torch.float64)`.

# %% tags=["solution"] jupyter={"source_hidden": true}
def learning_rates(peak, total, warmup):
    """The learning rate of each of `total` steps.

    peak: the highest rate; total: steps in all; warmup: steps that rise, 1 to total - 1. Returns
    (total,) in float64.
    """
    ### BEGIN SOLUTION
    steps = torch.arange(total, dtype=torch.float64)
    rising = (steps + 1) / warmup
    falling = 1 - (steps - warmup) / (total - warmup)
    return peak * torch.where(steps < warmup, rising, falling)
    ### END SOLUTION

# %% tags=["check"]
lesson_04.learning_rates.check(learning_rates)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: a step in micro-batches
#
# **Goal**: compute the gradient of a linear head's mean cross-entropy, micro-batch by micro-batch,
# so that it equals the one of all rows at once.
#
# **Difficulty**: ●●○ **Minutes**: 15
#
# **Signature**: `accumulated_gradient(states, weight, labels, sizes)`: (N, H), (C, H), (N,), a list
# of whole numbers → (C, H)
#
# The logits are `states @ weight.T`; no bias. `sizes` are the rows of the micro-batches, in order;
# they add up to N. No more than one micro-batch should be in the graph at a time; the check sees
# the result alone, so this is for you to keep.

# %% tags=["solution"] jupyter={"source_hidden": true}
def accumulated_gradient(states, weight, labels, sizes):
    """The gradient of the mean loss over all rows by the weight, from micro-batches.

    states: (N, H); weight: (C, H); labels: (N,) class numbers; sizes: rows of each micro-batch.
    Returns (C, H).
    """
    ### BEGIN SOLUTION
    leaf = weight.detach().clone().requires_grad_(True)
    start = 0
    for size in sizes:
        logits = states[start : start + size] @ leaf.T
        target = labels[start : start + size]
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        (loss / len(labels)).backward()  # adds to leaf.grad
        start += size
    return leaf.grad
    ### END SOLUTION

# %% tags=["check"]
lesson_04.accumulated_gradient.check(accumulated_gradient)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: early stopping
#
# **Goal**: say which evaluation's weights are kept, and after how many evaluations the run ends.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `early_stop(accuracies, patience)`: a list of numbers, a whole number → two whole
# numbers: (number of the best evaluation, evaluations made)
#
# Evaluations are numbered from 0. An equal score is no new best. The run ends as soon as `patience`
# evaluations in a row brought no new best, or when the list is over.

# %% tags=["solution"] jupyter={"source_hidden": true}
def early_stop(accuracies, patience):
    """Where early stopping would have ended a run.

    accuracies: what each evaluation would find; patience: evaluations without a new best before
    the run ends. Returns (best, made) as Python numbers.
    """
    ### BEGIN SOLUTION
    best = 0
    for number, accuracy in enumerate(accuracies):
        if accuracy > accuracies[best]:
            best = number
        if number - best >= patience:
            return best, number + 1
    return best, len(accuracies)
    ### END SOLUTION

# %% tags=["check"]
lesson_04.early_stop.check(early_stop)

# %% [markdown] tags=["exercise"]
# ### Exercise 4: spot the flaw, who chose the epoch?
#
# **Goal**: find the line of this listing that makes its last line print a number that is too good,
# and compute the one it should have printed. The lines are those of many tutorials, in our words:
#
# ```
# 1  for epoch in range(epochs):
# 2      train_epoch(model, optimizer, train_loader)
# 3      accuracy = evaluate(model, test_loader)
# 4      if accuracy > best:
# 5          best, kept = accuracy, copy.deepcopy(model)
# 6  print("test accuracy", evaluate(kept, test_loader))
# ```
#
# `best` starts at 0.
#
# **Difficulty**: ●○○ **Minutes**: 10
#
# **Signature**: `stopping_lab(validation, test)`: (E,), (E,) → the line's number, a scalar tensor
#
# You get the accuracies of the model after each of E epochs, on the validation and on the test
# rows.

# %% tags=["solution"] jupyter={"source_hidden": true}
def stopping_lab(validation, test):
    """The number of the flawed line, and the test accuracy without the flaw.

    validation, test: (E,) accuracies after each epoch. Returns (line, accuracy): a whole number
    and a scalar tensor.
    """
    ### BEGIN SOLUTION
    return 3, test[validation.argmax()]
    ### END SOLUTION

# %% tags=["check"]
lesson_04.stopping_lab.check(stopping_lab)

# %% [markdown]
# How much it costs depends on the number of evaluations to choose from and on the rows. On our 60
# candidates, chosen by the test rows and by the validation rows:

# %%
n = len(validation)
by_validation, by_test = (torch.from_numpy(part.mean(axis=1)) for part in
                          (correct[:, :n], correct[:, n:]))  # fmt: skip
line, honest = stopping_lab(by_validation, by_test)
print("line", line, " the listing prints more than it should:", bool(by_test.max() > honest))

# %% tags=["nbval-ignore-output"]
print(f"the listing prints {by_test.max():.3f}, it should print {honest:.3f}")

# %% [markdown]
# For the next lab: a results table and the logs of its runs, made up. Its numbers were copied by
# hand. It prints the accuracy of each run's best evaluation, rounded to three digits.

# %% tags=["exercise-setup"]
logs = {
    "head only": {"accuracy": [0.6512, 0.6894, 0.6907], "loss": [0.641, 0.602, 0.598]},
    "last layer": {"accuracy": [0.7243, 0.7681, 0.7655], "loss": [0.558, 0.497, 0.501]},
    "all layers": {"accuracy": [0.7418, 0.8146, 0.8083], "loss": [0.521, 0.412, 0.437]},
    "from scratch": {"accuracy": [0.5307, 0.5689, 0.6024], "loss": [0.692, 0.684, 0.671]},
}
printed = {"head only": 0.691, "last layer": 0.815, "all layers": 0.768, "from scratch": 0.602}

# %% [markdown] tags=["exercise"]
# ### Exercise 5: spot the flaw, two logs swapped
#
# **Goal**: find the two rows of a results table whose numbers have changed places.
#
# **Difficulty**: ●●○ **Minutes**: 15
#
# **Signature**: `swapped_rows(printed, logs)`: a dict from names to numbers, a dict from names to
# logs → a list of two names in the table's order, or an empty list
#
# A log is a dict with two lists, `accuracy` and `loss`, one entry for each evaluation. A number
# that is merely wrong is no swap, and neither is one copied from another row that still prints its
# own. Run `swapped_rows(printed, logs)` when the check is content.

# %% tags=["solution"] jupyter={"source_hidden": true}
def swapped_rows(printed, logs):
    """The two rows that print each other's number.

    printed: name -> accuracy, rounded to three digits; logs: name -> {"accuracy": [...], "loss":
    [...]}. Returns their names in the order of the table, or [].
    """
    ### BEGIN SOLUTION
    best = {name: round(max(log["accuracy"]), 3) for name, log in logs.items()}
    names = list(printed)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            crossed = printed[a] == best[b] and printed[b] == best[a]
            if crossed and best[a] != best[b]:
                return [a, b]
    return []
    ### END SOLUTION

# %% tags=["check"]
lesson_04.swapped_rows.check(swapped_rows)

# %% [markdown]
# On the table above. Its reader would conclude that training the last layer beats training all of
# them; the logs say the opposite. A table that is rendered from the logs can't do that, which is
# why this project's README is rendered from run records, and a test compares the two.

# %%
print("swapped:", swapped_rows(printed, logs))

# %% [markdown] tags=["exercise"]
# ### Exercise 6: spot the flaw, a ranking
#
# **Goal**: say for each place of a leaderboard whether its distance to the next one is more than
# chance. All were scored on the same test rows. Their order is given, and need not be that of their
# accuracies on these rows.
#
# **Difficulty**: ●●● **Minutes**: 20
#
# **Signature**: `resolved_places(leaderboard)`: a list of K tensors (n,) of True and False → a list
# of K − 1 True and False
#
# Use McNemar's exact test. Of the rows that exactly one of two models gets right, let $a$ be those
# of the first model and $b$ those of the second. If the two were equally good, $a$ would be the
# number of heads in $a + b$ tosses of a fair coin. Add up the probabilities of all results at least
# as uneven, in both directions; below 0.05 the distance is resolved. `math.comb` counts.

# %% tags=["solution"] jupyter={"source_hidden": true}
def resolved_places(leaderboard):
    """Whether each model differs from the next one by more than chance (p < 0.05).

    leaderboard: K tensors (n,), True where the model answers a test row correctly. Returns a list
    of K - 1 Python booleans.
    """
    ### BEGIN SOLUTION
    resolved = []
    for first, second in zip(leaderboard, leaderboard[1:], strict=False):
        a = int((first & ~second).sum())
        b = int((second & ~first).sum())
        tosses = a + b
        tail = sum(math.comb(tosses, k) for k in range(min(a, b) + 1)) / 2**tosses
        resolved.append(2 * tail < 0.05)
    return resolved
    ### END SOLUTION

# %% tags=["check"]
lesson_04.resolved_places.check(resolved_places)

# %% [markdown]
# Now a leaderboard of our own, as a paper would list it: of the 60 candidates of section 10 those
# at ranks 1, 6, 11, 21 and 41, with the accuracy on the same rows.

# %% tags=["nbval-ignore-output"]
ranks = [1, 6, 11, 21, 41]
places = np.argsort(-scores, kind="stable")[[rank - 1 for rank in ranks]]
pd.DataFrame({"accuracy": scores[places]}, index=pd.Index(ranks, name="rank")).round(3)

# %%
leaderboard = [torch.from_numpy(correct[place]) for place in places]
print("neighbours resolved:", sum(resolved_places(leaderboard)), "of", len(places) - 1)

# %% [markdown]
# The places are in order of accuracy, and the order may be luck. In a table such rows belong
# together, with their intervals and the words "not resolved"; `metrics.compare_sentence` writes
# them.

# %% tags=["nbval-ignore-output"]
result = metrics.paired_test(correct[places[0]], correct[places[1]])
print(metrics.compare_sentence("rank 1", "rank 6", result))

# %% [markdown]
# ## Further reading
#
# - A. Karpathy, *A Recipe for Training Neural Networks*, 2019: overfit one batch first, and the
#   other habits of this lesson in the order of a project.
# - M. Mosbach, M. Andriushchenko, D. Klakow, *On the Stability of Fine-tuning BERT*, ICLR 2021:
#   runs that end at the loss of guessing, and why warm-up helps; L. Liu et al., *On the Variance of
#   the Adaptive Learning Rate and Beyond*, ICLR 2020.
# - R. Pascanu, T. Mikolov, Y. Bengio, *On the difficulty of training recurrent neural networks*,
#   ICML 2013: clipping.
# - L. Prechelt, *Early Stopping: But When?*, 1998.
# - J. Dodge et al., *Show Your Work: Improved Reporting of Experimental Results*, EMNLP 2019: what
#   a score is worth, given how many were tried. Q. McNemar, Psychometrika 1947: the paired test.
#
# Next: what pre-training buys, [`06_transfer`](06_transfer.ipynb); or the whole report,
# [`05_imdb_report`](05_imdb_report.ipynb).
