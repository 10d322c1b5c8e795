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
# # A tour: the whole at small size
#
# This kit teaches fine-tuning: to take a language model that has read a lot and make it good at one
# task, with a few texts that carry a label. Here you see the whole once, at small size: a map of
# the subject, one run from start to finish, and what your machine can do.
#
# **After this lesson you can** say what fine-tuning is and what it is connected with, read the
# result of a run together with its interval, and tell what your machine is good for and how long
# each lesson will take on it.
#
# **Time**: half a minute to run on two CPU cores, and less on a GPU; ten minutes to read, and as
# long for the exercises. **Needs**: the installed package. The weights of `minilm` (about 90 MB)
# are fetched once and kept.

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
rows = 200  # texts to learn from, at most
max_length = 64  # tokens a text
batch_size = 16  # rows in one step
epochs = 3  # passes over the texts
review = "A warm and funny film, and I loved every minute of it."  # to ask the model about
seed = 0  # of new weights, the order of rows, and dropout

# %%
import numpy as np
import pandas as pd

from tutorkit import baselines, data, lesson_times, machine, metrics, panel, plots, sources
from tutorkit.board import TrainingBoard
from tutorkit.concept_map import ConceptMap, lessons_in
from tutorkit.models import count_parameters, load_model
from tutorkit.precision import choose_device, choose_precision
from tutorkit.tour_figures import concept_figure, times_figure
from tutorkit.training import TrainConfig, evaluate, fit

record = lesson_times.read_record()
here = lessons_in(".")  # the notebooks beside this one
known = here or {name[:2]: name for name in record["lessons"]}
print("the notebooks of the lessons are beside this one:", bool(here))

# %% [markdown]
# ## 1. The map
#
# Fine-tuning stands in the middle. Each arrow reads as a sentence, such as "Pre-training provides
# the weights for transfer learning". Begin in the bottom row. A dashed box is planned: its lesson
# is not there yet.

# %%
concepts = ConceptMap(known, linked=bool(here))
concept_figure(concepts)

# %% [markdown]
# The same boxes, to click. A planned one leads to its formula meanwhile.

# %%
concepts

# %% [markdown]
# The words, in the order in which a model meets them:
#
# - **Pre-training** costs the most and is done once, by others: the model guesses hidden or next
#   words in billions of sentences, which need no labels.
# - **Transfer learning** is the idea that what it learned there is of use elsewhere.
# - **Fine-tuning** is the usual way to do that: train on, for minutes, on texts with labels.
# - **Adapters and LoRA** train a few weights instead of all, **multi-task learning** trains for
#   several tasks together, **adversarial training** adds inputs that were changed to mislead.
# - **Knowledge distillation** makes a small model from a large one. The model of this tour,
#   `minilm`, was made that way before it was fine-tuned to compare sentences.

# %% [markdown]
# ## 2. One run, from start to finish
#
# The task: is a film review good (1) or bad (0)? The reviews were written for this project and are
# meant to be hard. Three jobs, three sets of rows: the model learns from **train**, we choose by
# **validation**, and **test** is looked at once, at the end.

# %%
splits = sources.load_splits(dataset, seed)
train = data.take_rows(splits["train"], rows, seed, "train")
validation, test = splits["validation"], splits["test"]
print("train", len(train), " validation", len(validation), " test", len(test))
for row in sorted(train, key=lambda row: len(row["text"]))[:4]:
    print(row["label"], row["text"])

# %% [markdown]
# The pretrained model, with a new head that gives each text two scores, one for each answer. The
# head's weights are random so far.

# %%
loaded = load_model(model, seed=seed)
n_parameters, _ = count_parameters(loaded.model)
answers = list(loaded.model.config.id2label.values())
print(f"{model}: {n_parameters:,} parameters, answers {answers}")

# %% [markdown]
# A model reads numbers: a text becomes tokens (words or pieces of words), and each token a number,
# its id. `[CLS]` marks the beginning. The mask has a 1 for every real token and a 0 for filling.
# Longer reviews are cut in the middle.

# %%
def tokenized(part):
    return data.SentimentDataset(part["text"], part["label"], loaded.tokenizer, max_length)


batch = tokenized(train).batch(range(batch_size))
print({name: tuple(tensor.shape) for name, tensor in batch.items()})
print(loaded.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])[:12])

# %% [markdown]
# What is reached without fine-tuning: by the model as it is, with its random head, and by counting
# words (rare words weigh more, and each word gets one weight for or against: TF-IDF and a logistic
# regression), which learns from the same rows in no time. A fine-tuned model should beat both.
# These two are scored on the test rows already; that is no second look, because nothing is chosen
# by it.

# %% tags=["nbval-ignore-output"]
before = evaluate(loaded.model, tokenized(test))
words = baselines.run_baselines(train, test, ["tfidf_unigrams"], seed)["tfidf_unigrams"]
print(f"before {before.accuracy:.3f}, counting words {words['accuracy']:.3f}")

# %% [markdown]
# Now the run. One **step**: predict a batch, measure the loss, move every weight a little in the
# direction that lowers it. One **epoch**: every row once. After each epoch the validation rows are
# looked at, and the best weights are kept.

# %% tags=["nbval-ignore-output"]
config = TrainConfig(
    epochs=epochs, batch_size=batch_size, learning_rate=3e-4, evaluations_per_epoch=1, seed=seed
)
state = fit(
    loaded.model, tokenized(train), tokenized(validation), config, callbacks=[TrainingBoard()]
)
print(f"{state.step} steps in {state.seconds:.0f} s")

# %% tags=["nbval-ignore-output"]
plots.learning_curves(state.history)

# %% [markdown]
# The **loss** says how wrong the probabilities are; lower is better. In training it goes on falling
# when the validation loss no longer does: with so few texts the model begins to learn them by
# heart. Single steps jump, most of all the last one of an epoch, whose batch is short. The best
# weights are those with the highest validation accuracy, which can rise while the loss rises too:
# more answers are right, and the wrong ones are surer.
#
# Now the test, once. Accuracy is the share of right answers. A score on a few rows is blurred, and
# its 95 % interval says by how much.

# %% tags=["nbval-ignore-output"]
after = evaluate(loaded.model, tokenized(test))
accuracies = {"before": before.accuracy, "word counts": words["accuracy"], model: after.accuracy}
kinds = ("before", "baseline", "model")
n = len(test)
scores = [
    {"name": name, "accuracy": value, "kind": kind,
     "ci95": metrics.accuracy_interval(round(value * n), n)}
    for (name, value), kind in zip(accuracies.items(), kinds, strict=True)
]  # fmt: skip
plots.score_comparison(scores)

# %%
print("a coin's score before:", 0.4 < before.accuracy < 0.6)
print("better than before:", after.accuracy > before.accuracy + 0.05)
print("rows to score by:", n)

# %% [markdown]
# Is it better than counting words? Both were asked about the same rows, so the rows on which
# exactly one of them is right decide:

# %% tags=["nbval-ignore-output"]
labels = np.array(test["label"])
right = after.probabilities.argmax(axis=1) == labels
paired = metrics.paired_test(right, words["predictions"] == labels)
print(metrics.compare_sentence(model, "word counts", paired))

# %% [markdown]
# A difference that is "not resolved" may be real: these rows are too few to say. The p is how often
# a difference this large would come up if both were equally good. Two hundred texts to learn from
# and two hundred to judge by are few. The README's table of results has the same model after 24,000
# reviews, judged by 25,000: with so many rows, differences of less than a point can be resolved.
# [`05_imdb_report`](05_imdb_report.ipynb) makes such a run, by default a smaller one, and
# [`06_transfer`](06_transfer.ipynb) shows what happens in between.
#
# Now ask the model. The words that moved its answer most come with a sign: + for the answer, −
# against it.

# %% tags=["nbval-ignore-output"]
found = panel.answer(review, loaded.model, loaded.tokenizer, max_length=max_length)
print(review)
print(panel.answer_text(found, rows=4))

# %% [markdown]
# "Not calibrated" means that the probability was not compared with how often the model is right. If
# a note says that the scores miss a part of the change, it is because they are computed in a few
# steps. Words that you expect may be absent: the scores tell what moved this model, not what should
# have. To ask about a review of your own, write `review = "…"` above the first line of the cell and
# run it again. A hard one: "I expected nothing and got two hours that I won't forget."

# %% [markdown]
# ## 3. What this machine can do
#
# Nearly all of training is multiplying matrices. So their speed is measured, in billions of
# additions and multiplications a second (GFLOP/s), in two number formats: fp32, with 32 bits, and
# bf16, with 16 bits, which has the range of fp32 and a third of its digits.

# %% tags=["nbval-ignore-output"]
env = machine.environment()
size = 4096 if env["gpu"] else 1024
speed = {name: machine.matmul_gflops(name, size) for name in ("fp32", "bf16")}
pd.Series({
    "processor": env["cpu"],
    "cores": env["cores"],
    "load average": env["load_average"] and env["load_average"][0],
    "memory, GiB": env["memory_gb"],
    "of it free, GiB": round(machine.free_memory_gb(), 1),
    "GPU": env["gpu"] or "none",
    "bf16 instructions": ", ".join(env["cpu_bf16"]) or "none",
    "fp32, GFLOP/s": round(speed["fp32"]),
    "bf16, GFLOP/s": round(speed["bf16"]),
    "bf16 / fp32": round(speed["bf16"] / speed["fp32"], 1),
    "training computes in": choose_precision("auto", choose_device()),
}, name="here").to_frame()  # fmt: skip

# %% [markdown]
# What that means for you:
#
# - **Cores**: two are enough for every lesson. More of them make training faster, and little else.
# - **Load average**: how many programs were at work in the last minute. If it is above the number
#   of cores, others take time from this notebook, and the speeds shown here are too low.
# - **Free memory**: a lesson with its defaults stays below 1.8 GiB. If less is free, close other
#   programs, and shut down the kernels of other notebooks.
# - **GPU**: nothing in the lessons needs one. Where there is one it is used by itself. With 16 GB,
#   `smollm2` on all of IMDB comes into reach.
# - **bf16**: where the processor has instructions for it, training computes in bf16 and gains,
#   though less than the ratio says: only the products become faster. Without them it stays in fp32,
#   and lesson 05 takes longer than its text says. On a GPU it takes bf16, or fp16 on older ones.
# - **Training computes in**: what follows from that. `precision="fp32"` in a `TrainConfig`
#   overrules it.

# %% [markdown]
# ## 4. How long each lesson takes here
#
# Every lesson was run on a reference machine, where two things were measured as well: one training
# step of `minilm`, and a loop in plain Python. The same two are measured here now. The part of a
# lesson that is training is scaled by the first; importing, drawing and preparing texts by the
# second.

# %% tags=["nbval-ignore-output"]
yardsticks = lesson_times.measure()
reference = {name: record[name] for name in yardsticks}
ratio = {name: round(yardsticks[name] / reference[name], 2) for name in yardsticks}
pd.DataFrame({"reference machine": reference, "here": yardsticks, "ratio": ratio}).rename(
    index={"step_s": "training step, s", "plain_s": "plain Python, s"}
)

# %% tags=["nbval-ignore-output"]
print("reference machine:", ", ".join(f"{k} {v}" for k, v in record["hardware"].items()))
times = lesson_times.estimate(record, yardsticks, sorted(known.values()))
lesson_times.as_table(times)

# %% tags=["nbval-ignore-output"]
times_figure(times)

# %% tags=["nbval-ignore-output"]
counted = [row["here_s"] for row in times if row["here_s"] is not None]
print(f"{len(counted)} of {len(times)} lessons with a record: {sum(counted) / 60:.1f} min here")

# %% [markdown]
# These are the seconds of all cells of a lesson, run at one go with the defaults; reading takes
# longer. The first run of a lesson may have to download weights or data. The estimate knows of two
# speeds only: take it as right within a third. Lesson 05 takes about twice as long where IMDB can
# be had, for its reviews are longer.

# %% [markdown]
# ## Summary
#
# - **Fine-tuning** goes on training a pretrained model, on texts with labels. What surrounds it in
#   the map changes its weights, its tasks, its inputs, or what becomes of the model.
# - **A run**: load splits and model, tokenize, score before, train with a look at the validation
#   rows now and then, test once. The package's words for it are `load_splits`, `load_model`,
#   `SentimentDataset`, `fit` and `evaluate`.
# - **A result** is an accuracy with its interval, beside a cheap baseline on the same rows.
# - **Your machine**: cores, bf16 and a GPU decide how long training takes; memory decides what
#   fits.

# %% [markdown]
# ## Exercises
#
# Write these yourself in [`exercises/00_tour.ipynb`](exercises/00_tour.ipynb): there each function
# is a stub, with hints and a check that names your mistake. Here they stand solved; the solutions
# are folded. All five are short: they are for finding out how exercises work here.

# %% tags=["exercise-setup"]
import math

from tutorkit.checks import lesson_00

# %% [markdown] tags=["exercise"]
# ### Exercise 1: accuracy by hand
#
# **Goal**: compute the accuracy of predictions, a number from 0 to 1.
#
# **Difficulty**: ●○○ **Minutes**: 2
#
# **Signature**: `accuracy(labels, predictions)`: two lists of 0 and 1, of one length → a number

# %% tags=["solution"] jupyter={"source_hidden": true}
def accuracy(labels, predictions):
    """The share of rows whose prediction is the label.

    labels, predictions: lists of 0 and 1 of the same length. Returns a number from 0 to 1.
    """
    ### BEGIN SOLUTION
    right = sum(a == b for a, b in zip(labels, predictions, strict=True))
    return right / len(labels)
    ### END SOLUTION

# %% tags=["check"]
lesson_00.accuracy.check(accuracy)

# %% [markdown] tags=["exercise"]
# ### Exercise 2: the steps of a run
#
# **Goal**: say how many steps a run takes. The last batch of an epoch may be short; it is a step
# too. `math` is imported.
#
# **Difficulty**: ●○○ **Minutes**: 2
#
# **Signature**: `steps_in_run(rows, batch_size, epochs)`: three whole numbers → a whole number

# %% tags=["solution"] jupyter={"source_hidden": true}
def steps_in_run(rows, batch_size, epochs):
    """The optimizer steps of a run.

    rows: to learn from; batch_size: rows in a step; epochs: passes over the rows. Returns a whole
    number.
    """
    ### BEGIN SOLUTION
    return math.ceil(rows / batch_size) * epochs
    ### END SOLUTION

# %% tags=["check"]
lesson_00.steps_in_run.check(steps_in_run)

# %% [markdown]
# Of the run in section 2:

# %%
print("steps:", steps_in_run(len(train), batch_size, epochs), " as counted:", state.step)

# %% [markdown] tags=["exercise"]
# ### Exercise 3: which score is higher?
#
# **Goal**: judge two scores by their intervals. If the intervals don't overlap, the one that lies
# higher wins; if they do, the question is open.
#
# **Difficulty**: ●○○ **Minutes**: 3
#
# **Signature**: `higher(first, second)`: two lists [lower end, upper end] → `"first"`, `"second"`
# or `"open"`
#
# This is a cautious rule: two models scored on the *same* rows can be told apart by a paired test,
# as in section 2, even where their intervals overlap. Lesson 04 has it as an exercise.

# %% tags=["solution"] jupyter={"source_hidden": true}
def higher(first, second):
    """Which of two scores is the higher one, judged by their intervals.

    first, second: lists [lower end, upper end]. Returns "first", "second" or "open".
    """
    ### BEGIN SOLUTION
    if first[0] > second[1]:
        return "first"
    if second[0] > first[1]:
        return "second"
    return "open"
    ### END SOLUTION

# %% tags=["check"]
lesson_00.higher.check(higher)

# %% [markdown] tags=["exercise"]
# ### Exercise 4: the memory of training
#
# **Goal**: count the bytes that training keeps for the parameters. Each parameter is a number. For
# each one that is trained there are three more: its gradient, and the two running means that AdamW,
# the usual optimizer, keeps.
#
# **Difficulty**: ●○○ **Minutes**: 3
#
# **Signature**: `training_bytes(parameters, trained, bytes_each)`: three whole numbers → a whole
# number
#
# `trained` of the `parameters` are trained, the others are frozen. Every number takes `bytes_each`
# bytes: 4 in fp32.

# %% tags=["solution"] jupyter={"source_hidden": true}
def training_bytes(parameters, trained, bytes_each):
    """The bytes of weights, gradients and the state of AdamW.

    parameters: of the model; trained: how many of them are trained; bytes_each: of one number.
    Returns a whole number.
    """
    ### BEGIN SOLUTION
    return (parameters + 3 * trained) * bytes_each
    ### END SOLUTION

# %% tags=["check"]
lesson_00.training_bytes.check(training_bytes)

# %% [markdown]
# For the model of this lesson. What a batch needs on its way through the layers comes on top.

# %%
head = sum(p.numel() for name, p in loaded.model.named_parameters() if name in loaded.head)
for what, trained in {"all trained": n_parameters, "the head alone": head}.items():
    print(f"{what}: {training_bytes(n_parameters, trained, 4) / 1e6:.0f} MB")

# %% [markdown] tags=["exercise"]
# ### Exercise 5: a lesson on another machine
#
# **Goal**: estimate how long a lesson takes here. Its training is as much slower or faster as a
# training step is; the rest takes as long as there.
#
# **Difficulty**: ●○○ **Minutes**: 2
#
# **Signature**: `seconds_here(training_s, rest_s, step_there, step_here)`: four numbers, all
# seconds → a number

# %% tags=["solution"] jupyter={"source_hidden": true}
def seconds_here(training_s, rest_s, step_there, step_here):
    """The seconds of a lesson on this machine.

    training_s, rest_s: the two parts of the lesson on the other machine; step_there, step_here:
    one training step on each. Returns seconds.
    """
    ### BEGIN SOLUTION
    return training_s * step_here / step_there + rest_s
    ### END SOLUTION

# %% tags=["check"]
lesson_00.seconds_here.check(seconds_here)

# %% [markdown]
# ## Further reading
#
# - J. Howard, S. Ruder, *Universal Language Model Fine-tuning for Text Classification*, ACL 2018,
#   and J. Devlin et al., *BERT*, NAACL 2019: how fine-tuning became the usual way.
# - S. J. Pan, Q. Yang, *A Survey on Transfer Learning*, IEEE TKDE 2010: the idea and its kinds,
#   before language models.
# - R. Caruana, *Multitask Learning*, 1997; I. Goodfellow et al., *Explaining and Harnessing
#   Adversarial Examples*, ICLR 2015; G. Hinton et al., *Distilling the Knowledge in a Neural
#   Network*, 2015: where three boxes of the map come from.
# - W. Wang et al., *MiniLM*, NeurIPS 2020: how the model of this tour was made.
#
# Next: [`01_math`](01_math.ipynb), or, if you would rather see texts first,
# [`02_data`](02_data.ipynb).
