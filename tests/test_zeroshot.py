"""Zero-shot answers, held against the plain way: score one prompt at a time."""

import numpy as np
import pytest
import torch

from tutorkit import tiny, zeroshot
from tutorkit.zeroshot import zero_shot_probabilities

TEXTS = ["good", "a long and winding text about a film that was bad", "so so", "fine"]


@pytest.fixture
def decoder():
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny.build_tokenizer(decoder=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), tokenizer


def one_at_a_time(model, tokenizer, text, max_length=64):
    ids = zeroshot._prompt_ids(tokenizer, text, max_length, "head+tail")
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0, -1]
    words = [tokenizer(f" {w.lower()}")["input_ids"][0] for w in zeroshot.ANSWERS]
    return scores[words].double().softmax(dim=0).numpy()


def test_a_padded_batch_answers_as_single_prompts_do(decoder, monkeypatch):
    # The small tokenizer spells both answers from the letter on: take words that it tells apart.
    monkeypatch.setattr(zeroshot, "ANSWERS", ("Bad", "Good"))
    model, tokenizer = decoder
    found = zero_shot_probabilities(
        model, tokenizer, TEXTS, 64, batch_size=3, precision="fp32", device="cpu"
    )
    expected = np.array([one_at_a_time(model, tokenizer, text) for text in TEXTS])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_a_long_review_is_cut_but_the_question_is_not(decoder):
    _, tokenizer = decoder
    ids = zeroshot._prompt_ids(tokenizer, "word " * 500, 20, "head+tail")
    question = tokenizer(zeroshot.PLAIN.format(review=""))["input_ids"]
    assert len(ids) <= len(question) + 20
    assert ids[-3:] == question[-3:]


def test_a_chat_template_is_used_where_there_is_one(decoder):
    _, tokenizer = decoder
    tokenizer.chat_template = (
        "{% for m in messages %}user {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}answer{% endif %}"
    )
    ids = zeroshot._prompt_ids(tokenizer, "fine", 20, "head")
    text = "user " + zeroshot.QUESTION.format(review="fine") + " answer"
    assert ids == tokenizer(text)["input_ids"]


def test_answers_that_begin_alike_are_refused(decoder, monkeypatch):
    monkeypatch.setattr(zeroshot, "ANSWERS", ("Good", "Good"))
    with pytest.raises(ValueError, match="answers that differ in their first token"):
        zero_shot_probabilities(*decoder, TEXTS)
