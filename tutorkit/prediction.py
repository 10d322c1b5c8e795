"""Probabilities for many rows, by the engine of your choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tutorkit.data import SentimentDataset
from tutorkit.engines import ENGINES, make_engine
from tutorkit.models import LoadedModel, check_max_length
from tutorkit.training import Evaluation, evaluate

if TYPE_CHECKING:
    import pandas as pd
    import torch


def predict(
    model: torch.nn.Module, dataset: SentimentDataset, engine: str = "torch",
    batch_size: int = 64, precision: str = "auto", device: str = "auto",
) -> Evaluation:
    """Probabilities of a model for the rows of a data set, with loss, accuracy and time.

    Which engine is fastest, measured on 2,000 IMDB reviews of up to 256 tokens with a fine-tuned
    `minilm`, on two cores with AVX512-BF16 and AVX512-VNNI, as a multiple of torch in fp32
    (`tests/bench/engines.py` measures it again):

    ==================  ======  =======================  ============
    engine              speed   predictions that change  time to make
    ==================  ======  =======================  ============
    "torch" in fp32     1.0                                       0 s
    "torch" in bf16     1.8     1 of 2,000                        0 s
    "int8"              1.7     38 of 2,000                     0.2 s
    "onnx"              0.9     0 of 2,000                        7 s
    "onnx-int8"         1.5     16 of 2,000                       7 s
    ==================  ======  =======================  ============

    So "torch" is fastest where the CPU has bf16 or there is a GPU. On other CPUs the int8 engines
    save time at the price of some predictions close to the border; none of these moved the accuracy
    by more than 0.002. Both scale a batch's inputs together, so a row's probability depends a
    little on its batch. Decoders suffer more: with `smollm2` "int8" moved probabilities by up to
    0.2. "onnx" is for checking what an export would say.

    Args:
        model: a transformers model with a classification head. Weights and mode are kept; "torch"
            moves it to the device.
        dataset: N rows.
        engine: "torch", "int8", "onnx" or "onnx-int8"; see `tutorkit.engines.make_engine`.
        batch_size: rows in one forward pass.
        precision: of "torch": "auto", "fp32", "bf16" or "fp16". The others have their own.
        device: of "torch": "auto", "cpu", "cuda" or "mps". The others compute on the CPU.

    Returns:
        An `Evaluation`, probabilities in the order of the rows. Its seconds leave out the time
        that the engine took to make.

    Raises:
        ValueError: an unknown engine, no rows, or a precision or device that the engine does not
            have.
        ImportError: a package that the engine needs is missing, and the command to install it.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {ENGINES}, found {engine!r}")
    if len(dataset) == 0:
        raise ValueError("expected at least one row to predict, found none")
    if engine == "torch":
        return evaluate(model, dataset, batch_size, precision=precision, device=device)
    if precision != "auto":
        raise ValueError(f"precision: expected 'auto' with engine {engine!r}, which has its own "
                         f"number format, found {precision!r}: drop it, or use engine='torch'")
    if device not in ("auto", "cpu"):
        raise ValueError(f"device: expected 'auto' or 'cpu' with engine {engine!r}, which computes "
                         f"on the CPU, found {device!r}: use engine='torch'")
    return evaluate(make_engine(model, engine), dataset, batch_size, precision="fp32", device="cpu")


def predict_texts(
    loaded: LoadedModel, texts: Sequence[str], engine: str = "torch", max_length: int = 128,
    truncation: str = "head+tail", batch_size: int = 64, precision: str = "auto",
    device: str = "auto",
) -> pd.DataFrame:
    """The label that a model gives each of some texts, and its probability.

    Args:
        loaded: the model with its tokenizer.
        texts: N texts, none of them empty.
        engine: as for `predict`, like the arguments below that are not named.
        max_length: most token ids a text may have; best the one that the model was trained with.
        truncation: which end of a longer text is kept: "head", "tail" or "head+tail".
        batch_size: as for `predict`.
        precision: as for `predict`.
        device: as for `predict`.

    Returns:
        One row a text, in the order given, with the columns `label` (its name) and `probability`.

    Raises:
        TypeError: one text instead of a list, or a text that is not a string.
        ValueError: no texts, an empty one, a `max_length` above the model's; also as `predict`.
        ImportError: as `predict`.
    """
    import pandas as pd

    if isinstance(texts, str):
        raise TypeError("texts: expected a list of texts, found a single str: put it in a list, "
                        "predict_texts(loaded, [text])")
    if len(texts) == 0:
        raise ValueError("texts: expected at least one text, found none")
    check_max_length(loaded.model, max_length)
    # The labels are not known: those below decide nothing but a loss that is thrown away.
    rows = SentimentDataset(texts, [0] * len(texts), loaded.tokenizer, max_length, truncation)
    found = predict(loaded.model, rows, engine, batch_size, precision, device).probabilities
    names = loaded.model.config.id2label
    best = found.argmax(axis=1)
    return pd.DataFrame({"label": [names[int(i)] for i in best], "probability": found.max(axis=1)})
