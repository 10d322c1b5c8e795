"""Fine-tune over several processes from the command line: weights and validation score, no report.

    torchrun --nproc-per-node 2 -m tutorkit.launch -o runs/two -p dataset imdb -p model smollm2
    accelerate launch --multi_gpu --num_processes 2 -m tutorkit.launch -o runs/two
    python -m tutorkit.launch -o runs/one

Each `-p` sets a parameter of the report notebook. The folder receives `fit.json` (parameters,
validation, history) and `model/`, which `load_model` takes by its path. A run that was cut short
goes on where it stopped, also with another number of processes.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from tutorkit.report import check_names, parse_value


def main(arguments: list[str] | None = None) -> None:
    """Run the command line in one of the processes."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("tutorkit.launch", None, __doc__, formatter_class=as_written)
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("-o", type=Path, required=True, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    if (chosen.o / "fit.json").exists():
        parser.error(f"{chosen.o} holds a finished run (fit.json): name another folder")

    from accelerate import PartialState

    from tutorkit import data, models, sources
    from tutorkit.checkpoints import remove_checkpoints
    from tutorkit.parameters import ReportParameters
    from tutorkit.progress import Progress
    from tutorkit.records import strict_json
    from tutorkit.training import fit

    # Every process takes all these steps; `fit` shares the rows out, and one process writes.
    given = {name: parse_value(value) for name, value in chosen.p}
    check_names(list(given), list(asdict(ReportParameters())))
    params = ReportParameters(**given).with_recipe()
    loaded = models.load_model(params.model, seed=params.seed)
    models.set_trainable(loaded.model, params.freeze)
    splits = sources.load_splits(params.dataset, seed=params.seed)
    train, validation = (
        data.SentimentDataset(rows["text"], rows["label"], loaded.tokenizer, length,
                              params.truncation)
        for rows, length in (
            (data.take_rows(splits["train"], params.train_size, params.seed, "train"),
             params.train_max_length or params.max_length),
            (data.take_rows(splits["validation"], params.validation_size, 0, "validation"),
             params.max_length),
        )
    )  # fmt: skip
    checkpoints = chosen.o / "checkpoints"
    state = fit(loaded.model, train, validation, params.train_config(), checkpoints, [Progress()])
    if PartialState().is_main_process:
        models.save_model(loaded, chosen.o / "model", f"`{params.model}`, see fit.json beside it\n")
        record = {"parameters": asdict(params), "processes": PartialState().num_processes,
                  "validation": state.best, "seconds": state.seconds, **state.history}  # fmt: skip
        (chosen.o / "fit.json").write_text(strict_json(record), encoding="utf-8")
        remove_checkpoints(checkpoints)
        print(f"validation accuracy {state.best['accuracy']:.3f}; weights: {chosen.o / 'model'}")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
