"""Lesson 03: its exercises are solved, its words hold, and its published table is as it says.

tests/test_checks.py holds every exercise's solution and listed mistakes; here are answers that are
listed nowhere: right ones in other styles pass, wrong ones that look right fail.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import jupytext
import pytest
import torch
from lesson_scripts import blocks, cases, solved

from tutorkit import heads
from tutorkit.checks import CheckFailed, lesson_03
from tutorkit.models import load_model
from tutorkit.notebooks import NOTEBOOKS

SCRIPT = NOTEBOOKS / "03_heads.py"


@pytest.fixture(scope="module")
def cells():
    return jupytext.read(SCRIPT).cells


@pytest.fixture(scope="module")
def names(cells):
    """What the setup and the solutions of the exercises define."""
    return solved(cells)


def batch(padding=2):
    hidden = torch.randn(3, 6 + padding, 4)
    mask = (torch.arange(6 + padding) < torch.tensor([[6], [2], [5]])).long()
    return hidden, mask


def test_there_are_exercises_and_labs(cells):
    found = blocks(cells, SCRIPT.stem)
    assert len(found) == 8
    assert sum("spot the flaw" in block.text for block in found) == 3


def test_the_solutions_pass_their_checks(cells, names, capsys):
    for block in blocks(cells, SCRIPT.stem):
        exec(block.check, names)
    assert capsys.readouterr().out.count("✓") == 8


def test_the_solutions_are_the_package_s_functions(names):
    hidden, mask = batch()
    torch.testing.assert_close(names["masked_mean"](hidden, mask), heads.pool(hidden, mask, "mean"))
    for kept in (mask, mask.flip(1)):
        expected = heads.pool(hidden, kept, "last")
        assert torch.equal(names["last_real_token"](hidden, kept), expected)
    word_ids, tags = [None, 0, 1, 1, 2, None], [2, 0, 1]
    expected = heads.first_piece_labels(word_ids, tags)
    assert names["labels_of_pieces"](word_ids, tags) == expected == [-100, 2, 0, -100, 1, -100]
    ids = torch.randint(0, 9, mask.shape)
    expected = heads.next_token_labels(ids, mask)
    assert torch.equal(names["labels_for_generation"](ids, mask), expected)
    start, end = torch.randn(2, *mask.shape)
    found = names["find_span"](start, end, mask)
    assert all(map(torch.equal, found, heads.best_span(start, end, mask)))


def test_the_published_forms_are_refused_by_name():
    with pytest.raises(CheckFailed, match="the listing's logits"):
        lesson_03.position_lab.check(
            lambda hidden, attention_mask, weight: (4, hidden[:, -1] @ weight.T)
        )
    with pytest.raises(CheckFailed, match="takes the mean over all positions"):
        lesson_03.position_lab.check(
            lambda hidden, attention_mask, weight: (4, hidden.mean(dim=1) @ weight.T)
        )
    with pytest.raises(CheckFailed, match="padding counts as if it were text"):
        lesson_03.masked_mean.check(lambda hidden, attention_mask: hidden.mean(dim=1))


def test_four_of_the_published_poolings_depend_on_padding(names):
    hidden, mask = batch()
    poolings = {each.name: each for each in lesson_03.POOLINGS}
    found = names["flawed_poolings"](poolings, hidden - 4, mask)
    assert list(found.values()) == [False] * 3 + [True] * 4
    assert list(found) == [each.name for each in lesson_03.POOLINGS]
    assert repr(lesson_03.POOLINGS[0]) == "<mean over real tokens>"


def test_one_row_of_the_published_table_is_wrong(names):
    wrong = names["wrong_sizes"](names["published"], names["architectures"])
    assert wrong == {"BERT": 109_483_778}  # 109,482,240 of bert-base-uncased and 2 x 768 + 2
    assert all(p.device.type == "meta" for p in names["architectures"]["BERT"].parameters())


def test_the_order_of_the_lesson(cells):
    titles = [re.match(r"## (\d+)\. ", cell.source) for cell in cells]
    assert [int(title[1]) for title in titles if title] == list(range(1, 11))
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert [t for t in ("Summary", "Exercises", "Further reading") if f"## {t}" not in text] == []


def test_code_cells_are_short(cells):
    for cell in cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "code" and not tags & {"colab", "solution", "exercise-setup"}:
            lines = [line for line in cell.source.split("\n") if line.strip()]
            assert len(lines) <= 20, cell.source


def test_the_listing_of_the_lab_is_flawed_in_line_4_only():
    """Line 3 leaves the mask out, and with padding on the right no real state changes."""
    writer = load_model("tiny-decoder")
    texts = ["Good.", "A slow start, but what an ending!"]
    inputs = writer.tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        without = writer.model.base_model(ids).last_hidden_state
        with_mask = writer.model.base_model(ids, attention_mask=mask).last_hidden_state
    real = mask == 1
    torch.testing.assert_close(without[real], with_mask[real], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(without[:, -1], heads.pool(without, mask, "last"), atol=1e-3)


def test_the_library_s_classifier_reads_the_token_before_an_end_token_that_pads():
    writer = load_model("tiny-decoder")
    texts = [text + writer.tokenizer.eos_token for text in ("Good.", "A slow start, but good!")]
    inputs = writer.tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert writer.tokenizer.pad_token_id == writer.tokenizer.eos_token_id
    with torch.no_grad():
        states = writer.model.base_model(ids, attention_mask=mask).last_hidden_state
        theirs = writer.model(input_ids=ids, attention_mask=mask).logits
        before = writer.model.score(states[torch.arange(2), mask.sum(dim=1) - 2])
    torch.testing.assert_close(before, theirs, atol=1e-5, rtol=1e-4)


# Right answers in other styles.


def mean_by_loop(hidden, attention_mask):
    rows = zip(hidden, attention_mask, strict=True)
    return torch.stack([h[m.bool()].mean(0) for h, m in rows])


def mean_by_weights(hidden, attention_mask):
    weights = attention_mask / attention_mask.sum(1, keepdim=True)
    return torch.einsum("bth,bt->bh", hidden, weights.to(hidden.dtype))


def mean_as_published(hidden, attention_mask):
    m = attention_mask.unsqueeze(-1).expand(hidden.size()).float()
    return torch.sum(hidden * m, 1) / torch.clamp(m.sum(1), min=1e-9)


def mean_by_nan(hidden, attention_mask):
    return hidden.masked_fill(attention_mask[..., None] == 0, float("nan")).nanmean(1)


def last_by_loop(hidden, attention_mask):
    return torch.stack([h[m == 1][-1] for h, m in zip(hidden, attention_mask, strict=True)])


def last_by_flip(hidden, attention_mask):
    last = hidden.shape[1] - 1 - attention_mask.flip(1).argmax(1)
    return hidden[range(len(hidden)), last]


def last_by_cumsum(hidden, attention_mask):
    last = attention_mask.cumsum(1).argmax(1)
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)


def last_by_side(hidden, attention_mask):
    if (attention_mask[:, -1] == 1).all():
        return hidden[:, -1]
    return hidden[torch.arange(len(hidden)), attention_mask.sum(1) - 1]


def labels_by_set(word_ids, word_tags):
    seen, labels = {None}, []
    for word in word_ids:
        labels.append(-100 if word in seen else word_tags[word])
        seen.add(word)
    return labels


def labels_filled_in(word_ids, word_tags):
    labels = [-100] * len(word_ids)
    for word, its_tag in enumerate(word_tags):
        labels[word_ids.index(word)] = its_tag
    return labels


def next_by_clone(input_ids, attention_mask):
    labels = input_ids.clone()
    labels[~attention_mask.bool()] = -100
    return labels


def next_by_arithmetic(input_ids, attention_mask):
    return input_ids * attention_mask - 100 * (1 - attention_mask)


def span_by_loops(start_scores, end_scores, attention_mask):
    found = []
    for s, e, m in zip(start_scores, end_scores, attention_mask, strict=True):
        real = m.nonzero()[:, 0].tolist()
        pairs = [(i, j) for i in real for j in real if i <= j]
        found.append(max(pairs, key=lambda pair: float(s[pair[0]] + e[pair[1]])))
    starts, ends = zip(*found, strict=True)
    return torch.tensor(starts), torch.tensor(ends)


def span_by_cummax(start_scores, end_scores, attention_mask):
    s, e = (x.masked_fill(attention_mask == 0, -1e9) for x in (start_scores, end_scores))
    best, at = s.cummax(1)
    end = (best + e).argmax(1)
    return at.gather(1, end[:, None])[:, 0], end


def span_by_probabilities(start_scores, end_scores, attention_mask):
    s, e = (x.masked_fill(attention_mask == 0, -1e9).softmax(1) for x in (start_scores, end_scores))
    best = (s[:, :, None] * e[:, None, :]).triu().flatten(1).argmax(1)
    return torch.unravel_index(best, (s.shape[1], s.shape[1]))


def scores_first(hidden, attention_mask, weight):
    logits = hidden @ weight.T
    return 4, logits[torch.arange(len(logits)), attention_mask.sum(1) - 1]


def rows_uncut_and_cut(poolings, hidden, attention_mask):
    def moves(f):
        rows = zip(hidden, attention_mask, strict=True)
        return any((f(h[m == 1][None], m[m == 1][None]) - f(h[None], m[None])).abs().max() > 1e-9
                   for h, m in rows)  # fmt: skip

    return {name: bool(moves(f)) for name, f in sorted(poolings.items())}


def sizes_by_ratio(typed, models):
    counts = {n: sum(math.prod(p.shape) for p in m.parameters()) for n, m in models.items()}
    return {n: c for n, c in counts.items() if not 0.95 <= typed[n] / c <= 1.05}


def sizes_in_another_order(typed, models):
    counts = {n: sum(p.nelement() for _, p in m.named_parameters())
              for n, m in sorted(models.items())}  # fmt: skip
    return {n: c for n, c in counts.items() if abs(c - typed[n]) / c > 0.05}


@pytest.mark.parametrize(("name", "answer"), [
    ("masked_mean", mean_by_loop),
    ("masked_mean", mean_by_weights),
    ("masked_mean", mean_as_published),
    ("masked_mean", mean_by_nan),
    ("last_real_token", last_by_loop),
    ("last_real_token", last_by_flip),
    ("last_real_token", last_by_cumsum),
    ("last_real_token", last_by_side),
    ("labels_of_pieces", labels_by_set),
    ("labels_of_pieces", labels_filled_in),
    ("labels_for_generation", next_by_clone),
    ("labels_for_generation", next_by_arithmetic),
    ("find_span", span_by_loops),
    ("find_span", span_by_cummax),
    ("find_span", span_by_probabilities),
    ("position_lab", scores_first),
    ("flawed_poolings", rows_uncut_and_cut),
    ("wrong_sizes", sizes_by_ratio),
    ("wrong_sizes", sizes_in_another_order),
])  # fmt: skip
def test_a_right_answer_in_another_style_passes(name: str, answer: Callable, capsys):
    getattr(lesson_03, name).check(answer)
    assert capsys.readouterr().out == f"✓ {name}: right on 6 fresh inputs\n"


# Wrong answers that look right.


def mean_with_a_large_epsilon(hidden, attention_mask):
    m = attention_mask[:, :, None]
    return (hidden * m).sum(1) / (m.sum(1) + 1e-3)


def last_where_the_state_is_not_zero(hidden, attention_mask):
    last = (hidden.abs().sum(2) > 0).long().cumsum(1).argmax(1)
    return hidden[torch.arange(len(hidden)), last]


def labels_without_word_0(word_ids, word_tags):
    before = [None, *word_ids]
    return [word_tags[w] if w and w != b else -100
            for w, b in zip(word_ids, before, strict=False)]  # fmt: skip


def next_with_one_pad(input_ids, attention_mask):
    kept = torch.cat([attention_mask[:, :1], attention_mask[:, :-1]], 1)
    return input_ids.masked_fill(kept == 0, -100)


def next_without_the_last_column(input_ids, attention_mask):
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    labels[:, -1] = -100
    return labels


def span(start_scores, end_scores, allowed):
    pairs = start_scores[:, :, None] + end_scores[:, None, :]
    best = pairs.masked_fill(~allowed, -1e9).flatten(1).argmax(1)
    return best // len(allowed[0]), best % len(allowed[0])


def real_pairs(mask):
    return (mask[:, :, None] == 1) & (mask[:, None, :] == 1)


def span_of_three(start_scores, end_scores, attention_mask):
    return span(start_scores, end_scores, real_pairs(attention_mask).triu().tril(2))


def span_of_two_or_more(start_scores, end_scores, attention_mask):
    return span(start_scores, end_scores, real_pairs(attention_mask).triu(1))


def span_from_the_end(start_scores, end_scores, attention_mask):
    end = end_scores.masked_fill(attention_mask == 0, -1e9).argmax(1)
    late = torch.arange(end_scores.shape[1]) > end[:, None]
    return start_scores.masked_fill((attention_mask == 0) | late, -1e9).argmax(1), end


def span_until_the_mask_ends(start_scores, end_scores, attention_mask):
    first = torch.ones_like(attention_mask)  # a length is read off the mask, not its front
    first = first * (torch.arange(first.shape[1]) <= heads.last_positions(attention_mask)[:, None])
    return span(start_scores, end_scores, real_pairs(first).triu())


def lab_of_the_first_token(hidden, attention_mask, weight):
    return 4, hidden[:, 0] @ weight.T


def poolings_by_the_last_row(poolings, hidden, attention_mask):
    n = int(attention_mask[-1].sum())
    alone = hidden[-1:, :n], attention_mask[-1:, :n]
    return {name: not torch.allclose(f(*alone)[0], f(hidden, attention_mask)[-1])
            for name, f in poolings.items()}  # fmt: skip


def poolings_by_a_row_of_its_own(poolings, hidden, attention_mask):
    h, m = torch.ones_like(hidden[:1, :4]), attention_mask.new_tensor([[1, 1, 0, 0]])
    return {name: not torch.allclose(f(h[:, :2], m[:, :2]), f(h, m))
            for name, f in poolings.items()}  # fmt: skip


def sizes_within(share):
    def sizes(typed, models):
        counts = {n: sum(p.numel() for p in m.parameters()) for n, m in models.items()}
        return {n: c for n, c in counts.items() if abs(c - typed[n]) > share * c}

    return sizes


def sizes_by_layer(typed, models):
    counts = {n: sum(p.numel() for layer in m.children() for p in layer.parameters())
              for n, m in models.items()}  # fmt: skip
    return {n: c for n, c in counts.items() if abs(c - typed[n]) > 0.05 * c}


@pytest.mark.parametrize(("name", "answer", "message"), [
    ("masked_mean", mean_with_a_large_epsilon, "The largest difference is"),
    ("last_real_token", last_where_the_state_is_not_zero, "this takes position -1"),
    ("labels_of_pieces", labels_without_word_0, "The largest difference is"),
    ("labels_for_generation", next_with_one_pad, "The largest difference is"),
    ("labels_for_generation", next_without_the_last_column, "The largest difference is"),
    ("find_span", span_of_three, "The largest difference is"),
    ("find_span", span_of_two_or_more, "The largest difference is"),
    ("find_span", span_from_the_end, "The largest difference is"),
    ("find_span", span_until_the_mask_ends, "The largest difference is"),
    ("position_lab", lab_of_the_first_token, "The largest difference is"),
    ("flawed_poolings", poolings_by_the_last_row, "answer\\['"),
    ("flawed_poolings", poolings_by_a_row_of_its_own, "answer\\['"),
    ("wrong_sizes", sizes_within(0.0), "printed sizes are rounded"),
    ("wrong_sizes", sizes_within(0.15), "expected a dict of 2"),
    ("wrong_sizes", sizes_by_layer, "The largest difference is|expected a dict of 2"),
])  # fmt: skip
def test_a_wrong_answer_that_looks_right_is_refused(name: str, answer: Callable, message: str):
    with pytest.raises(CheckFailed, match=message):
        getattr(lesson_03, name).check(answer)


@pytest.mark.parametrize("line", [1, 2, 3, 5])
@pytest.mark.parametrize("mended", [True, False])
def test_a_wrong_line_does_not_give_the_lab_away(line, mended):
    def answer(hidden, attention_mask, weight):
        return line, (last_by_side(hidden, attention_mask) if mended else hidden[:, -1]) @ weight.T

    with pytest.raises(CheckFailed) as refusal:
        lesson_03.position_lab.check(answer)
    assert "4" not in str(refusal.value)
    assert ("the logits are right" if mended else "still the listing's") in str(refusal.value)


def test_a_wrong_test_of_poolings_does_not_print_the_answer():
    def by_content(poolings, hidden, attention_mask):
        other = hidden.masked_fill(attention_mask[..., None] == 0, 99.0)
        return {n: not torch.allclose(f(other, attention_mask), f(hidden, attention_mask))
                for n, f in poolings.items()}  # fmt: skip

    with pytest.raises(CheckFailed) as refusal:
        lesson_03.flawed_poolings.check(by_content)
    assert "two more depend on how much padding" in str(refusal.value)
    assert not [each.name for each in lesson_03.POOLINGS if each.name in str(refusal.value)]


def test_the_inputs_hold_what_answers_trip_over():
    masks = [mask for _, mask in cases(lesson_03.last_real_token)]
    assert {bool((mask[:, 0] == 0).any()) for mask in masks} == {True, False}  # both sides
    for start, end, mask in cases(lesson_03.find_span):
        first, last = heads.best_span(start, end, mask)
        assert last[-1] - first[-1] > 2 and mask[-1, 0] == 0
    rows = [mask.all(dim=1).tolist() for _, _, mask in cases(lesson_03.flawed_poolings)]
    assert any(row[0] for row in rows) and any(row[-1] for row in rows)
    for typed, models in cases(lesson_03.wrong_sizes):
        off = [typed[n] / sum(p.numel() for p in m.parameters()) - 1 for n, m in models.items()]
        assert off == pytest.approx([2.1, -0.06, -0.0487, 0.04], abs=0.0012)
        assert repr(list(models.values())[0]).strip("<>") in models  # not all its layers
