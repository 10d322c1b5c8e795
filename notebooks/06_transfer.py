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
# # Transfer: what pre-training buys
#
# A pretrained model has read a great deal before it sees your first labelled text. This lesson asks
# what that is worth, and how to use it: train a small head on it, train its last layers, train all
# of it, or train all of it at different speeds. And it asks what training costs the model: it
# forgets some of what it could do.
#
# **After this lesson you can** choose between these ways by the number of labels you have, draw
# a learning curve with honest intervals, put a price in labels on pre-training, show what
# fine-tuning made a model forget, and ask a model for the words that moved its answer.
#
# **Time**: under two minutes to run on two CPU cores; two hours to read, the exercises not counted.
# **Needs**: the installed package; the weights of `minilm` (about 90 MB) are fetched once and kept.
# Learning rates, warm-up and the training loop are in [`04_training`](04_training.ipynb).

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
labelled = 440  # labelled texts to learn from
answered = 200  # test texts, at most
max_length = 64  # tokens a text
least_steps = 48  # optimizer steps of a run, or two epochs where that is more
ways = ["features", "last_layers", "everything"]  # what is run here; all five are in the record
seed = 0  # of the draw of labelled texts, of new weights, and of dropout

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML

from tutorkit import baselines, data, explain, metrics, panel, sources, studies, training, transfer
from tutorkit import transfer_figures as figures
from tutorkit.models import load_model, parameter_depths
from tutorkit.transfer import STRATEGIES

splits = sources.load_splits(dataset, seed)
test = data.take_rows(splits["test"], answered, seed, "test")
rows = transfer.draw(splits["train"], labelled, seed)
print({"labelled": len(rows), "positive": sum(rows["label"]), "test": len(test)})

# %% [markdown]
# ## 1. Five ways to use a model
#
# A model is a stack: embeddings, some layers, a head with the scores. Pre-training has set the
# weights of all but the head. (`minilm` was trained, besides guessing words, to compare sentences.
# That favours frozen features; another model may need training sooner.) The ways to go on differ in
# what starts from these weights, what moves, and how fast:
#
# | way | starts from | what training moves |
# |---|---|---|
# | from scratch | random weights | everything |
# | frozen features | pretrained weights | a logistic regression on the mean hidden state |
# | last two layers | pretrained weights | two layers, pooler and head |
# | everything | pretrained weights | everything, at one learning rate |
# | discriminative rates | pretrained weights | everything, the lower the slower |
#
# Counted on the loaded model. A weight that does not move also needs no gradient and no optimizer
# state.

# %%
def moved_weights(name):
    """How many weights a strategy moves."""
    way = STRATEGIES[name]
    network = transfer.start(way, model, seed=seed).model
    if way.penalty is not None:  # a logistic regression outside the network: one score and a bias
        return network.config.hidden_size + 1
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


pd.Series({way.title: moved_weights(name) for name, way in STRATEGIES.items()},
          name="weights that move").map("{:,}".format).to_frame()  # fmt: skip

# %% [markdown]
# ### Discriminative learning rates
#
# Lower layers hold what is common to all texts, upper ones what is special to a task. So let the
# lower ones move less. With $\eta_l$ the learning rate of layer $l$, counted from below,
#
# $$\eta_{l-1} = \xi\,\eta_l$$
#
# The head, with the pooler, has the full rate. `TrainConfig(layer_decay=…)` is $\xi$: 1/2.6 in
# Howard & Ruder (2018), for a network of three layers; 0.7 here, which did better on validation
# rows (section 3). The depth of a weight is counted from the top, and `encoder.layer.5` is layer 6
# of the figure below:

# %%
loaded = load_model(model, seed=seed)
depths = parameter_depths(loaded.model)
for depth in sorted(set(depths.values())):
    names = [name for name in depths if depths[name] == depth]
    print(f"depth {depth}: {len(names):>2} tensors, first {names[0]}")

# %%
deepest = max(depths.values())
parts = ["embeddings", *(f"layer {i}" for i in range(1, deepest)), "head"]
slow = STRATEGIES["discriminative"]
figures.rates_figure({
    "everything": [STRATEGIES["everything"].learning_rate] * len(parts),
    slow.title: [slow.learning_rate * slow.layer_decay**depth for depth in range(deepest, -1, -1)],
    "last two layers": [0] * (deepest - 2) + [STRATEGIES["last_layers"].learning_rate] * 3,
}, parts)  # fmt: skip

# %% [markdown]
# ## 2. Three of them, on the same rows
#
# To be quick, three are run here; set `ways` to run others. Each learns from the same labelled
# reviews, and the two that take steps take equally many. All answer the same test reviews. Nothing
# is chosen on the way: no early stopping, no best epoch. So no labels are needed beyond those they
# learn from.

# %% tags=["nbval-ignore-output"]
used = {}
for name in ways:
    used[name] = transfer.use(
        STRATEGIES[name], model, rows, test, seed, max_length, least_steps=least_steps
    )
    print(f"{STRATEGIES[name].title}: {used[name].steps} steps, {used[name].train_s:.0f} s")

# %% [markdown]
# Beside them a cheap baseline: counting words and pairs of words, with a logistic regression.

# %% tags=["nbval-ignore-output"]
answers = {STRATEGIES[name].title: found.probabilities.argmax(axis=1)
           for name, found in used.items()}  # fmt: skip
cheap = baselines.run_baselines(rows, test, ["tfidf_bigrams"], seed)
answers["counting word pairs"] = cheap["tfidf_bigrams"]["predictions"]
correct = {title: found == np.array(test["label"]) for title, found in answers.items()}
table = pd.DataFrame(
    [[hits.mean(), *metrics.accuracy_interval(int(hits.sum()), len(hits))]
     for hits in correct.values()],
    index=list(correct), columns=["accuracy", "95 % from", "to"])  # fmt: skip
table.round(2)

# %% [markdown]
# Before reading a ranking from it: is any of these differences more than chance?

# %% tags=["nbval-ignore-output"]
best, *others = table["accuracy"].sort_values(ascending=False, kind="stable").index
for other in others:
    result = metrics.paired_test(correct[best], correct[other])
    print(metrics.compare_sentence(best, other, result))

# %% [markdown]
# Where a line says "more accurate", it speaks of these very models, and the best was picked after
# looking. Another draw of labels, or another seed, can turn it round, so this is too little to
# choose by. What one run can show is that the frozen part stays frozen. Bit for bit:

# %%
before = dict(load_model(model, seed=seed).model.named_parameters())
for name in ways:
    after = dict(used[name].loaded.model.named_parameters())
    still = [depths[key] for key in depths if torch.equal(before[key], after[key])]
    print(f"{STRATEGIES[name].title}: depths without any change",
          [d for d in range(deepest + 1) if still.count(d) == list(depths.values()).count(d)])

# %% [markdown]
# ## 3. The learning curve
#
# To choose, one needs the same comparison at several numbers of labels, over several seeds, on more
# test rows. Training, scoring and loading take an hour or two, so it was run once and kept: on
# sentences of film reviews, each rated by twenty people (Hutto & Gilbert 2014), which anybody can
# download. The command at the end of this section makes it again. What it was made with:

# %%
record = studies.stored("transfer-rt_snippets-minilm")
lines, about = record.lines, record.about
print(about["settings"]["dataset"]["name"], about["settings"]["model"],
      f"{about['settings']['max_length']} tokens")
print(f"{len(lines)} results: budgets {sorted({line['n'] for line in lines})},",
      f"seeds {sorted({line['seed'] for line in lines})},",
      f"{about['settings']['n_test']:,} test rows")
print(about["environment"]["cpu"], f"{about['environment']['cores']} cores,",
      f"{sum(line['train_s'] for line in lines) / 60:.0f} minutes of training")

# %% [markdown]
# The learning rates, $\xi$ and the $C$ of the logistic regression (column `penalty`; a larger $C$
# is a weaker penalty) were chosen before, on another data set: IMDB, 512 labelled reviews, by the
# loss on 500 others. One choice serves all budgets, and no label of the sentences decided anything
# but the training (see exercise 6).

# %%
tried = pd.DataFrame(record.rates)
print("rows:", tried["n"].unique(), " validation rows:", tried["n_validation"].unique())
columns = ["strategy", "learning_rate", "layer_decay", "penalty", "accuracy", "loss"]
tried[columns].round(5).map(lambda value: "" if pd.isna(value) else value)

# %% [markdown]
# The lowest loss of each way won. From scratch nothing was learned at any rate ($\log 2 = 0.693$ is
# the loss of a guess), so its rate is hardly a choice, and its curve says what these steps give,
# not what is possible. For "everything" the highest rate won: a higher one was not tried.
#
# Now the curve. A seed decides which labelled sentences are drawn, the new weights and the order of
# rows. All ways share these draws and the test rows.

# %%
figures.curve_figure(lines)

# %%
def mean_table(lines, names):
    """Mean accuracy over the seeds: a row a strategy, a column a budget."""
    found = {figures.LOOKS[name][0]: {n: np.mean(values) for n, values in
                                      figures.by_budget(lines, name).items()}
             for name in names}  # fmt: skip
    return pd.DataFrame(found).T


mean_table(lines, figures.LOOKS).round(3)

# %% [markdown]
# From three seeds one learns little about how much results vary, so the interval is wide: with $s$
# the standard deviation of the three, Student's t puts $\pm 4.30\,s / \sqrt 3 = \pm 2.5\,s$ around
# their mean. But the seeds are shared, so differences between two ways can be taken seed by seed,
# and what made a draw lucky for both cancels.

# %%
figures.difference_figure(lines, ["everything", "discriminative", "last_layers"], "features")

# %% [markdown]
# The same in words. "Resolved" means that the interval leaves 0 out. Of twenty such intervals about
# one does so by chance. Three seeds that happen to agree also give a very short bar, as "last two
# layers" has at 512.

# %%
def compared(strategy, rival):
    """One line for each budget: the difference of two ways, its interval, and what it shows."""
    print(f"{figures.LOOKS[strategy][0]} minus {figures.LOOKS[rival][0]}, in points:")
    for n, values in figures.differences(lines, strategy, rival).items():
        low, high = metrics.mean_interval(values)
        verdict = "not resolved" if low <= 0 <= high else "resolved"
        print(f"{n:>6,} labels  {100 * np.mean(values):+5.1f}  ({100 * low:+.1f} to "
              f"{100 * high:+.1f}, {len(values)} seeds): {verdict}")


compared("everything", "features")
compared("discriminative", "everything")
compared("everything", "tfidf_bigrams")
compared("scratch", "tfidf_bigrams")

# %% [markdown]
# So with 32 and 128 labels the ways that start from pretrained weights cannot be told apart here,
# and with 2,048 training the layers is ahead of frozen features. That discriminative rates are
# better than one rate is not shown at any number of labels.

# %% [markdown]
# ### What it is worth in labels
#
# Read the curve sideways. At which number of labels does counting words reach the accuracy that
# the pretrained model, everything trained, has with 128? Between two budgets the curve is taken as
# straight over $\log n$. "More than" means: not with any budget that was tried.

# %%
def labels_needed(strategy, accuracy):
    """The number of labels at which a strategy's mean curve first reaches an accuracy."""
    found = figures.by_budget(lines, strategy)
    return transfer.labels_worth(list(found), [np.mean(v) for v in found.values()], accuracy)


goal = np.mean(figures.by_budget(lines, "everything")[128])
for name in ("everything", "features", "tfidf_unigrams", "tfidf_bigrams", "scratch"):
    needed = labels_needed(name, goal)
    largest = max(line["n"] for line in lines)
    said = f"about {needed:,.0f}" if needed else f"more than {largest:,}"
    print(f"accuracy {goal:.3f} by {figures.LOOKS[name][0]}: {said} labels")

# %% [markdown]
# Counting needs several times as many labels as the pretrained model. Frozen features may need
# fewer, because their curve begins higher. These are readings of mean curves, without intervals,
# and the accuracy that was asked for differs by several points from seed to seed: take them as
# orders of size.
#
# To make the record again, or one of your own data, in a terminal: it goes on where it was if it is
# stopped.
#
# ```
# python -m tutorkit.budgets runs/transfer --dataset rt_snippets --seeds 0,1,2
# ```

# %% [markdown]
# ## 4. What it forgets
#
# `minilm` was made to put texts with the same content close together. A question that needs no
# training shows whether it still does: is the nearest text, by the cosine of the mean hidden
# states, of the same kind? It is asked on two sets of the built-in reviews:
#
# - **pairs**: two reviews of the same film that differ in a few words and in their verdict;
#   the kind is the film;
# - **aspects**: reviews that speak of one thing only, such as the acting or the music, which is the
#   kind.

# %%
memories = {"pairs": transfer.only_asked(transfer.pairs_memory()),
            "aspects": transfer.aspects_memory()}  # fmt: skip
for name, memory in memories.items():
    kind = memory.kinds[0]
    print(f"{name}: {len(memory.texts)} texts, {len(set(memory.kinds))} kinds; two of one kind:")
    for text in [t for t, k in zip(memory.texts, memory.kinds, strict=True) if k == kind][:2]:
        print("   -", text)

# %% [markdown]
# Before a measure is trusted, it should be asked about a model that knows nothing:

# %% tags=["nbval-ignore-output"]
ignorant = transfer.start(STRATEGIES["scratch"], model, seed=seed)
models = {"random weights": ignorant, "pretrained": loaded}
models |= {f"then: {STRATEGIES[name].title}": used[name].loaded for name in ways}
kept = pd.DataFrame({name: {title: transfer.remembers(one, memory) for title, one in models.items()}
                     for name, memory in memories.items()})  # fmt: skip
kept.round(2)

# %% [markdown]
# Random weights find nearly every partner: the two share most of their words, and that is enough.
# So the pairs say little about what a model knows. A trained model may even fall below them:
# partners differ in their verdict, and training on verdicts pushes them apart. The aspects say
# more: the pretrained model finds the right one clearly more often than random weights do. Above a
# guess by the commonest it is by less. With 162 texts a share is known to about eight points.

# %%
commonest = pd.Series(memories["aspects"].kinds).value_counts(normalize=True)
print(f"share of the commonest aspect, {commonest.index[0]}: {commonest.iloc[0]:.2f}")
print("the pretrained model is above it:", kept["aspects"]["pretrained"] > commonest.iloc[0])
print("pairs tell the two apart by 10 points:",
      kept["pairs"]["pretrained"] - kept["pairs"]["random weights"] > 0.1)
print("aspects tell the two apart by 10 points:",
      kept["aspects"]["pretrained"] - kept["aspects"]["random weights"] > 0.1)

# %% [markdown]
# There are few such reviews. In the record the same was asked with 800 sentences, 200 each of film
# reviews, product reviews, editorials and tweets: is the nearest one from the same source? This has
# nothing to do with verdicts.

# %%
untouched = next(line for line in lines if line["strategy"] == "features")["remembers"]["domains"]
figures.forgetting_figure(lines, "domains", untouched)

# %%
def forgotten(strategy):
    """Points below the pretrained model's share, at each budget and seed."""
    found = figures.by_budget(lines, strategy, "remembers.domains")
    return [100 * (untouched - value) for values in found.values() for value in values]


for name in ("features", "discriminative", "last_layers", "everything", "scratch"):
    print(f"{figures.LOOKS[name][0]}: {np.mean(forgotten(name)):.0f} points below the pretrained")

# %% [markdown]
# This is **catastrophic forgetting**: nothing in the loss asks the model to keep what it knew, so
# the weights go where the new task pulls them. A model that is frozen throughout forgets nothing,
# by construction. Where only the lower layers are frozen, the last hidden states still change with
# the two layers above, and these learn at the highest rate of all. Lower rates for lower layers
# forget less than one rate for all. Up to 512 labels every run takes 64 steps, so 32 labels already
# cost much. The model from scratch had nothing to forget: its share is what a model without
# pre-training reaches.
#
# ### Halfway back
#
# A remedy that costs no training: take weights between the pretrained and the fine-tuned ones,
#
# $$\theta(\alpha) = (1 - \alpha)\,\theta_0 + \alpha\,\theta_1$$
#
# for all of the backbone. The head keeps its fine-tuned weights: its first values were random.

# %% tags=["nbval-ignore-output"]
tuned = used["everything"].loaded
theta_0, theta_1 = loaded.model.state_dict(), tuned.model.state_dict()
head = [key for key in theta_1 if key in tuned.head]
validation = data.take_rows(splits["validation"], 100, seed, "validation")
judged = data.SentimentDataset(
    validation["text"], validation["label"], tuned.tokenizer, max_length
)
between = transfer.start(STRATEGIES["everything"], model, seed=seed)
alphas, learned, remembered = np.linspace(0, 1, 5), [], []
for alpha in alphas:
    between.model.load_state_dict(transfer.mixed_weights(theta_0, theta_1, alpha, head))
    learned.append(training.evaluate(between.model, judged).accuracy)
    remembered.append(transfer.remembers(between, memories["aspects"]))
figures.trade_figure(alphas, learned, remembered)

# %% [markdown]
# Read it from the right: going back, the accuracy hardly changes at first, while some of what was
# forgotten returns. With 100 validation reviews a point is known to about nine points, so this
# shows the direction only. Choosing α by it would use these labels (exercise 6).

# %%
print("α = 1 is the fine-tuned model:",
      all(torch.equal(between.model.state_dict()[key], theta_1[key]) for key in theta_1))

# %% [markdown]
# Other remedies train for it: rows of the old task mixed in (rehearsal), a penalty on the distance
# from the pretrained weights, or a small set of new weights beside frozen ones, as adapters and
# LoRA have.

# %% [markdown]
# ## 5. Ask it
#
# The model that was trained on everything, with your own text. Its probabilities are first made
# honest: a temperature, fitted on validation rows, makes them agree, on average, with how often it
# is right ([`01_math`](01_math.ipynb), section 2, has the softmax with a temperature).

# %% tags=["nbval-ignore-output"]
on_validation = training.evaluate(tuned.model, judged)
temperature = panel.fit_temperature(np.log(on_validation.probabilities), judged.labels)
right = on_validation.probabilities.argmax(axis=1) == judged.labels
for name, T in (("as it comes", 1.0), ("with the temperature", temperature)):
    p = torch.tensor(np.log(on_validation.probabilities) / T).softmax(dim=1).numpy().max(axis=1)
    print(f"{name}: T = {T:.2f}, mean confidence {p.mean():.2f}, right {right.mean():.2f}")

# %% [markdown]
# These are the rows that the temperature was fitted on, so the agreement is a little flattered. The
# answers stay the same; only the confidence changes.
#
# An answer, and the words that moved it: by integrated gradients, the change in its **log-odds**
# from a text of blanks (every word replaced by padding) to this one, shared out among the words.
# Log-odds are $\log\frac{p}{1-p}$, with $p$ the probability of the answer: 0 where the model is
# undecided. Before you look, name the three words that you would choose; the model's may be others.
# Blue words speak for the answer, orange ones against it.

# %% tags=["nbval-ignore-output"]
text = ("I expected little and got less. The songs are lovely, the acting is wooden, and the plot "
        "takes two hours to arrive nowhere. My sister slept.")  # fmt: skip
answer = panel.answer(text, tuned.model, tuned.tokenizer, temperature, max_length)
HTML(panel.answer_html(answer))

# %% [markdown]
# Type one of your own (in JupyterLab, after running the lesson):

# %% tags=["nbval-ignore-output"]
panel.try_review(tuned.model, tuned.tokenizer, temperature, max_length=max_length)

# %% [markdown]
# ### Are these the words it needs?
#
# Colours look convincing whatever they show. A check: delete the three words with the highest
# scores, let the model read the rest, and see how far its log-odds fall. Then delete three words
# drawn at random, twenty times. "Beaten" is the share of these that lowered the log-odds less: a
# faithful explanation beats most. Two methods are checked: integrated gradients, and gradient ×
# input, which looks at the slope at the text alone.

# %% tags=["nbval-ignore-output"]
checked = []
for number in range(4):
    for method in ("integrated_gradients", "gradient_x_input"):
        found = explain.explain(tuned.model, tuned.tokenizer, test["text"][number], method,
                                max_length=max_length)  # fmt: skip
        check = explain.deletion_check(tuned.model, tuned.tokenizer, found, max_length=max_length)
        checked.append({"review": number, "method": method.replace("_", " "), "fall": check.drop,
                        "random fall": check.random_drop, "beaten": check.beaten})  # fmt: skip
pd.DataFrame(checked).round(2)

# %% tags=["nbval-ignore-output"]
pd.DataFrame(checked).groupby("method")["beaten"].agg(["mean", "min"]).round(2)

# %% [markdown]
# A half is what words drawn at random would reach. The slope in one place is a poor guide to what
# happens when a word is gone; integrated gradients follow the whole way. These are four reviews:
# enough for a warning, too few for a ranking. The check is what tells the two apart, so use it
# before you believe a colour.

# %% [markdown]
# ## Summary
#
# What the record says of these sentences, as questions to its means over three seeds. A mean that
# is higher is not yet a resolved difference: with 32 labels no interval of section 3 leaves 0 out.

# %%
def mean(strategy, n):
    return np.mean(figures.by_budget(lines, strategy)[n])


pretrained = ("features", "last_layers", "everything", "discriminative")
counting = ("tfidf_unigrams", "tfidf_bigrams", "nb_trigrams")

# %%
said = {
    "32 labels: any use of pre-training is 4 points above all counting":
        min(mean(w, 32) for w in pretrained) > 0.04 + max(mean(c, 32) for c in counting),
    "32 labels: frozen features are within 2 points of the best way":
        max(mean(w, 32) for w in pretrained) - mean("features", 32) < 0.02,
    "2,048 labels: training everything is 3 points above frozen features":
        mean("everything", 2048) > 0.03 + mean("features", 2048),
    "2,048 labels: from scratch is below counting words":
        mean("scratch", 2048) < min(mean(c, 2048) for c in counting),
    "discriminative rates forget less than one rate for all":
        np.mean(forgotten("discriminative")) < np.mean(forgotten("everything")),
}
for text, holds in said.items():
    print(f"{holds}: {text}")

# %% [markdown]
# - Pre-training is paid back in labels: read a learning curve sideways to see how many.
# - With a few dozen labels, nothing that was tried was shown to be better than a logistic
#   regression on frozen features, and that costs seconds. With two thousand, training the layers
#   pays.
# - A difference belongs to an interval: over seeds, pair by pair, on the same test rows.
# - What is frozen forgets nothing. What trains forgets. Ask an ignorant model too, before you
#   trust a measure of it.
# - Weights between the pretrained and the fine-tuned model trade one for the other, without
#   training.
# - An explanation is a claim about the model. Delete the words and see.

# %% [markdown]
# ## Exercises
#
# Write these yourself in [`exercises/06_transfer.ipynb`](exercises/06_transfer.ipynb): there each
# function is a stub, with hints and a check that names your mistake. Here they stand solved; the
# solutions are folded, so open one when you have tried. The last one is a "spot the flaw" lab, on a
# mistake that published few-label results are known for.

# %% tags=["exercise-setup"]
import math

import torch

from tutorkit.checks import lesson_06

# %% [markdown] tags=["exercise"]
# ### Exercise 1: the learning rate of every layer
#
# **Goal**: write the discriminative rates of section 1.
#
# **Difficulty**: ●○○ **Minutes**: 10
#
# **Signature**: `layer_rates(peak, layers, decay)`: a number, a whole number, a number →
# (layers + 2,) float64
#
# The first entry is the rate of the embeddings, then those of the layers from below, and the last
# one is the head's, which is `peak`.

# %% tags=["solution"] jupyter={"source_hidden": true}
def layer_rates(peak, layers, decay):
    """The learning rate of embeddings, layers and head, from below.

    peak: the head's rate; layers: how many; decay: each rate as a share of the one above. Returns
    (layers + 2,) in float64.
    """
    ### BEGIN SOLUTION
    depths = torch.arange(layers + 1, -1, -1, dtype=torch.float64)
    return peak * decay**depths
    ### END SOLUTION

# %% tags=["check"]
lesson_06.layer_rates.check(layer_rates)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: a difference over seeds
#
# **Goal**: compute the interval for the difference of two ways that were run with the same seeds.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `paired_interval(first, second, t)`: (k,), (k,), a number → (2,)
#
# Seed $i$ made `first[i]` and `second[i]`. With $d$ the differences first minus second, $\bar d$
# their mean and $s$ their standard deviation (with $k - 1$ in it), the ends are
# $\bar d \mp t \cdot s / \sqrt k$. The quantile `t` of Student's distribution is given.

# %% tags=["solution"] jupyter={"source_hidden": true}
def paired_interval(first, second, t):
    """Lower and upper end of the interval for the mean difference.

    first, second: (k,) scores, one a seed; t: the quantile. Returns (2,).
    """
    ### BEGIN SOLUTION
    difference = first - second
    half = t * difference.std() / math.sqrt(len(difference))
    return torch.stack([difference.mean() - half, difference.mean() + half])
    ### END SOLUTION

# %% tags=["check"]
lesson_06.paired_interval.check(paired_interval)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: what a curve is worth in labels
#
# **Goal**: find the number of labels at which a learning curve first reaches an accuracy.
#
# **Difficulty**: ●●○ **Minutes**: 15
#
# **Signature**: `labels_for(budgets, accuracies, accuracy)`: a list of whole numbers, a list of
# numbers, a number → a number (float)
#
# The budgets rise. Between two neighbours $(n_1, a_1)$ and $(n_2, a_2)$ the accuracy is straight
# over $\log n$. Where the smallest budget already reaches the accuracy, return that budget. Each
# curve of the check reaches it somewhere; some fall below it again.

# %% tags=["solution"] jupyter={"source_hidden": true}
def labels_for(budgets, accuracies, accuracy):
    """The number of labels at which a curve first reaches an accuracy.

    budgets: numbers of labels, rising; accuracies: one for each; accuracy: to be reached. Returns
    a Python float.
    """
    ### BEGIN SOLUTION
    i = next(k for k, reached in enumerate(accuracies) if reached >= accuracy)
    if i == 0:
        return float(budgets[0])
    share = (accuracy - accuracies[i - 1]) / (accuracies[i] - accuracies[i - 1])
    return budgets[i - 1] * (budgets[i] / budgets[i - 1]) ** share
    ### END SOLUTION

# %% tags=["check"]
lesson_06.labels_for.check(labels_for)

# %% [markdown] tags=["exercise"]
# ### Exercise 4: weights between two models
#
# **Goal**: mix the pretrained and the fine-tuned weights of section 4.
#
# **Difficulty**: ●○○ **Minutes**: 10
#
# **Signature**: `mixed(before, after, alpha, head)`: a dict from names to tensors, another one, a
# number, a list of names → a dict from names to tensors
#
# Names in `head` keep the fine-tuned weights. `alpha` is the share of the fine-tuned ones.

# %% tags=["solution"] jupyter={"source_hidden": true}
def mixed(before, after, alpha, head):
    """Weights between two models; the head is the fine-tuned one's.

    before, after: name -> tensor; alpha: the share of `after`; head: names. Returns a new dict.
    """
    ### BEGIN SOLUTION
    return {
        name: after[name] if name in head else (1 - alpha) * before[name] + alpha * after[name]
        for name in after
    }
    ### END SOLUTION

# %% tags=["check"]
lesson_06.mixed.check(mixed)

# %% [markdown] tags=["exercise"]
# ### Exercise 5: what is remembered
#
# **Goal**: compute the share of texts whose nearest other text is of their kind.
#
# **Difficulty**: ●●○ **Minutes**: 15
#
# **Signature**: `right_neighbours(vectors, kinds)`: (N, H), a list of N names → a number (float)
#
# Nearest is the one with the largest cosine, the scalar product of two vectors divided by their
# lengths. A text is not its own neighbour.

# %% tags=["solution"] jupyter={"source_hidden": true}
def right_neighbours(vectors, kinds):
    """The share of texts whose nearest other text, by cosine, is of the same kind.

    vectors: (N, H); kinds: N names. Returns a Python float.
    """
    ### BEGIN SOLUTION
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(dim=1).tolist()
    return sum(kinds[i] == kinds[j] for i, j in enumerate(nearest)) / len(kinds)
    ### END SOLUTION

# %% tags=["check"]
lesson_06.right_neighbours.check(right_neighbours)

# %% [markdown] tags=["exercise"]
# ### Exercise 6: spot the flaw, how many labels?
#
# **Goal**: count the labels that a result with "few labels" really took.
#
# A table says of each run how many labelled texts it learned from. The log of a run holds more: the
# ids of its training rows, those of its validation rows, and what was chosen by the latter, such as
# the epoch, the learning rate, or the wording of a prompt. A label that decided something had to be
# made by somebody, whether or not a gradient ever saw it.
#
# **Difficulty**: ●●○ **Minutes**: 10
#
# **Signature**: `labels_read(runs)`: a list of dicts → a list of whole numbers
#
# A dict has `train` and `validation`, lists of ids, and `chosen`, a list of names such as "epoch",
# which may be empty. An id may stand in both lists.

# %% tags=["solution"] jupyter={"source_hidden": true}
def labels_read(runs):
    """The number of different labels that each run's result depends on.

    runs: dicts with "train" and "validation" (lists of ids) and "chosen" (a list of names).
    Returns a list of whole numbers.
    """
    ### BEGIN SOLUTION
    found = []
    for run in runs:
        ids = set(run["train"])
        if run["chosen"]:
            ids |= set(run["validation"])
        found.append(len(ids))
    return found
    ### END SOLUTION

# %% tags=["check"]
lesson_06.labels_read.check(labels_read)

# %% [markdown]
# On the record of section 3. Each of its runs learned from its own draw and chose nothing. The
# learning rates had been chosen before, by labels of another data set:

# %%
first = record.rates[0]
curve = [{"train": range(n), "validation": [], "chosen": []} for n in (32, 2048)]
choice = {"train": range(10_000, 10_000 + first["n"]), "chosen": ["learning rate"],
          "validation": range(20_000, 20_000 + first["n_validation"])}  # fmt: skip
print("labels of single runs:", labels_read(curve))
print("labels of the choice before them, of IMDB:", labels_read([choice])[0])

# %% [markdown]
# So "32 labels" is true of the sentences, and the settings cost a thousand labels elsewhere. Both
# have to be said. For a project with 32 labels this is the way: take settings that were found on
# other data, and choose nothing.

# %% [markdown]
# ## Further reading
#
# - J. Howard, S. Ruder, *Universal Language Model Fine-tuning for Text Classification*, ACL 2018:
#   discriminative learning rates, and learning curves by the number of labels (their figure 3).
# - M. E. Peters, S. Ruder, N. A. Smith, *To Tune or Not to Tune?*, RepL4NLP 2019: frozen features
#   against fine-tuning.
# - T. Zhang et al., *Revisiting Few-sample BERT Fine-tuning*, ICLR 2021: few rows need many steps.
# - E. Perez, D. Kiela, K. Cho, *True Few-Shot Learning with Language Models*, NeurIPS 2021: the
#   flaw of exercise 6.
# - M. McCloskey, N. J. Cohen, *Catastrophic Interference in Connectionist Networks*, 1989,
#   described forgetting, under the name of interference. M. Wortsman et al., *Robust Fine-tuning of
#   Zero-shot Models*, CVPR 2022:
#   weights between two models.
# - M. Sundararajan, A. Taly, Q. Yan, *Axiomatic Attribution for Deep Networks*, ICML 2017:
#   integrated gradients. J. DeYoung et al., *ERASER*, ACL 2020: checking explanations by deletion.
