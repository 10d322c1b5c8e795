import pytest
import torch
import torch.nn.functional as F

from tutorkit import fast_bert
from tutorkit.dropout import QuickDropout
from tutorkit.fast_bert import FastBert, faster
from tutorkit.models import load_model

LENGTHS = (12, 1, 7, 12, 3)  # real tokens of each text; 12 fills the batch


@pytest.fixture
def model():
    return load_model("tiny").model


def some_batch(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), max(LENGTHS))
    input_ids = torch.randint(5, model.config.vocab_size, shape, generator=generator)
    attention_mask = (torch.arange(shape[1])[None] < torch.tensor(LENGTHS)[:, None]).long()
    return input_ids, attention_mask


def gradients(forward, model, batch):
    model.zero_grad()
    logits = forward(batch[0], attention_mask=batch[1]).logits
    F.cross_entropy(logits, torch.tensor([0, 1, 1, 0, 1])).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_logits_are_those_of_transformers(model):
    batch = some_batch(model)
    with torch.no_grad():
        expected = model(batch[0], attention_mask=batch[1]).logits
        found = FastBert(model).eval()(*batch).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("at_once", [1, 2 * 12 * 12 * 2, 2 * 12 * 12 * 3, 10**9])
def test_how_many_texts_at_a_time_does_not_matter(model, at_once, monkeypatch):
    """One, two (the last alone), three (the last two) or all; the other way round for the head."""
    monkeypatch.setattr(fast_bert, "AT_ONCE", at_once)
    batch = some_batch(model)
    torch.testing.assert_close(gradients(FastBert(model).eval(), model, batch),
                               gradients(model, model, batch), atol=1e-6, rtol=1e-4)  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 2 * 12, 3 * 12, 2**12])
def test_a_batch_read_in_parts_gives_the_same_logits(model, tokens, monkeypatch):
    """Parts of one text, two, three (the last two) and all; with gradients there are none."""
    monkeypatch.setattr(fast_bert, "TOKENS_AT_ONCE", tokens)
    batch, read = some_batch(model), []
    model.bert.embeddings.register_forward_hook(lambda _m, _i, out: read.append(len(out)))
    fast = FastBert(model).eval()
    with torch.no_grad():
        torch.testing.assert_close(fast(*batch).logits, model(*batch).logits, atol=1e-6, rtol=1e-5)
    few = max(1, tokens // 12)
    assert read == [len(part) for part in batch[0].split(few)] + [5]
    fast(*batch)
    assert read[-1] == 5


def test_a_batch_without_padding(model):
    input_ids, mask = some_batch(model)
    with torch.no_grad():
        expected = model(input_ids, attention_mask=torch.ones_like(mask)).logits
        found = FastBert(model).eval()(input_ids, torch.ones_like(mask)).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_logits_are_those_of_minilm():
    model = load_model("minilm").model
    batch = some_batch(model)
    with torch.no_grad():
        expected = model(batch[0], attention_mask=batch[1]).logits
        found = FastBert(model).eval()(*batch).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_gradients_are_those_of_transformers(model):
    """Of every weight, those included which only the last layer's keys and values reach."""
    batch = some_batch(model)
    expected = gradients(model, model, batch)
    found = gradients(FastBert(model).eval(), model, batch)
    assert expected.keys() == found.keys() and len(found) > 30
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_what_stands_in_the_padding_does_not_matter(model):
    input_ids, attention_mask = some_batch(model)
    other = torch.where(attention_mask.bool(), input_ids, 9)
    forward = FastBert(model).eval()
    with torch.no_grad():
        assert torch.equal(forward(input_ids, attention_mask).logits,
                           forward(other, attention_mask).logits)


def test_a_text_does_not_read_its_neighbours(model):
    input_ids, attention_mask = some_batch(model)
    forward = FastBert(model).eval()
    with torch.no_grad():
        together = forward(input_ids, attention_mask).logits
        alone = [forward(input_ids[i : i + 1, :n], attention_mask[i : i + 1, :n]).logits
                 for i, n in enumerate(LENGTHS)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-5)


def test_bf16_stays_near_fp32(model):
    batch = some_batch(model)
    forward = FastBert(model).eval()
    with torch.no_grad():
        exact = forward(*batch).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = forward(*batch).logits
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.02, rtol=0.05)


def test_last_layer_feeds_forward_one_token_a_text(model):
    batch = some_batch(model)
    rows = []
    for layer in model.bert.encoder.layer:
        layer.intermediate.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape))
    FastBert(model).eval()(*batch)
    width = model.config.hidden_size
    assert rows == [(*batch[0].shape, width), (len(LENGTHS), 1, width)]


def test_fast_shares_weights_and_trains_them(model):
    forward = faster(model)
    assert isinstance(forward, FastBert) and forward.model is model
    assert {id(p) for p in forward.parameters()} == {id(p) for p in model.parameters()}
    assert faster(forward) is forward


def test_left_as_they_are(model):
    decoder = load_model("tiny-decoder").model
    assert faster(decoder) is decoder
    linear = torch.nn.Linear(2, 2)
    assert faster(linear) is linear
    model.config.is_decoder = True
    assert faster(model) is model


@pytest.mark.parametrize("place", ["bert.encoder.layer.1", "bert.encoder.layer.0.attention.self"])
def test_a_model_with_hooks_keeps_its_own_forward(model, place):
    handle = model.get_submodule(place).register_forward_hook(lambda *_: None)
    assert faster(model) is model
    handle.remove()
    assert isinstance(faster(model), FastBert)


def test_hooks_on_parts_that_are_called_still_fire(model):
    seen = []
    model.bert.encoder.layer[0].output.register_forward_hook(lambda *_: seen.append(1))
    batch = some_batch(model)
    faster(model)(*batch)
    assert seen == [1]


def test_dropout_is_the_models_own(model):
    """Same kind and place: with p = 1 in front of the classifier only its bias is left."""
    forward = FastBert(model).train()
    model.dropout.p = 1.0
    logits = forward(*some_batch(model)).logits
    torch.testing.assert_close(logits, model.classifier.bias.expand_as(logits))
    dropped = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropped and all(isinstance(m, QuickDropout) for m in dropped)
