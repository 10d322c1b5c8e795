"""Other ways to compute a model's logits on a CPU: int8 layers, and ONNX Runtime.

An engine is made from a copy of the model and is called as the model is:
`engine(input_ids, attention_mask=attention_mask).logits`. The model itself stays as it is.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tutorkit.models import model_digest

ENGINES = ("torch", "int8", "onnx", "onnx-int8")

# Model types whose attention is fused into one ONNX operator, about 1.2 times as fast. ONNX Runtime
# refuses what the same step makes of GPT-2.
FUSED = ("bert",)

# The engines last made from each model, by name, with the content they were made from. They go
# when the model goes.
_made: WeakKeyDictionary[torch.nn.Module, dict[str, tuple[str, torch.nn.Module]]]
_made = WeakKeyDictionary()


class OnnxModel(torch.nn.Module):
    """An ONNX Runtime session that is called as the model it was exported from.

    Attributes:
        file_bytes: size of the ONNX file that was read.
    """

    def __init__(self, session: Any, file_bytes: int):
        super().__init__()
        self.session = session
        self.file_bytes = file_bytes

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """The logits (B, C) of ids (B, T) and their mask (B, T), as `.logits`."""
        feed = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return SimpleNamespace(logits=torch.from_numpy(self.session.run(["logits"], feed)[0]))


def make_engine(model: torch.nn.Module, engine: str) -> torch.nn.Module:
    """The model in the form that an engine computes with; made once for the same weights.

    "int8" stores the weights of the backbone's linear layers as whole numbers, with a scale for
    each output, and rounds each batch's inputs to whole numbers as well. "onnx" exports the model
    to ONNX Runtime in fp32, "onnx-int8" quantizes that export. The head stays in fp32. Nothing is
    left on disk.

    Args:
        model: a transformers model with a classification head; it is copied, not changed.
        engine: one of `ENGINES`; "torch" gives the model itself.

    Raises:
        ValueError: an unknown engine, or "int8" for a model without linear layers.
        ImportError: a package that the engine needs is missing, and the command to install it.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {ENGINES}, found {engine!r}")
    if engine == "torch":
        return model
    content, made = model_digest(model), _made.setdefault(model, {})
    if engine not in made or made[engine][0] != content:
        made.pop(engine, None)  # two at once would need the memory of two
        make = _quantize if engine == "int8" else _export
        made[engine] = (content, make(model, engine))
    return made[engine][1]


def _quantize(model: torch.nn.Module, engine: str) -> torch.nn.Module:
    try:
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
    except ImportError as error:
        raise ImportError(f"engine {engine!r} needs torch.ao.quantization, which torch "
                          f"{torch.__version__} no longer has: use 'onnx-int8' or 'torch'"
                          ) from error  # fmt: skip
    copy = _plain_copy(model)
    backbone = getattr(copy, "base_model", copy)
    if not any(isinstance(module, torch.nn.Linear) for module in backbone.modules()):
        raise ValueError(f"engine {engine!r} expects linear layers, and {type(backbone).__name__} "
                         "has none (GPT-2 writes its own kind): use 'onnx-int8' or 'torch'")
    with warnings.catch_warnings():
        # torch warns that torchao will take this over; until then nothing more needs installing.
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        quantize_dynamic(backbone, {torch.nn.Linear: per_channel_dynamic_qconfig}, inplace=True)
    return copy


def _export(model: torch.nn.Module, engine: str) -> OnnxModel:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"engine {engine!r} needs the package {error.name}, which is not "
                          "installed: run `pip install onnxruntime onnx onnxscript`, or use "
                          "'torch' or 'int8'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    with tempfile.TemporaryDirectory(prefix="tutorkit-onnx-") as folder, _quiet():
        path = Path(folder) / "model.onnx"
        _write_onnx(_plain_copy(model), path)
        if engine == "onnx-int8":
            from onnxruntime.quantization import QuantType, quantize_dynamic

            exported, path = path, Path(folder) / "model-int8.onnx"
            # The heads are of type Gemm or too small to matter; the embeddings are looked up, not
            # multiplied.
            quantize_dynamic(exported, path, per_channel=True, weight_type=QuantType.QInt8,
                             op_types_to_quantize=["MatMul"])
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        # Weights of more than 2 GB lie in a file of their own beside the model's.
        size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    return OnnxModel(session, size)


def _write_onnx(model: torch.nn.Module, path: Path) -> None:
    """Export a model with any number of rows and any length."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    # Two padded rows: the exporter would take a length or a number of rows of 1 for a constant.
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 9:] = 0
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(
        _Logits(model), (torch.ones_like(mask), mask), dynamo=True, verbose=False,
        input_names=["input_ids", "attention_mask"], output_names=["logits"],
        dynamic_shapes=(free, free),
    )  # fmt: skip
    if getattr(getattr(model, "config", None), "model_type", None) in FUSED:
        optimize_for_ort(program.model)
    program.save(path, external_data=_bytes(model) > 1.9e9)  # a file of protobuf ends at 2 GB


class _Logits(torch.nn.Module):
    """A model that returns its logits alone, as an ONNX graph does."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says about its own workings off the screen; errors are raised."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _plain_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in fp32 on the CPU, for reading only."""
    return deepcopy(model).to("cpu", torch.float32).eval().requires_grad_(False)


def _bytes(model: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
