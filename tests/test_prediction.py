"""The engines say what the model says, within what their number formats allow."""

from __future__ import annotations

import builtins
import gc
import tempfile
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tutorkit import engines
from tutorkit.data import SentimentDataset
from tutorkit.engines import ENGINES, OnnxModel, make_engine
from tutorkit.models import LoadedModel, load_model
from tutorkit.prediction import predict, predict_texts
from tutorkit.training import TrainConfig, evaluate, fit

OTHERS = [engine for engine in ENGINES if engine != "torch"]
REAL = pytest.mark.pypi
MODELS = ["tiny", "tiny-decoder", pytest.param("minilm", marks=REAL)]
TEXTS = ["Good.", "A slow start, but what an ending! " * 5, "no no no " * 12, "dull", "so so"]
# How far a probability may lie from torch's in fp32. Rounding to whole numbers moves a logit by
# about 0.01 here; an export moves it by what another order of sums does.
TOLERANCE = {"int8": 0.03, "onnx": 1e-5, "onnx-int8": 0.03}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _packages(request):
    """Skips the ONNX engines where the optional packages are not installed."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if parameters.get("engine", "").startswith("onnx"):
        for name in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(name)


@cache
def get(name: str) -> LoadedModel:
    return load_model(name)


def rows(name: str, texts: list[str] = TEXTS) -> SentimentDataset:
    return SentimentDataset(texts, [i % 2 for i in range(len(texts))], get(name).tokenizer, 64)


def fp32(model: torch.nn.Module, dataset: SentimentDataset) -> np.ndarray:
    return evaluate(model, dataset, precision="fp32", device="cpu").probabilities


@cache
def trained() -> LoadedModel:
    """A tiny model that has learned to tell two words apart."""
    loaded = load_model("tiny")
    texts, labels = clear_cases(64)
    train = SentimentDataset(texts, labels, loaded.tokenizer, 32)
    config = TrainConfig(epochs=12, batch_size=8, learning_rate=3e-3, precision="fp32",
                         device="cpu")
    fit(loaded.model, train, None, config)
    return loaded


def clear_cases(count: int) -> tuple[list[str], list[int]]:
    words = ("bad", "good")
    fillers = ("film", "story", "cast", "scene", "music")
    texts = [f"a {words[i % 2]} {fillers[i % 5]}, {words[i % 2]} all the way" for i in range(count)]
    return texts, [i % 2 for i in range(count)]


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("name", MODELS)
def test_probabilities_are_those_of_torch_in_fp32(name: str, engine: str) -> None:
    model, dataset = get(name).model, rows(name)
    found = predict(model, dataset, engine, batch_size=2)
    np.testing.assert_allclose(
        found.probabilities, fp32(model, dataset), rtol=0, atol=TOLERANCE[engine]
    )
    assert found.tokens == dataset.lengths.sum()


@pytest.mark.parametrize("engine", OTHERS)
def test_engines_do_compute_with_another_number_format(engine: str) -> None:
    """An engine that quietly fell back to torch would pass every comparison above."""
    prepared = make_engine(get("tiny").model, engine)
    if engine == "int8":
        kinds = [type(module).__module__ for module in prepared.modules()]
        assert kinds.count("torch.ao.nn.quantized.dynamic.modules.linear") == 2 * 6 + 1
        assert type(prepared.classifier) is torch.nn.Linear  # the head stays in fp32
    else:
        assert isinstance(prepared, OnnxModel)
        sizes = {e: make_engine(get("tiny").model, e).file_bytes for e in ("onnx", "onnx-int8")}
        assert sizes["onnx-int8"] < sizes["onnx"]


@pytest.mark.parametrize("engine", ENGINES)
def test_clear_cases_keep_their_labels(engine: str) -> None:
    texts, labels = clear_cases(10)
    dataset = SentimentDataset(texts, labels, trained().tokenizer, 32)
    result = predict(trained().model, dataset, engine)
    assert result.accuracy == 1.0
    assert result.probabilities.max(axis=1).min() > 0.9


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("name", MODELS)
def test_what_shares_a_batch_does_not_matter(name: str, engine: str) -> None:
    model, dataset = get(name).model, rows(name)
    together = predict(model, dataset, engine, batch_size=5).probabilities
    alone = predict(model, dataset, engine, batch_size=1).probabilities
    np.testing.assert_allclose(together, alone, rtol=0, atol=TOLERANCE[engine])


@pytest.mark.parametrize("engine", ENGINES)
def test_one_row(engine: str) -> None:
    model, dataset = get("tiny").model, rows("tiny", ["a fine film"])
    found = predict(model, dataset, engine, precision="auto").probabilities
    assert found.shape == (1, 2)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, fp32(model, dataset), rtol=0, atol=0.03)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_model_is_left_as_it_was(engine: str) -> None:
    model = deepcopy(get("tiny").model).train()
    model.bert.pooler.eval()  # a model of two modes: each module keeps its own
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    modes = [module.training for module in model.modules()]
    predict(model, rows("tiny"), engine)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[n], t) and after[n].dtype == t.dtype for n, t in before.items())
    assert [type(module) for module in model.modules()] == kinds
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("engine", OTHERS)
def test_a_model_in_bf16_is_read_in_fp32(engine: str) -> None:
    model = deepcopy(get("tiny").model).to(torch.bfloat16)
    found = predict(model, rows("tiny"), engine).probabilities
    wanted = fp32(deepcopy(model).float(), rows("tiny"))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE[engine])
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("engine", OTHERS)
def test_an_engine_is_made_once_and_again_when_the_weights_change(engine: str) -> None:
    model = deepcopy(get("tiny").model)
    first = make_engine(model, engine)
    assert make_engine(model, engine) is first
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([5.0, -5.0]))
    assert make_engine(model, engine) is not first
    assert predict(model, rows("tiny"), engine).probabilities[:, 0].min() > 0.99
    count = len(engines._made)
    del model
    gc.collect()
    assert len(engines._made) == count - 1  # engines go with their model


@pytest.mark.parametrize("engine", ["onnx", "onnx-int8"])
def test_nothing_is_left_on_disk(engine: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    predict(deepcopy(get("tiny").model), rows("tiny"), engine)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["onnx", "onnx-int8"])
def test_nothing_is_left_when_an_export_fails(engine: str, tmp_path: Path, monkeypatch) -> None:
    def fails(*_arguments, **_more):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(torch.onnx, "export", fails)
    model = deepcopy(get("tiny").model)
    with pytest.raises(RuntimeError, match="no such operator"):
        predict(model, rows("tiny"), engine)
    assert list(tmp_path.iterdir()) == []
    assert engines._made[model] == {}


def test_torch_is_evaluate_itself() -> None:
    model = get("tiny").model
    found = predict(model, rows("tiny"), precision="fp32", device="cpu")
    np.testing.assert_array_equal(found.probabilities, fp32(model, rows("tiny")))
    assert make_engine(model, "torch") is model


@pytest.mark.parametrize("call", [predict, lambda m, _, engine: make_engine(m, engine)])
def test_an_unknown_engine_is_refused(call) -> None:
    with pytest.raises(ValueError, match=r"engine: expected one of \('torch', 'int8', 'onnx', 'o"):
        call(get("tiny").model, rows("tiny"), engine="int4")


@pytest.mark.parametrize("engine", ENGINES)
def test_no_rows_are_refused(engine: str) -> None:
    class Empty(SentimentDataset):
        def __init__(self) -> None:
            """No rows: the class itself refuses to be built without."""

        def __len__(self) -> int:
            return 0

    with pytest.raises(ValueError, match="expected at least one row to predict, found none"):
        predict(get("tiny").model, Empty(), engine)


def test_precision_and_device_belong_to_torch() -> None:
    with pytest.raises(ValueError, match="precision: expected 'auto' with engine 'int8', .*'bf16'"):
        predict(get("tiny").model, rows("tiny"), "int8", precision="bf16")
    with pytest.raises(ValueError, match="device: expected 'auto' or 'cpu' with engine 'onnx', .*"):
        predict(get("tiny").model, rows("tiny"), "onnx", device="cuda")


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx", "onnxscript"])
@pytest.mark.parametrize("engine_name", ["onnx", "onnx-int8"])
def test_a_missing_package_is_named_with_its_command(
    missing: str, engine_name: str, monkeypatch
) -> None:
    real = builtins.__import__

    def without(name, *rest):
        # The packages before the missing one may be absent where this test runs: all stand in.
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None if name in ("onnx", "onnxruntime", "onnxscript") else real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=f"{engine_name!r} needs the package {missing}, which is "
                       "not installed: run `pip install onnxruntime onnx onnxscript`, or use"):
        predict(deepcopy(get("tiny").model), rows("tiny"), engine_name)


def test_a_torch_without_its_quantization_says_what_else_there_is(monkeypatch) -> None:
    import torch.ao.quantization

    monkeypatch.delattr(torch.ao.quantization, "quantize_dynamic")
    with pytest.raises(ImportError, match=r"no longer has: use 'onnx-int8' or 'torch'"):
        predict(deepcopy(get("tiny").model), rows("tiny"), "int8")


def gpt2() -> torch.nn.Module:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    vocabulary = len(get("tiny-decoder").tokenizer)
    config = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=64,
                        pad_token_id=get("tiny-decoder").tokenizer.pad_token_id)
    return GPT2ForSequenceClassification(config).eval()


def test_int8_refuses_a_model_without_linear_layers() -> None:
    with pytest.raises(ValueError, match=r"'int8' expects linear layers, and GPT2Model has none"):
        predict(gpt2(), rows("tiny-decoder"), "int8")


@pytest.mark.parametrize("engine", ["onnx", "onnx-int8"])
def test_gpt2_works_through_onnx(engine: str) -> None:
    model, dataset = gpt2(), rows("tiny-decoder")
    found = predict(model, dataset, engine, batch_size=2).probabilities
    np.testing.assert_allclose(found, fp32(model, dataset), rtol=0, atol=TOLERANCE[engine])


@pytest.mark.parametrize("engine", ENGINES)
def test_texts_get_the_names_of_their_labels_in_order(engine: str) -> None:
    texts, labels = clear_cases(7)
    found = predict_texts(trained(), texts, engine, max_length=32, batch_size=3)
    assert isinstance(found, pd.DataFrame)
    assert found["label"].tolist() == [("negative", "positive")[label] for label in labels]
    dataset = SentimentDataset(texts, labels, trained().tokenizer, 32)
    wanted = predict(trained().model, dataset, engine, batch_size=3).probabilities
    np.testing.assert_array_equal(found["probability"], wanted.max(axis=1))


def test_texts_of_a_model_with_more_classes() -> None:
    loaded = load_model("tiny", {0: "bad", 1: "so so", 2: "good"})
    with torch.no_grad():
        loaded.model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
    assert predict_texts(loaded, TEXTS)["label"].tolist() == ["good"] * len(TEXTS)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [("Good.", TypeError, r"expected a list of texts, found a single str: put it in a list"),
     ([], ValueError, r"texts: expected at least one text, found none"),
     (["Good.", " "], ValueError, r"row 1: expected a text, found an empty one")],
)  # fmt: skip
def test_texts_that_cannot_be_read_are_refused(texts, error, message: str) -> None:
    with pytest.raises(error, match=message):
        predict_texts(get("tiny"), texts)


def test_texts_longer_than_the_model_are_refused() -> None:
    with pytest.raises(ValueError, match="max_length: expected at most 256, the positions that"):
        predict_texts(get("tiny"), TEXTS, max_length=512)
