"""Which words moved the prediction: gradient x input, integrated gradients, a check by deletion.

What is explained is one number of the model, the log-odds of the predicted class c,

    f(x) = log p_c / (1 - p_c) = z_c - log Σ_{k≠c} e^{z_k}

which is 0 where the model is undecided and, with two classes, the difference of the two logits. A
logit alone would not do: adding a constant to all logits changes no probability.

The scores are of the input embeddings (before positions are added), summed over their entries and
over the tokens of a word. Special tokens such as [CLS] are the same for every text; they stay as
they are and get no score.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tutorkit.data import SentimentDataset, special_frame, truncate
from tutorkit.models import check_max_length
from tutorkit.training import eval_mode

METHODS = ("integrated_gradients", "gradient_x_input")
BASELINES = ("pad", "zero")
BATCH_TOKENS = 1024  # read at once along the path from the baseline to the text
MOST_STEPS, LEAST_STEPS = 16, 6  # where the number of steps is left open

# Scripts written without spaces (Chinese, Japanese): each character is a word here.
_SINGLE = r"\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{_SINGLE}]|[^\W{_SINGLE}]+(?:['’/-][^\W{_SINGLE}]+)*|[^\w\s]+")

Ids = Int[Tensor, " tokens"]
Embeddings = Float[Tensor, "tokens hidden"]
Path = Float[Tensor, "batch tokens hidden"]
Function = Callable[[Path], Float[Tensor, " batch"]]


class NoWords(ValueError):
    """A text that holds nothing the tokenizer can read."""


@dataclass(frozen=True)
class WordScore:
    """A word of the text, and what it did for the predicted class."""

    text: str
    start: int  # its place in the text, in characters
    end: int
    score: float  # above 0: for the predicted class; below: against it
    seen: bool  # False: truncation kept it from the model, its score is 0


@dataclass(frozen=True)
class Explanation:
    """A prediction and the share of each word in it."""

    text: str
    words: tuple[WordScore, ...]  # in reading order
    label: int  # the predicted class, or the one asked for
    probabilities: tuple[float, ...]  # one a class
    log_odds: float  # f(x) of `label`
    baseline_log_odds: float  # f of the text with every word blanked out
    unexplained: float  # f(x) - f(baseline) - Σ scores: the error of the numerical integral
    method: str  # one of METHODS
    tokens: int  # tokens the model read, special ones not counted
    unknown: int  # of these, how many stand for something the tokenizer does not know

    @property
    def probability(self) -> float:
        """The probability of `label`."""
        return self.probabilities[self.label]

    def top(self, k: int) -> list[WordScore]:
        """The k words that did most for the predicted class; of equals the earlier first."""
        return sorted((w for w in self.words if w.seen), key=lambda w: -w.score)[:k]


def explain(
    model: torch.nn.Module, tokenizer: Any, text: str, method: str = "integrated_gradients",
    steps: int | None = None, baseline: str = "pad", label: int | None = None,
    max_length: int = 128, truncation: str = "head+tail",
) -> Explanation:
    """Score every word of a text by what it did for the prediction.

    Args:
        model: maps `input_ids` and `attention_mask` to an output with `.logits`; encoder or
            decoder. It is left as it was found.
        tokenizer: its fast tokenizer.
        text: one text.
        method: "integrated_gradients" or "gradient_x_input".
        steps: points of the integral; more cost more time and leave less unexplained. None: 16,
            fewer for a long text, so that `minilm` answers in about a second of one CPU core.
        baseline: what a blank is: the embedding of the "pad" token, or "zero". Next to zero a model
            that rescales its input (RMSNorm, as most decoders have) changes steeply: it needs more
            steps there.
        label: the class to explain; the predicted one by default.
        max_length: most tokens the model reads, special ones included, as in training.
        truncation: which part of a longer text it reads, as in training.

    Raises:
        ValueError: an unknown method, baseline or class, no steps, a `max_length` above what the
            model has positions for; `NoWords`, a text without a token.
    """
    for name, value, allowed in (("method", method, METHODS), ("baseline", baseline, BASELINES)):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {allowed}, found {value!r}")
    check_max_length(model, max_length)
    ids, offsets, before = _encode(tokenizer, text, max_length, truncation)
    device = next(model.parameters()).device
    row = torch.tensor(ids, device=device)
    with eval_mode(model), torch.no_grad():
        logits = _logits(model, row[None])[0]  # (C,)
        label = int(logits.argmax()) if label is None else label
        if not 0 <= label < len(logits):
            raise ValueError(f"label: expected a class in 0…{len(logits) - 1}, found {label!r}")
        f = log_odds_of_embeddings(model, row, label)
        x = _embeddings(model, row)  # (T, H)
        inner = slice(before, before + len(offsets))
        blank = x.clone()
        blank[inner] = _embeddings(model, row.new_tensor([tokenizer.pad_token_id]))
        if baseline == "zero":
            blank[inner] = 0.0
        if method == "gradient_x_input":
            scores = gradient_times_input(f, x)
        else:
            fitting = max(LEAST_STEPS, min(MOST_STEPS, BATCH_TOKENS // len(x)))
            scores = integrated_gradients(f, x, blank, fitting if steps is None else steps)
        at_text = float(_log_odds(logits[None], label)[0])
        at_blank = float(f(blank[None])[0])
    spans = word_spans(text, offsets)
    words = _score_words(text, spans, offsets, scores[inner].tolist())
    total = sum(word.score for word in words)
    return Explanation(
        text=text, words=words, label=label, probabilities=tuple(logits.softmax(0).tolist()),
        log_odds=at_text, baseline_log_odds=at_blank,
        unexplained=at_text - at_blank - total, method=method, tokens=len(offsets),
        unknown=sum(token == tokenizer.unk_token_id for token in ids[inner]),
    )  # fmt: skip


# --- the two methods ----------------------------------------------------------------------------


def gradient_times_input(f: Function, x: Embeddings) -> Float[Tensor, " tokens"]:
    """How much f would fall, by its slope at x, if a token's embedding went to zero.

        score_t = Σ_d x_td · ∂f(x)/∂x_td

    Args:
        f: maps (B, T, H) to (B,), each row on its own.
        x: (T, H).

    Source: Shrikumar et al. 2016 (arXiv:1605.01713).
    """
    return (x * _gradients(f, x[None])[0]).sum(dim=1)


def integrated_gradients_naive(
    f: Function, x: Embeddings, baseline: Embeddings, steps: int
) -> Float[Tensor, " tokens"]:
    """Integrated gradients as the paper computes them: the sum of its equation 3, term by term.

        score_t = Σ_d (x_td - x'_td) · 1/m Σ_{k=1}^m ∂f(x' + k/m (x - x')) / ∂x_td

    Its error falls with 1/m.

    Args:
        f: maps (B, T, H) to (B,), each row on its own.
        x: (T, H).
        baseline: x', (T, H).
        steps: m.

    Source: Sundararajan et al. 2017 (arXiv:1703.01365), eq. 3.
    """
    total = torch.zeros_like(x)
    for k in range(1, steps + 1):
        total += _gradients(f, (baseline + k / steps * (x - baseline))[None])[0]
    return ((x - baseline) * total / steps).sum(dim=1)


def integrated_gradients(
    f: Function, x: Embeddings, baseline: Embeddings, steps: int
) -> Float[Tensor, " tokens"]:
    """The change of f on the straight way from the baseline to x, shared out among the tokens.

        score_t = Σ_d (x_td - x'_td) · ∫_0^1 ∂f(x' + α (x - x')) / ∂x_td dα

    Completeness: the scores sum to f(x) - f(x'). The integral is taken by Gauss-Legendre
    quadrature, which is exact for polynomials in α up to degree 2m - 1, hence needs far fewer steps
    than the sum of `integrated_gradients_naive`.

    Args:
        f: maps (B, T, H) to (B,), each row on its own.
        x: (T, H).
        baseline: x', (T, H).
        steps: m, points on the way.

    Raises:
        ValueError: no steps.

    Source: Sundararajan et al. 2017 (arXiv:1703.01365), eq. 1; completeness is its proposition 1.
    """
    if steps < 1:
        raise ValueError(f"steps: expected a whole number from 1, found {steps!r}")
    points, weights = np.polynomial.legendre.leggauss(steps)  # on -1…1
    alphas = torch.tensor((points + 1) / 2, dtype=x.dtype, device=x.device)
    shares = torch.tensor(weights / 2, dtype=x.dtype, device=x.device)
    total = torch.zeros_like(x)
    size = max(1, BATCH_TOKENS // len(x))
    for at, share in zip(alphas.split(size), shares.split(size), strict=True):
        path = baseline + at[:, None, None] * (x - baseline)  # (B, T, H)
        total += (share[:, None, None] * _gradients(f, path)).sum(dim=0)
    return ((x - baseline) * total).sum(dim=1)


def _gradients(f: Function, path: Path) -> Path:
    path = path.detach().requires_grad_(True)
    with torch.enable_grad():
        # Of the inputs only: no gradient of a weight is computed or kept.
        return torch.autograd.grad(f(path).sum(), path)[0]


# --- the check ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeletionCheck:
    """What deleting the k words with the highest scores does, beside deleting any k words."""

    k: int
    deleted: tuple[str, ...]  # the k words
    drop: float  # f(x) - f(x without them), in log-odds
    probability_drop: float  # the same of p_c: "comprehensiveness"
    random_drops: tuple[float, ...]  # log-odds, one for each random choice of k words
    random_probability_drops: tuple[float, ...]

    @property
    def random_drop(self) -> float:
        """The mean drop of the random choices."""
        return float(np.mean(self.random_drops))

    @property
    def beaten(self) -> float:
        """The share of random choices whose drop is smaller (ties count half)."""
        drops = np.asarray(self.random_drops)
        return float(np.mean((drops < self.drop) + 0.5 * (drops == self.drop)))


def deletion_check(
    model: torch.nn.Module, tokenizer: Any, explanation: Explanation, k: int = 3,
    draws: int = 20, seed: int = 0, max_length: int = 128, truncation: str = "head+tail",
) -> DeletionCheck:
    """Does the model need the words that an explanation names?

    The words are taken out of the text, the model reads what is left, and the drop is compared
    with that of k words drawn at random:

        comprehensiveness = p_c(x) - p_c(x without the k words)

    Args:
        model: as for `explain`.
        tokenizer: its tokenizer.
        explanation: of a text, by the same model.
        k: words to delete; fewer than the model saw.
        draws: random choices to compare with.
        seed: of these choices.
        max_length: as for `explain`.
        truncation: as for `explain`. In a text that is cut, deleting words makes room for others.

    Raises:
        ValueError: k or draws below 1, or no word would be left.

    Source: DeYoung et al. 2020 (arXiv:1911.03429), section 4.2, eq. 1; random choices beside it as
    in its "random" rationale baseline.
    """
    seen = [word for word in explanation.words if word.seen]
    if not 1 <= k < len(seen) or draws < 1:
        raise ValueError(
            f"expected k in 1…{len(seen) - 1}, so that a word is left, and draws from 1; found "
            f"k={k}, draws={draws}"
        )
    top, rng = explanation.top(k), np.random.default_rng(seed)
    choices = [top]
    for _ in range(draws):
        choices.append([seen[i] for i in rng.choice(len(seen), size=k, replace=False)])
    texts = [explanation.text, *(without_words(explanation.text, words) for words in choices)]
    logits = predict_logits(model, tokenizer, texts, max_length, truncation)
    odds = _log_odds(logits, explanation.label)
    p = logits.softmax(dim=1)[:, explanation.label]
    drops, p_drops = (odds[0] - odds[1:]).tolist(), (p[0] - p[1:]).tolist()
    return DeletionCheck(
        k=k, deleted=tuple(word.text for word in top), drop=drops[0], probability_drop=p_drops[0],
        random_drops=tuple(drops[1:]), random_probability_drops=tuple(p_drops[1:]),
    )  # fmt: skip


def without_words(text: str, words: Sequence[WordScore]) -> str:
    """The text with some of its words cut out."""
    for word in sorted(words, key=lambda word: -word.start):
        text = text[: word.start] + text[word.end :]
    return re.sub(r"\s+", " ", text).strip()


def predict_logits(
    model: torch.nn.Module, tokenizer: Any, texts: Sequence[str], max_length: int = 128,
    truncation: str = "head+tail", batch_size: int = 32,
) -> Float[Tensor, "rows classes"]:
    """The model's logits for some texts, on the CPU.

    Raises:
        ValueError: no texts, or an empty one.
    """
    check_max_length(model, max_length)
    rows = SentimentDataset(texts, [0] * len(texts), tokenizer, max_length, truncation)
    device, found = next(model.parameters()).device, []
    with eval_mode(model), torch.no_grad():
        for start in range(0, len(rows), batch_size):
            batch = rows.batch(range(start, min(start + batch_size, len(rows))))
            mask = batch["attention_mask"].to(device)
            found.append(_logits(model, batch["input_ids"].to(device), mask).cpu())
    return torch.cat(found)


# --- words and tokens ---------------------------------------------------------------------------


def word_spans(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Start and end of each word of a text; words that share a token are one.

    A word is a run of letters and digits (with ' / or - inside), a run of punctuation, or one
    character of a script written without spaces.

    Args:
        text: the text.
        offsets: start and end of each token in it.
    """
    spans = [match.span() for match in WORD.finditer(text)]
    starts, ends = [s for s, _ in spans], [e for _, e in spans]
    joined = [False] * len(spans)  # with the word before
    for start, end in offsets:
        first, last = bisect_right(ends, start), bisect_left(starts, end) - 1
        for i in range(first + 1, last + 1):
            joined[i] = True
    words: list[tuple[int, int]] = []
    for span, with_last in zip(spans, joined, strict=True):
        if with_last:
            words[-1] = (words[-1][0], span[1])
        else:
            words.append(span)
    return words


def _score_words(
    text: str, spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]],
    scores: Sequence[float],
) -> tuple[WordScore, ...]:
    ends = [end for _, end in spans]
    totals, seen = [0.0] * len(spans), [False] * len(spans)
    for (start, _end), score in zip(offsets, scores, strict=True):
        # A token of white space alone goes to the word that follows, or else to the last.
        i = min(bisect_right(ends, start), len(spans) - 1)
        totals[i], seen[i] = totals[i] + score, True
    return tuple(
        WordScore(text[a:b], a, b, total, was_seen)
        for (a, b), total, was_seen in zip(spans, totals, seen, strict=True)
    )


def _encode(
    tokenizer: Any, text: str, max_length: int, truncation: str
) -> tuple[list[int], list[tuple[int, int]], int]:
    """Ids with special tokens, the offsets of those of the text, and how many stand before."""
    before, after = special_frame(tokenizer)
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    kept = truncate(list(range(len(coded["input_ids"]))), max_length - len(before) - len(after),
                    truncation)  # fmt: skip
    if not kept or not WORD.search(text):
        raise NoWords(f"text: expected at least one word, found {text[:40]!r}: nothing to score")
    ids = before + [coded["input_ids"][i] for i in kept] + after
    return ids, [tuple(coded["offset_mapping"][i]) for i in kept], len(before)


# --- the model ----------------------------------------------------------------------------------


def log_odds_of_embeddings(model: torch.nn.Module, ids: Ids, label: int) -> Function:
    """f as a function of the input embeddings of a text: (B, T, H) to (B,).

    The ids still go through the model, whose embedding layer answers with what f is given: so a
    decoder finds its last token, and any head of ours works, which takes ids only.
    """

    def f(path: Path) -> Float[Tensor, " batch"]:
        thread = threading.get_ident()

        def answer(_module: Any, _inputs: Any, _output: Any) -> Tensor | None:
            # A widget's callback may run beside a cell that uses the same model.
            return path if threading.get_ident() == thread else None

        hook = model.get_input_embeddings().register_forward_hook(answer)
        try:
            return _log_odds(_logits(model, ids.expand(len(path), -1)), label)
        finally:
            hook.remove()

    return f


def _log_odds(logits: Float[Tensor, "batch classes"], label: int) -> Float[Tensor, " batch"]:
    others = torch.cat([logits[:, :label], logits[:, label + 1 :]], dim=1)
    return logits[:, label] - others.logsumexp(dim=1)


def _logits(
    model: torch.nn.Module, ids: Int[Tensor, "batch tokens"],
    mask: Int[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch classes"]:
    mask = torch.ones_like(ids) if mask is None else mask
    logits = model(ids, attention_mask=mask).logits
    return logits if logits.dtype == torch.float64 else logits.float()


def _embeddings(model: torch.nn.Module, ids: Ids) -> Embeddings:
    return model.get_input_embeddings()(ids).detach().clone()
