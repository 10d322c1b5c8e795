"""Compare the engines of `tutorkit.prediction.predict` on one model and the same rows.

    python tests/bench/engines.py --model FOLDER --output engines.json

The rows are cut into rounds of equal size, and in each round every engine reads that round's rows
in turn, so that a busy moment of the machine meets all of them. Speed is the median over rounds;
predictions are compared on all rows.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from tutorkit import machine
from tutorkit.data import SentimentDataset, take_rows
from tutorkit.engines import OnnxModel, make_engine
from tutorkit.models import load_model
from tutorkit.prediction import predict
from tutorkit.sources import load_splits

REFERENCE = "torch fp32"
CONTENDERS = {
    REFERENCE: {"engine": "torch", "precision": "fp32"},
    "torch bf16": {"engine": "torch", "precision": "bf16"},
    "int8": {"engine": "int8"},
    "onnx": {"engine": "onnx"},
    "onnx-int8": {"engine": "onnx-int8"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm", help="name or folder; best a fine-tuned one")
    parser.add_argument("--data", default="imdb", help="name of a data set; its test rows are read")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    loaded = load_model(args.model)
    splits = load_splits(args.data)
    test = take_rows(splits["test"], args.rows, seed=0)
    parts = np.array_split(np.arange(len(test)), args.rounds)
    rounds = []
    for part in parts:
        rows = test.select(part)
        rounds.append(SentimentDataset(rows["text"], rows["label"], loaded.tokenizer,
                                       max_length=args.max_length))
    warm = test.select(range(min(8, len(test))))
    warm = SentimentDataset(warm["text"], warm["label"], loaded.tokenizer, args.max_length)

    start_up, found = {}, {name: [] for name in CONTENDERS}
    for name, how in CONTENDERS.items():
        started = time.perf_counter()
        make_engine(loaded.model, how["engine"])
        start_up[name] = time.perf_counter() - started
        predict(loaded.model, warm, batch_size=args.batch_size, device="cpu", **how)
    for rows in rounds:
        for name, how in CONTENDERS.items():
            found[name].append(
                predict(loaded.model, rows, batch_size=args.batch_size, device="cpu", **how)
            )

    labels = np.concatenate([rows.labels for rows in rounds])
    probabilities = {n: np.concatenate([r.probabilities for r in f]) for n, f in found.items()}
    results = {}
    for name, how in CONTENDERS.items():
        p, reference = probabilities[name], probabilities[REFERENCE]
        speeds = [r.tokens / r.seconds for r in found[name]]
        results[name] = {
            "tokens_per_s": round(statistics.median(speeds)),
            "tokens_per_s_rounds": [round(speed) for speed in speeds],
            "times_fp32": round(statistics.median(
                a.seconds / b.seconds
                for a, b in zip(found[REFERENCE], found[name], strict=True)), 3),
            "accuracy": round(float((p.argmax(1) == labels).mean()), 4),
            "changed_predictions": int((p.argmax(1) != reference.argmax(1)).sum()),
            "largest_probability_change": float(np.abs(p - reference).max()),
            "start_up_s": round(start_up[name], 2),
            "file_mb": round(file_bytes(make_engine(loaded.model, how["engine"])) / 1e6, 1),
        }  # fmt: skip
    show(results, len(test))
    if args.output:
        record = {
            "settings": {**vars(args), "output": None, "rows": len(test), "source": splits.source},
            "environment": machine.environment(),
            "engines": {name: version(name) for name in ("onnxruntime", "onnx", "onnxscript")},
            "results": results,
        }  # fmt: skip
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def file_bytes(model: torch.nn.Module) -> int:
    """What a model's weights take on disk."""
    if isinstance(model, OnnxModel):
        return model.file_bytes
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def show(results: dict[str, dict], rows: int) -> None:
    print(f"{rows} rows\n{'engine':12}{'tokens/s':>10}{'x fp32':>8}{'accuracy':>10}{'changed':>9}"
          f"{'largest change':>16}{'start-up s':>12}{'MB':>8}")
    for name, r in results.items():
        print(f"{name:12}{r['tokens_per_s']:>10,}{r['times_fp32']:>8.2f}{r['accuracy']:>10.4f}"
              f"{r['changed_predictions']:>9}{r['largest_probability_change']:>16.2g}"
              f"{r['start_up_s']:>12.1f}{r['file_mb']:>8.1f}")


if __name__ == "__main__":
    main()
