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
# # Several tasks: one body, several heads
#
# A review can be asked more than one thing: is it for or against the film, what does it speak of,
# of how many things? One model can answer all of it: an encoder that all tasks share, and a small
# head for each. This lesson builds such a model, trains it, and asks when sharing helps a task and
# when it hurts.
#
# **After this lesson you can** decide how often each task is drawn and how much its loss counts,
# train on several tasks with a validation of each, measure whether two tasks pull the same way,
# compare a joint model with single ones on equal terms, and see through a table that hides a loser.
#
# **Time**: under two minutes to run on two CPU cores; two hours to read, the exercises not counted.
# **Needs**: the installed package; the weights of `minilm` (about 90 MB) are fetched once and kept.
# The training loop is in [`04_training`](04_training.ipynb), heads are in
# [`03_heads`](03_heads.ipynb), and the weights of losses in [`01_math`](01_math.ipynb), section 6.

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
together = ["sentiment", "aspect"]  # the tasks of the joint run; "count" may join them
labelled = 320  # labelled texts of the joint run
few = 32  # labelled texts of the run of section 6
judged = 100  # validation texts, at most
answered = 200  # test texts, at most
max_length = 48  # tokens a text
epochs = 4  # of the joint run
learning_rate = 2e-4
seed = 0  # of the draw of texts, of the heads' first weights, and of dropout

# %%
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from tutorkit import baselines, data, metrics, sources, studies, widgets
from tutorkit import multitask_figures as figures
from tutorkit.models import backbone_layers, load_model, set_trainable
from tutorkit.multitask import MultiTaskModel, gradient_conflict
from tutorkit.multitask_data import MultiTaskDataset, Task, TaskDataset, rows_each
from tutorkit.multitask_training import ConflictRecorder, evaluate_task, fit_tasks, recorded
from tutorkit.training import TrainConfig, evaluate

loaded = load_model(model, seed=seed)
splits = sources.load_splits(dataset, seed)
rows = data.take_rows(splits["train"], labelled, seed, "train")
looked_at = data.take_rows(splits["validation"], judged, seed, "validation")
test = data.take_rows(splits["test"], answered, seed, "test")
print({"train": len(rows), "validation": len(looked_at), "test": len(test)})

# %% [markdown]
# ## 1. One encoder, a head for each task
#
# Three questions to the same reviews:
#
# - **sentiment**: negative or positive, of every review;
# - **aspect**: what the review speaks of, asked only where it speaks of one thing;
# - **count**: of how many things it speaks, a number.
#
# The tasks differ in kind, in their number of classes, and in their number of labelled texts: that
# is the usual case. (Other data sets have no aspects. There the length in powers of two stands in
# for the aspect, and the human rating or the logarithm of the length for the count.)

# %%
with_aspects = "aspects" in splits["train"].column_names
things = ["plot", "pace", "visuals", "acting", "music"] if with_aspects else list("abcde")
tasks = [Task("sentiment", names=["negative", "positive"]), Task("aspect", names=things),
         Task("count", kind="regression")]  # fmt: skip


def answers(row):
    """What a text answers to each task; None where it has no answer."""
    if with_aspects:
        only = things.index(row["aspects"][0]) if len(row["aspects"]) == 1 else None
        return {"sentiment": row["label"], "aspect": only, "count": len(row["aspects"])}
    size = math.log2(len(row["text"].split()))
    return {"sentiment": row["label"], "aspect": int(size) % 5, "count": row.get("rating", size)}

# %%
def asked_of(task, split):
    """The texts of a split that have an answer to a task, and their answers."""
    pairs = [(row["text"], answers(row)[task.name]) for row in split]
    return zip(*[pair for pair in pairs if pair[1] is not None], strict=True)


def part(task, split, tokenizer=loaded.tokenizer):
    """The rows of a split that have an answer to a task, as token ids."""
    return TaskDataset(task, *asked_of(task, split), tokenizer, max_length)


train, validation, asked = ([part(task, split) for task in tasks]
                            for split in (rows, looked_at, test))  # fmt: skip
pd.DataFrame({"kind": [task.kind for task in tasks], "outputs": [t.num_labels for t in tasks],
              "train": map(len, train), "validation": map(len, validation),
              "test": map(len, asked)}, index=[task.name for task in tasks])  # fmt: skip

# %% [markdown]
# The encoder reads a batch of all tasks at once. A number beside each row says whose question it
# is, and each head reads the vectors of its own rows and no others:

# %%
network = MultiTaskModel(loaded, tasks, seed=seed)
joint = MultiTaskDataset(train)
picked = [first + i for first in joint.first_rows for i in range(2)] + [2]
batch = joint.batch(picked)
labels = batch.pop("labels")
with torch.no_grad():
    found = network(**batch)
print("input_ids", tuple(batch["input_ids"].shape))
print("task     ", batch["task"].tolist())
print("labels   ", labels.tolist())
for task, outputs in zip(tasks, found.outputs, strict=True):
    print(f"{task.name:>9}: outputs {tuple(outputs.shape)}")

# %% [markdown]
# A row's output must not depend on whose rows stand beside it. The same rows, each read alone:

# %%
alone = []
for row in picked:
    one = joint.batch([row])
    with torch.no_grad():
        outputs = network(one["input_ids"], one["attention_mask"], one["task"]).outputs
    alone.append(outputs[int(one["task"])][0])
gaps = []
for k in range(len(tasks)):
    mine = [a for a, t in zip(alone, batch["task"].tolist(), strict=True) if t == k]
    gaps.append((torch.stack(mine) - found.outputs[k]).abs().max().item())
print("alone and together agree to 1e-4:", max(gaps) < 1e-4)

# %% [markdown]
# What is shared and what is not, counted on the model:

# %%
def size(module):
    return sum(p.numel() for p in module.parameters())


heads = {task.name: (task.num_labels, size(head))
         for task, head in zip(tasks, network.heads, strict=True)}  # fmt: skip
figures.body_figure(size(network.encoder), heads)

# %%
single = sum(size(network.encoder) + weights for _, weights in heads.values())
print(f"three models: {single:,} weights")
print(f"one joint model: {size(network):,} weights, {size(network) / single:.0%} of that")
print(f"in heads: {sum(weights for _, weights in heads.values()) / size(network):.4%}")
first, second = (network.for_task(name).model.base_model.get_input_embeddings().weight
                 for name in ("sentiment", "aspect"))  # fmt: skip
print("two tasks' models hold the same encoder:", first.data_ptr() == second.data_ptr())

# %% [markdown]
# This is **hard sharing** (Caruana 1997). It saves memory. It can save reading too, since one pass
# through the encoder gives the vector that all heads need. (Here a row is a text *and* a question,
# so a text with three questions is read three times.) Whether it is also *better* is another
# question. Each task moves the weights that the others use, for good or ill.
#
# ## 2. Whose turn is it?
#
# Tasks have different numbers of labelled rows, $n_1, \dots, n_K$. Who is drawn how often decides
# how much each moves the shared weights. Three ways:
#
# - **proportional**: every row once an epoch, so a large task has most of the steps;
# - **temperature** $\tau$: task $k$ gets the share
#   $p_k = n_k^{1/\tau} \big/ \sum_j n_j^{1/\tau}$ of the rows; $\tau = 1$ is proportional, and
#   $\tau = \infty$ gives every task the same;
# - **round robin**: every batch is of one task, and tasks take turns.
#
# The price of a larger share is repetition: with $N$ rows an epoch, a row of task $k$ comes
# $N p_k / n_k$ times. For three tasks of 10,000, 3,000 and 300 rows:

# %%
sizes = {"large": 10_000, "middling": 3_000, "small": 300}
n = np.array(list(sizes.values()))
table = {}
for temperature in (1, 2, 3, math.inf):
    drawn = rows_each(n, temperature)
    table[f"τ = {temperature:g}"] = [*(drawn / n.sum()).round(3), *(drawn / n).round(2)]
pd.DataFrame(table, index=pd.MultiIndex.from_product([["share", "times"], sizes])).T

# %%
figures.shares_figure(sizes, (1, 1.5, 2, 3, 5, 10, math.inf))

# %% [markdown]
# The same on a slider. Below 1, the large task gets more than its rows. With $\tau = \infty$ each
# task gets a third of 13,300 rows, so every row of the small one comes about 15 times an epoch:
# it will be learned by heart long before the large one is learned at all.

# %% tags=["nbval-ignore-output"]
widgets.explore(figures.TaskShares(sizes))

# %% [markdown]
# What the batches of an epoch look like, drawn by the data set itself. The tasks have a tenth of
# these rows here; a batch has 32.

# %%
toy = [TaskDataset(Task(name, names=["no", "yes"]), ["a film"] * (size // 10),
                   [i % 2 for i in range(size // 10)], loaded.tokenizer, 8)
       for name, size in sizes.items()]  # fmt: skip


def composition(**settings):
    """(batches, 3) rows of each task in each batch of the first epoch."""
    drawn = MultiTaskDataset(toy, **settings)
    whose = [np.searchsorted(drawn.first_rows, batch, side="right") - 1
             for batch in drawn.batches_of_epoch(32, seed, epoch=0)]  # fmt: skip
    return np.array([np.bincount(each, minlength=3) for each in whose])


turns = {"proportional": composition(), "temperature τ = 3": composition(
    sampling="temperature", temperature=3.0), "round robin": composition(sampling="round_robin")}
figures.turns_figure(turns, list(sizes))

# %%
for name, each in turns.items():
    print(f"{name}: {len(each)} batches, {each.sum()} rows,",
          f"{(each[:, 2] == 0).sum()} batches without a row of the small task,",
          f"a row of it comes {each[:, 2].sum() / 30:.1f} times")

# %% [markdown]
# In proportional batches the small task has less than one row on average, and many have none: then
# its head has no gradient in that step, and its mean loss over these rows is 0 / 0. Code that
# averages losses by batch has to know that (exercise 2). In round robin each step follows one task
# alone, so a step for one may undo a step for another; in a mixed batch their gradients are added
# first.
#
# ## 3. The joint loss
#
# Of the $n$ rows of a step let $n_k$ be task $k$'s, and $L_k$ their mean loss. With fixed weights
# $w_k$, training lowers
#
# $$L = \sum_k \frac{n_k}{n}\, w_k L_k$$
#
# So a task counts by its rows and by its weight. But it also counts by the **scale** of its loss. A
# cross-entropy is in nats, a squared error in squares of whatever the label is counted in. At the
# start, with heads that know nothing:

# %%
def best_constant(part):
    """The lowest training loss of an answer that is the same for all texts."""
    if part.task.kind == "regression":
        return part.labels.var()
    share = np.bincount(part.labels) / len(part)
    return -(share[share > 0] * np.log(share[share > 0])).sum()


few_rows = [part(task, rows.select(range(min(60, len(rows))))) for task in tasks]
pd.DataFrame({each.task.name: {
    "loss": evaluate_task(network, each, precision="fp32")["loss"],
    "best constant": best_constant(each)} for each in few_rows}).T.round(2)  # fmt: skip

# %% [markdown]
# An untrained head answers about the same to all texts: $\log 2$ and $\log 5$ nats for classes that
# it holds for equally likely, the mean square of the labels for a number near 0. The squared error
# is the largest, and so is the norm of its gradient with respect to the shared weights:

# %%
batches = {each.task.name: each.batch(range(min(16, len(each)))) for each in few_rows}
_, _, norms = gradient_conflict(network, batches)
for name, norm in zip(batches, norms, strict=True):
    print(f"{name:>9}: norm {norm:.1f}, {norm / norms.sum():.0%} of the three")
counted = few_rows[2].labels
print(f"mean square of the labels: {(counted ** 2).mean():.2f},",
      f"counted in tens: {((counted / 10) ** 2).mean():.4f}")  # fmt: skip

# %% [markdown]
# This is an accident of units: count in tens, and the squared error is a hundredth. Nobody decided
# that the number matters more. So a squared error beside cross-entropies is given a lower fixed
# weight, here 0.2, or its labels are divided by their standard deviation. The weights are
# settings like the learning rate: they are chosen on validation rows, not on test rows.
#
# ### Weights that are learned
#
# Kendall et al. (2018) let the model choose. Each task has a **log variance** $s_k$, learned beside
# the other weights, and $c_k = 1$ for a cross-entropy, $\frac12$ for a squared error
# ([`01_math`](01_math.ipynb), section 6, derives the gradients):
#
# $$L = \sum_k \frac{n_k}{n} \Big(c_k\, e^{-s_k} L_k + \tfrac12 s_k\Big)
#   \qquad\text{lowest at}\qquad s_k = \log 2 c_k L_k$$
#
# There the weight of a task is $c_k e^{-s_k} = 1/(2L_k)$, for both kinds, and what is lowered is
# $\sum_k \frac{n_k}{n}\,\frac12 \log L_k$ plus a constant. Units no longer matter: they add a
# constant to the logarithm. But the logarithm has no lowest value:

# %%
figures.optimum_figure([0.7, 0.1, 0.01])

# %% [markdown]
# A task that is learned by heart sends its training loss to 0 and its weight to infinity. To see
# it, the `tiny` model, which trains in seconds, learns all three tasks on 24 reviews. (The $s_k$
# learn at 100 times the learning rate: AdamW moves a number by about the learning rate a step, too
# little for them.)

# %% tags=["nbval-ignore-output"]
small = load_model("tiny", seed=seed)
learner = MultiTaskModel(small, tasks, weighting="uncertainty", seed=seed)
by_heart = MultiTaskDataset([part(task, rows.select(range(24)), small.tokenizer) for task in tasks])


def note(event, state):
    """Keep the log variances in the history of the run."""
    if event == "step":
        state.steps[-1]["s"] = learner.log_variances.tolist()


settings = TrainConfig(epochs=120, batch_size=len(by_heart), learning_rate=2e-3,
                       schedule="constant", precision="fp32", seed=seed)  # fmt: skip
state = fit_tasks(learner, by_heart, [], settings, callbacks=[note])
print(f"{state.step} steps, s = {[round(value, 1) for value in state.steps[-1]['s']]}")

# %% tags=["nbval-ignore-output"]
steps, means = zip(*recorded(state, "task_losses"), strict=True)
s = np.array([line["s"] for line in state.steps])
curves = {task.name: [each[task.name] for each in means] for task in tasks}
c = {"classification": 1.0, "regression": 0.5}
figures.weights_figure(steps, curves, {task.name: c[task.kind] * np.exp(-s[:, k])
                                       for k, task in enumerate(tasks)})  # fmt: skip

# %% [markdown]
# The weights follow $1/(2L_k)$ (dotted) with a delay. As a loss goes to 0 its weight grows without
# end, and a step that matters little for new texts comes to count as much as one that matters.
# Nothing in this says that any task got better on new texts.
# Two remedies: stop early, by validation rows of each task; or keep the weights fixed. From here on
# they are fixed.
#
# ## 4. A joint run
#
# Real weights, and to be quick two of the tasks: the sentiment of all the reviews, and the aspect
# of some. (Add "count" to `together`, and it joins them with its weight of 0.2.) Twice an epoch
# every task is scored on validation rows of its own: by the accuracy, or for a number by the
# correlation $r$ between answers and labels. The weights with the best **mean** score are kept, and
# the run stops early when the mean has not improved for four looks.

# %% tags=["nbval-ignore-output"]
weighted = [*tasks[:2], replace(tasks[2], weight=0.2)]
joined = [task for task in weighted if task.name in together]
train, validation = ([part(task, split) for task in joined] for split in (rows, looked_at))
network = MultiTaskModel(loaded, joined, seed=seed)
settings = TrainConfig(epochs=epochs, batch_size=16, learning_rate=learning_rate, patience=4,
                       evaluations_per_epoch=2, seed=seed)  # fmt: skip
state = fit_tasks(network, MultiTaskDataset(train), validation, settings)
looks = recorded(state, "validation")
print(f"{state.step} of {state.total_steps} steps, stopped early: {state.stopped_early},",
      f"best mean at step {figures.best_step(looks)}, {state.seconds:.0f} s")

# %% tags=["nbval-ignore-output"]
figures.run_figure(recorded(state, "task_losses"), looks)

# %% [markdown]
# Above, the training losses. Below, the validation scores; the dotted line is at the best mean, and
# a ring is round the best score of each task. The rings need not stand on the line. There is one
# model, and it can't be in two places: a table that gives each task the score of its own ring
# speaks of two models (exercise 6). Where a model for each task is what you want, give `fit_tasks`
# no validation rows and a callback, `TaskValidation(network, validation, every=…, keep_each=True)`
# of `tutorkit.multitask_training`: its `own_best` holds them. Few validation rows also make a rough
# choice: one review more moves the aspect's score by one part in as many as there are.

# %% tags=["nbval-ignore-output"]
print("best mean: step", figures.best_step(looks))
for each in validation:
    own = figures.best_step(looks, each.task.name)
    kept, best = (dict(looks)[at]["tasks"][each.task.name]["score"]
                  for at in (figures.best_step(looks), own))  # fmt: skip
    print(f"{each.task.name:>9}: kept {kept:.3f}, own best {best:.3f} at step {own};",
          f"{len(each)} validation rows")

# %% [markdown]
# On the test rows, once. Beside it a cheap rival with the same labels: for classes, a logistic
# regression on counts of words and word pairs; for the number, the correlation of the count with
# the length of the text.

# %% tags=["nbval-ignore-output"]
def tested(task, network):
    """n, the score on the test rows with its interval, and the score of a cheap rival."""
    (texts, labels), known = asked_of(task, test), asked_of(task, rows)
    score, n = evaluate_task(network, part(task, test))["score"], len(labels)
    if task.kind == "classification":
        ends = metrics.accuracy_interval(round(score * n), n)
        tables = [dict(zip(("text", "label"), each, strict=True)) for each in
                  (known, (texts, labels))]  # fmt: skip
        rival = baselines.run_baselines(*tables, ["tfidf_bigrams"], seed)
        return n, score, *ends, rival["tfidf_bigrams"]["accuracy"]
    ends = np.tanh(np.arctanh(score) + np.array([-1.96, 1.96]) / math.sqrt(n - 3))  # Fisher's
    return n, score, *ends, np.corrcoef([len(text.split()) for text in texts], labels)[0, 1]


pd.DataFrame([tested(task, network) for task in joined], index=[task.name for task in joined],
             columns=["n", "score", "95 % from", "to", "cheap rival"]).round(2)  # fmt: skip

# %% [markdown]
# These are scores of different kinds: of two classes that are equally common, and of five that are
# not. Their mean served to choose a step. Reported as a result, it would say nothing.
#
# ## 5. One task against several, with few labels
#
# The aspect has few labelled reviews. Does it gain when the same encoder also learns the sentiment
# of many? To ask it, one thing may differ and all else should be equal. The single model below
# starts from the same encoder, has the same reviews with an aspect for as many epochs at most, and
# the same learning rate, and answers the same test reviews. Not everything can be made equal: the
# joint model takes more steps, with fewer rows of the aspect in each, either may stop early, and
# each of the two keeps the step that *its* validation chose, the joint one by a mean, the single
# one by the aspect alone. Whoever compares says what was chosen.

# %% tags=["nbval-ignore-output"]
own = [each for each in train if each.task.name == "aspect"]
alone = MultiTaskModel(loaded, [own[0].task], seed=seed)
its_rows = [each for each in validation if each.task.name == "aspect"]
by_itself = fit_tasks(alone, MultiTaskDataset(own), its_rows, settings)
correct = {}
for name, one, run in (("alone", alone, by_itself), ("joint", network, state)):
    found = evaluate(one.for_task("aspect").model, asked[1])
    correct[name] = found.probabilities.argmax(axis=1) == asked[1].labels
    low, high = metrics.accuracy_interval(int(correct[name].sum()), len(asked[1]))
    print(f"{name}: {run.step} steps, {run.seconds:.0f} s,",
          f"accuracy {correct[name].mean():.3f} ({low:.3f} to {high:.3f}) of {len(asked[1])}")
print("commonest aspect:", round(np.bincount(asked[1].labels).max() / len(asked[1]), 3))

# %% tags=["nbval-ignore-output"]
print(metrics.compare_sentence("alone", "joint", metrics.paired_test(*correct.values())))

# %% [markdown]
# That is one draw of labels, one seed and few test rows. It shows how the question is asked, not
# its answer; for that, see section 8.
#
# ## 6. Do two tasks pull the same way?
#
# With $g_k = \partial L_k / \partial \theta$ the gradient of task $k$'s loss with respect to the
# shared weights,
#
# $$\cos\varphi_{ij} = \frac{g_i \cdot g_j}{\|g_i\|\,\|g_j\|}$$
#
# A small step $-\eta\, g_i$ for task $i$ changes task $j$'s loss by about
# $-\eta\, g_i \cdot g_j$. Above 0 it lowers that too; below 0 the two **conflict** (Yu et al.
# 2020). At right angles neither feels the other. Two directions drawn at random in $d$ dimensions
# have a cosine of $0 \pm 1/\sqrt d$. At the start it is the heads that are random, each a direction
# in the $H$ dimensions of a text's vector, so a cosine of about $1/\sqrt H$, or a few times that,
# says nothing yet:

# %%
H = network.config.hidden_size
print(f"two random heads in {H} dimensions: cosine 0 ± {1 / math.sqrt(H):.2f}")

# %% [markdown]
# To know what a cosine means, look at extremes too. Beside sentiment and aspect, two tasks made for
# that: **again** has the labels of the sentiment, with a head of its own; **coin** has labels
# shuffled at random, half of each, so it can only be learned by heart. To be quick, only the last
# three layers train, and the cosines are those of their weights.

# %%
some, more = rows.select(range(few)), rows.select(range(min(4 * few, len(rows))))
texts, labels = asked_of(tasks[0], some)
tossed = np.random.default_rng(seed).permutation(np.arange(few) % 2).tolist()
made = [part(tasks[0], some), part(tasks[1], more)] + [
    TaskDataset(Task(name, names=["no", "yes"]), texts, each, loaded.tokenizer, max_length)
    for name, each in (("again", labels), ("coin", tossed))]  # fmt: skip
print({each.task.name: len(each) for each in made})

# %% tags=["nbval-ignore-output"]
watched = MultiTaskModel(loaded, [each.task for each in made], seed=seed)
set_trainable(watched, max(0, len(backbone_layers(watched)) - 3))
batches = {each.task.name: each.batch(range(min(16, len(each)))) for each in made}
start = gradient_conflict(watched, batches)
recorder = ConflictRecorder(watched, batches, every=7)
plain = TrainConfig(epochs=5, batch_size=16, learning_rate=3e-4, seed=seed)
watched_run = fit_tasks(watched, MultiTaskDataset(made), [], plain, callbacks=[recorder])
conflict = recorded(watched_run, "conflict")
print([step for step, _ in conflict], f"{watched_run.seconds:.0f} s")

# %% tags=["nbval-ignore-output"]
pairs = [f"sentiment × {name}" for name in start.tasks[1:]]
curves = {pair: [start.cosines[0, k], *(found[pair] for _, found in conflict)]
          for k, pair in enumerate(pairs, start=1)}  # fmt: skip
figures.conflict_figure([0, *(step for step, _ in conflict)], curves)

# %% [markdown]
# At step 0 even the task with the same labels is nearly at right angles to the sentiment: the heads
# are random, and a gradient reaches the encoder through its head. So a cosine at the start says
# nothing about the tasks. Then the heads learn, and the two with equal labels come to pull the same
# way. The coin has nothing to do with the sentiment. Its cosine need not be 0, though: on 16 texts
# random labels agree with the sentiment's a little more or a little less than half the time.
#
# Two cautions. These are gradients of a batch of training rows, which fall to noise as the rows are
# learned. And conflict in a step is not harm in the end: a sum of opposing gradients may still be
# the best step for both. What counts is the score on new texts.
#
# ## 7. What is refused
#
# Many mistakes with several tasks do not stop anything. A head whose task has no rows keeps its
# random weights and gives answers. Stars taken as class numbers train well and mean nothing. So the
# data set looks, as do the task, the model and the training, and says which task it is about:

# %%
def attempt(make):
    """What an error says, if there is one."""
    try:
        make()
        print("taken")
    except ValueError as error:
        print("-", error)


texts, tokenizer = ["a joy", "too long"], loaded.tokenizer
attempt(lambda: TaskDataset(tasks[0], [], [], tokenizer))
attempt(lambda: TaskDataset(tasks[0], texts, [4.5, 1.0], tokenizer))
attempt(lambda: TaskDataset(tasks[0], texts, ["good", "bad"], tokenizer))
attempt(lambda: TaskDataset(tasks[2], texts, ["good", "bad"], tokenizer))
attempt(lambda: TaskDataset(tasks[2], texts, [3.0, math.nan], tokenizer))
attempt(lambda: MultiTaskDataset([TaskDataset(tasks[0], texts, [1, 1], tokenizer)]))

# %%
attempt(lambda: Task("stars", kind="regression", names=["1", "2", "3", "4", "5"]))
attempt(lambda: MultiTaskModel(loaded, [tasks[0], tasks[0]]))
attempt(lambda: MultiTaskModel(loaded, weighted, weighting="uncertainty"))
attempt(lambda: fit_tasks(network, MultiTaskDataset(train[:1]), [], settings))
attempt(lambda: evaluate_task(network, TaskDataset(Task("mood", names=["low", "high"]), texts,
                                                   [0, 1], tokenizer)))  # fmt: skip

# %% [markdown]
# In the last cell, the fourth refuses rows that lack one of the model's tasks: its head would never
# train.

# %% [markdown]
# ## 8. Where sharing helps, and where it hurts
#
# To answer that, one needs several seeds, several numbers of labels and more test rows. So it was
# run once and kept: sentences of films, products, newspaper editorials and tweets, each rated by
# twenty people (Hutto & Gilbert 2014), negative or positive by the mean rating. The tasks are the
# four domains, and five ways to learn them are compared:
#
# | way | encoder | heads |
# |---|---|---|
# | a model for each domain | four | one in each |
# | one encoder, a head for each | one | four |
# | one head for all domains | one | one: the domains are stacked |
# | one head, and one for the domain | one | that one, and one that tells the domain |
# | one head, and one for the rating | one | that one, and a regression on the human rating |
#
# The first three read each labelled sentence equally often. The last two read it twice as often,
# once for each question. What it was made with:

# %%
record = studies.stored("multitask-snippets")
lines, about = record.lines, record.about
domains = figures.domains_of(lines)
print(about["settings"]["model"], f"{about['settings']['max_length']} tokens,",
      about["environment"]["cpu"], f"{about['environment']['cores']} cores")
print(f"labelled rows of a domain {sorted({line['n'] for line in lines})},",
      f"seeds {sorted({line['seed'] for line in lines})}")
print("test rows:", {figures.DOMAINS[name]: about["settings"]["n_test"][name] for name in domains})

# %% [markdown]
# The settings were not chosen for any of the ways: they are those of
# [`06_transfer`](06_transfer.ipynb), found on another data set and for one task. The joint encoder
# takes the steps of the four single ones together at that rate, so it moves further from the
# pretrained weights: this too is part of what is compared. A seed decides which sentences are
# drawn, the heads' first weights and the order of rows; all ways share the draws and the test rows.

# %%
figures.domain_figure(lines, ["single", "joint", "nb_trigrams"])

# %% [markdown]
# Below, the difference is taken seed by seed, so what made a draw lucky for both cancels. The same
# in numbers: points of accuracy with the 95 % interval over seeds (Student's t; with three seeds
# $\pm 2.5\,s$, see lesson 06). A star stands where the interval leaves 0 out.

# %%
def written(values):
    """The mean difference in points, its interval, and a star if that leaves 0 out."""
    low, high = metrics.mean_interval(values)
    star = "" if low <= 0 <= high else " *"
    return f"{100 * np.mean(values):+.1f} ({100 * low:+.1f} to {100 * high:+.1f}){star}"


def compared(setting, rival):
    """One row a domain, one column a number of labelled rows."""
    table = {figures.DOMAINS[name]: figures.differences(lines, setting, rival, name)
             for name in domains}  # fmt: skip
    return pd.DataFrame({title: {n: written(values) for n, values in found.items()}
                         for title, found in table.items()}).T  # fmt: skip


compared("joint", "single")

# %% [markdown]
# Of twenty such intervals about one leaves 0 out by chance, so one star alone in a table of twelve
# is little.
#
# The interval asks which way gives the better model when other sentences are drawn to learn from.
# The paired test (McNemar's, lesson 06) asks of two models that stand, those of one seed, which
# answers more of such sentences correctly. How often it says better and worse, of the seeds:

# %%
def paired(setting, rival):
    """Of the seeds' paired tests, how many find the setting better and how many worse."""
    labels = about["settings"]["test_labels"]
    found = {figures.DOMAINS[name]: figures.verdicts(lines, labels[name], setting, rival, name)
             for name in domains}  # fmt: skip
    return pd.DataFrame({title: {n: f"{each.count(1)} better, {each.count(-1)} worse"
                                 for n, each in values.items()}
                         for title, values in found.items()}).T  # fmt: skip


paired("joint", "single")

# %% [markdown]
# With 32 and with 128 labels a domain, sharing helps: the mean is above 0 in every domain, and of
# 24 paired tests 11 say better and one worse. With 512 nothing of the gain is left, and films
# **lose** three to four points, in every seed. Sentences of other domains stand in for labels that
# are missing, until a domain has enough of its own. What it is worth: the mean gain at 128 labels,
# four points, is about what the single models gain from twice the labels (seven from four times as
# many).
#
# ### One head for all
#
# Here all domains are asked the same thing, so they can share the head as well.

# %%
figures.domain_figure(lines, ["single", "pooled", "joint+domain", "joint+rating"])

# %%
compared("pooled", "single")

# %%
paired("pooled", "single")

# %%
compared("pooled", "joint")

# %% [markdown]
# The one head gains as much with few labels, and with 512 it costs no domain anything that three
# seeds could show. Between the two the tables are uneven at 32 labels. At 512 the one head is ahead
# in films and news. A head of its own helps where the tasks differ; here all are asked the same.

# %% [markdown]
# ### A second question about the same sentences
#
# Does it help to learn, besides, which domain a sentence is from, or how strongly twenty people
# felt about it? Against the same model without that second task. These runs take twice the steps.

# %%
compared("joint+domain", "pooled")

# %%
compared("joint+rating", "pooled")

# %% [markdown]
# Neither second question makes a difference that three seeds resolve, in any domain or at any
# number of labels, and each costs twice the steps.
#
# The rating is a regression. How well does its head answer, on the same test rows? $r$ is the
# correlation with the mean human rating, the error is in points of its scale from -4 to 4; means
# over the seeds.

# %%
rated = {figures.DOMAINS[name]: {
    f"{what}, {n}": np.mean(values) for key, what in (("pearson", "r"), ("mae", "error"))
    for n, values in figures.by_budget(lines, "joint+rating", name, key).items()}
    for name in domains}  # fmt: skip
pd.DataFrame(rated).T.round(2)

# %% [markdown]
# So the second head learns what it is asked. What it learns does not show in the first one's
# answers.

# %% [markdown]
# ### The mean over domains
#
# A paper would print one number: the mean over the tasks. Here it stands with its interval, taken
# seed by seed as before, beside the domains with the lowest and the highest difference, and the
# number of domains whose own interval lies above 0 or below it.

# %%
def over_domains(setting, rival):
    """The mean over the domains at each number of labelled rows, and what it hides."""
    found = {figures.DOMAINS[name]: figures.differences(lines, setting, rival, name)
             for name in domains}  # fmt: skip
    for n in next(iter(found.values())):
        each = {title: values[n] for title, values in found.items()}
        ends = [metrics.mean_interval(values) for values in each.values()]
        low, high = (choose(each, key=lambda title: np.mean(each[title])) for choose in (min, max))
        yield {"": f"{setting} - {rival}", "rows": n,
               "mean (95 %)": written(np.mean(list(each.values()), axis=0)),
               "lowest": f"{low} {100 * np.mean(each[low]):+.1f}",
               "highest": f"{high} {100 * np.mean(each[high]):+.1f}",
               "above 0": sum(a > 0 for a, _ in ends), "below 0": sum(b < 0 for _, b in ends)}


contrasts = [("joint", "single"), ("pooled", "single"), ("joint+domain", "pooled"),
             ("joint+rating", "pooled")]  # fmt: skip
pd.DataFrame([row for pair in contrasts for row in over_domains(*pair)]).set_index(["", "rows"])

# %% [markdown]
# At 128 labels the mean gain of four points is six for news and one for tweets. At 512 the joint
# model's mean is not told apart from 0, and it hides the films, whose interval lies below 0.

# %% [markdown]
# ### Do the domains conflict?
#
# The cosines of the four heads' gradients in the joint runs, on 64 validation sentences of each
# domain; means over the seeds. First with 128 labels, where sharing helped:

# %%
figures.conflict_figure(*figures.mean_cosines(lines, 128))

# %% [markdown]
# With 512 labels, where it hurt the films:

# %%
figures.conflict_figure(*figures.mean_cosines(lines, 512))

# %%
for n in (128, 512):
    steps, cosines = figures.mean_cosines(lines, n)
    print(n, {" × ".join(figures.DOMAINS[name] for name in pair.split(" × ")):
              round(float(np.mean(values)), 2) for pair, values in cosines.items()})  # fmt: skip

# %% [markdown]
# Means over steps. Films and news pull most nearly the same way, news and tweets least. Films and
# news are also the two that gained most with 128 labels. But with 512 their cosine is still the
# highest, and films lose. A cosine says whether a step for one lowers the loss of the other on
# these rows, not whether the other still has something to gain.

# %% [markdown]
# ### What it costs
#
# Minutes of one processor core for the training of all four domains. Up to 512 rows a domain,
# every run has the same number of steps (fewer rows are read more often), so the columns differ
# little:

# %%
ways = ["single", "joint", "pooled", "joint+domain", "joint+rating"]
budgets = sorted({line["n"] for line in lines})
pd.DataFrame({n: {figures.LOOKS[way][0]: figures.minutes(lines, way, n) for way in ways}
              for n in budgets}).round(1)  # fmt: skip

# %% [markdown]
# To make the record again, in a terminal: it goes on where it was if it is stopped.
#
# ```
# python -m tutorkit.studies.multitask runs/multitask
# ```
#
# ## Summary
#
# - Hard sharing: one encoder, a head a task. It saves memory and can save passes. That it is better
#   has to be shown, task by task.
# - Who is drawn how often is a setting. A temperature lifts small tasks and repeats their rows.
# - A loss counts by its unit. Give losses of different kinds fixed weights, or learn them, and know
#   that a learned weight grows without end as a training loss goes to 0.
# - One model is at one step: choose it by one rule, and report all tasks at that step.
# - Compare on the same rows, with the same settings, and say what could not be made equal.
# - A cosine below 0 says that two tasks pull against each other in this step, on these rows. At the
#   start it says nothing.
# - A mean over tasks hides a loser. Show every task, with an interval.
#
# ## Exercises
#
# Write these yourself in [`exercises/08_multitask.ipynb`](exercises/08_multitask.ipynb): there each
# function is a stub, with hints and a check that names your mistake. Here they stand solved; the
# solutions are folded, so open one when you have tried. The last two are "spot the flaw" labs.

# %% tags=["exercise-setup"]
import math

import torch

from tutorkit.checks import lesson_08

# %% [markdown] tags=["exercise"]
# ### Exercise 1: whose turn
#
# **Goal**: compute how temperature sampling shares the rows of an epoch among tasks.
#
# **Difficulty**: ●○○ **Minutes**: 5
#
# **Signature**: `turn_shares(sizes, temperature)`: a list of K whole numbers, a number → (K,)
# float64
#
# The formula is in section 2. The temperature may be `math.inf`.

# %% tags=["solution"] jupyter={"source_hidden": true}
def turn_shares(sizes, temperature):
    """The share of the rows that each task gets.

    sizes: K numbers of rows; temperature: above 0, may be infinite. Returns (K,) in float64.
    """
    ### BEGIN SOLUTION
    powers = torch.tensor(sizes, dtype=torch.float64) ** (1 / temperature)
    return powers / powers.sum()
    ### END SOLUTION

# %% tags=["check"]
lesson_08.turn_shares.check(turn_shares)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: each head on its rows
#
# **Goal**: compute the joint loss of section 3 for tasks of classes, also where a task has no row.
#
# **Difficulty**: ●●○ **Minutes**: 15
#
# **Signature**: `joint_loss(outputs, labels, task, weights)`: a list of K tensors (B, C_k), (B,),
# (B,), (K,) → ()
#
# Here every head has scored every row, but only its own rows count for it: `task` says whose each
# is. In $L = \sum_k \frac{n_k}{n} w_k L_k$ the $L_k$ is the mean cross-entropy of the $n_k$ rows of
# task $k$, and $n$ is $B$. A task without rows adds 0. A label of task $k$ is below $C_k$, and may
# be none of another task's classes.

# %% tags=["solution"] jupyter={"source_hidden": true}
def joint_loss(outputs, labels, task, weights):
    """The weighted loss of a batch of several tasks.

    outputs: K tensors (B, C_k) of scores; labels, task: (B,) int64; weights: (K,). Returns ().
    """
    ### BEGIN SOLUTION
    total = weights.new_zeros(())
    for k, scores in enumerate(outputs):
        mine = task == k
        log_p = scores[mine].log_softmax(dim=1)
        total = total - weights[k] * log_p.gather(1, labels[mine][:, None]).sum()
    return total / len(task)
    ### END SOLUTION

# %% tags=["check"]
lesson_08.joint_loss.check(joint_loss)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: learned weights
#
# **Goal**: compute the loss with learned weights of section 3, here without the shares $n_k/n$ of
# the rows, $\sum_k (c_k\, e^{-s_k} L_k + \frac12 s_k)$, and the $s_k$ at which it is lowest.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `uncertainty(losses, log_variances, kinds)`: (K,), (K,), a list of K names →
# ((), (K,))
#
# A kind is "classification", with $c_k = 1$, or "regression", with $c_k = \frac12$. Return the loss
# at the log variances $s_k$ given, and those that would be best for these losses.

# %% tags=["solution"] jupyter={"source_hidden": true}
def uncertainty(losses, log_variances, kinds):
    """The loss, and the best log variances.

    losses, log_variances: (K,); kinds: K names. Returns a tuple of a tensor () and one (K,).
    """
    ### BEGIN SOLUTION
    c = losses.new_tensor([1.0 if kind == "classification" else 0.5 for kind in kinds])
    loss = (c * torch.exp(-log_variances) * losses + log_variances / 2).sum()
    return loss, torch.log(2 * c * losses)
    ### END SOLUTION

# %% tags=["check"]
lesson_08.uncertainty.check(uncertainty)

# %% [markdown] tags=["exercise"]
# ### Exercise 4: do they pull the same way?
#
# **Goal**: compute the cosine of two tasks' gradients, each given parameter by parameter.
#
# **Difficulty**: ●○○ **Minutes**: 10
#
# **Signature**: `cosine(first, second)`: two lists of tensors, of the same shapes → ()
#
# All entries of a list together are one vector. The cosine is section 6's.

# %% tags=["solution"] jupyter={"source_hidden": true}
def cosine(first, second):
    """The cosine of two gradients.

    first, second: lists of tensors, one a parameter, in the same order. Returns a tensor ().
    """
    ### BEGIN SOLUTION
    a = torch.cat([g.flatten() for g in first])
    b = torch.cat([g.flatten() for g in second])
    return a @ b / (a.norm() * b.norm())
    ### END SOLUTION

# %% tags=["check"]
lesson_08.cosine.check(cosine)

# %% [markdown] tags=["exercise"]
# ### Exercise 5: the gain at each budget
#
# **Goal**: from the lines of a record, compute what the joint model gains, with an interval.
#
# **Difficulty**: ●●● **Minutes**: 15
#
# **Signature**: `gains(lines, t)`: a list of dicts, a number → a dict from whole numbers to tuples
# of three numbers
#
# A line has `setting` ("single" or "joint"), `n`, `seed` and `accuracy`; the lines stand in no
# order, and a run that failed has none. For each `n`, take the differences joint minus single of
# the seeds that have both. The tuple is their mean $\bar d$, and the ends
# $\bar d \mp t \cdot s / \sqrt k$, with $s$ their standard deviation ($k - 1$ in it) and $k$ their
# number.

# %% tags=["solution"] jupyter={"source_hidden": true}
def gains(lines, t):
    """The mean gain of the joint model at each budget, and its interval.

    lines: dicts with "setting", "n", "seed", "accuracy"; t: the quantile. Returns
    {n: (mean, low, high)}.
    """
    ### BEGIN SOLUTION
    accuracy = {(line["setting"], line["n"], line["seed"]): line["accuracy"] for line in lines}
    found = {}
    for n in sorted({line["n"] for line in lines}):
        d = [accuracy["joint", n, seed] - value
             for (setting, size, seed), value in accuracy.items()
             if (setting, size) == ("single", n) and ("joint", n, seed) in accuracy]  # fmt: skip
        mean = sum(d) / len(d)
        s = math.sqrt(sum((each - mean) ** 2 for each in d) / (len(d) - 1))
        half = t * s / math.sqrt(len(d))
        found[n] = (mean, mean - half, mean + half)
    return found
    ### END SOLUTION

# %% tags=["check"]
lesson_08.gains.check(gains)

# %% [markdown] tags=["exercise"]
# ### Exercise 6: spot the flaw, one table or three models?
#
# **Goal**: report the test scores that one model has.
#
# A table of a joint model says: sentiment 0.91, aspect 0.78, count 0.60. The log shows that each
# score was taken at the step at which that task's validation score was best. These were three
# different steps. Nobody has a model with these three scores, yet they were printed as one model's,
# beside single-task models that do exist.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `scores_of_one_model(looks)`: a list of dicts → a dict from names to numbers
#
# A look has `step`, and `validation` and `test`, each a dict from task to score. Choose one step,
# by the mean validation score of the tasks, of equals the earliest, and return its test scores. The
# looks stand in the order of their steps.

# %% tags=["solution"] jupyter={"source_hidden": true}
def scores_of_one_model(looks):
    """The test scores at the step with the best mean validation score.

    looks: dicts with "step", "validation" and "test". Returns {task: score}.
    """
    ### BEGIN SOLUTION
    def mean(look):
        return sum(look["validation"].values()) / len(look["validation"])

    return dict(max(looks, key=mean)["test"])
    ### END SOLUTION

# %% tags=["check"]
lesson_08.scores_of_one_model.check(scores_of_one_model)

# %% [markdown] tags=["exercise"]
# ### Exercise 7: spot the flaw, the mean over tasks
#
# **Goal**: find the task that a mean hides.
#
# "Joint training improves the average over our tasks by a point." One of two tasks may have gained
# four points and the other lost two. Whoever needs the second one is badly advised.
#
# **Difficulty**: ●○○ **Minutes**: 10
#
# **Signature**: `behind_the_mean(alone, together)`: two dicts from names to lists of numbers →
# (a number, a name, a number)
#
# A list holds the accuracies of a task, one a seed, the seeds in the same order in both. The gain
# of a task is its mean accuracy together minus that alone. Return the mean gain over the tasks, the
# name of the task with the lowest gain, and that gain.

# %% tags=["solution"] jupyter={"source_hidden": true}
def behind_the_mean(alone, together):
    """The mean gain over tasks, and the task that gains least, with its gain.

    alone, together: task -> accuracies, one a seed. Returns (number, name, number).
    """
    ### BEGIN SOLUTION
    gain = {name: sum(together[name]) / len(together[name]) - sum(alone[name]) / len(alone[name])
            for name in alone}  # fmt: skip
    worst = min(gain, key=gain.get)
    return sum(gain.values()) / len(gain), worst, gain[worst]
    ### END SOLUTION

# %% tags=["check"]
lesson_08.behind_the_mean.check(behind_the_mean)

# %% [markdown]
# On the record of section 8, in points:

# %%
for n in budgets:
    alone, together = ({figures.DOMAINS[name]: figures.by_budget(lines, way, name)[n]
                        for name in domains} for way in ("single", "joint"))  # fmt: skip
    mean, worst, least = behind_the_mean(alone, together)
    print(f"{n:>4} rows: mean gain {100 * mean:+.1f}, least in {worst}: {100 * least:+.1f}")

# %% [markdown]
# ## Further reading
#
# - R. Caruana, *Multitask Learning*, Machine Learning 28, 1997: hard sharing, and when it helps.
# - A. Kendall, Y. Gal, R. Cipolla, *Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
#   Geometry and Semantics*, CVPR 2018: section 3.
# - C. Raffel et al., *Exploring the Limits of Transfer Learning with a Unified Text-to-Text
#   Transformer*, JMLR 2020, section 3.5.2: mixing tasks by temperature.
# - T. Yu et al., *Gradient Surgery for Multi-Task Learning*, NeurIPS 2020: conflict, and a remedy.
# - T. Standley et al., *Which Tasks Should Be Learned Together in Multi-task Learning?*, ICML 2020.
# - D. Xin et al., *Do Current Multi-Task Optimization Methods in Deep Learning Even Help?*, NeurIPS
#   2022: against fixed weights that are tuned as carefully.
# - C. J. Hutto, E. Gilbert, *VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
#   Social Media Text*, ICWSM 2014: the rated sentences.
