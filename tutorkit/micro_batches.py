"""When memory runs out: the same rows again, fewer of them at a time.

A sum over rows may be taken in parts, so a step in smaller parts is the same step, only slower. On
Linux this helps where an allocation is refused (a GPU, a limit on the process). Without such a
limit the system hands out more main memory than there is and later kills the process, which nothing
in it can catch: `tutorkit.preflight` warns before that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache

Result = TypeVar("Result")

# How allocators other than CUDA's say it, in a plain RuntimeError. The last two are oneDNN's
# words, whose workspace found no room.
MESSAGES = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory",
            "MPS backend out of memory", "std::bad_alloc", "could not create a primitive",
            "could not create a memory")  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation of main memory or of a GPU's memory failed."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MESSAGES)


def split(batches: Sequence[np.ndarray], most: int) -> list[np.ndarray]:
    """The batches, those of more than `most` rows cut into parts of nearly equal size, in order."""
    return [part for rows in batches for part in np.array_split(rows, -(-len(rows) // most))]


def halving(
    work: Callable[[int], Result], rows: int, can_halve: bool = True
) -> tuple[Result, int]:
    """`work(rows)`; when memory runs out, again with half the rows at a time, and so on to 1.

    Prints one line if it took fewer rows than asked for.

    Args:
        work: takes the most rows that may be in memory at once. It is started anew after a
            failure, and has to undo what it left behind.
        rows: what to start with, from 1.
        can_halve: False where others wait for this process and can't start anew with it.

    Returns:
        What `work` returned, and the number of rows with which it went through.

    Raises:
        MemoryError: one row at a time is still too much, or it may not be halved.
    """
    fitting = rows
    while True:
        try:
            result = work(fitting)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().split("\n")[0][:150] or type(error).__name__
        # Only now, after `except`: the error holds the frames with the failed attempt's tensors.
        clear_device_cache(garbage_collection=True)
        if not can_halve:
            raise MemoryError(
                f"out of memory with {fitting} rows in one forward pass, over several processes "
                f"({reason}). One process alone would go on with fewer rows at a time. Set a "
                "smaller batch_size, with more gradient_accumulation_steps for the same rows a "
                "step, and start again; a run with checkpoints needs a new folder for it"
            )
        if fitting == 1:
            raise MemoryError(
                f"out of memory with a single row in a forward pass ({reason}). Set a smaller "
                "max_length, freeze lower layers, or take a smaller model"
            )
        fitting //= 2
    if fitting < rows:
        print(f"out of memory with {rows} rows in one forward pass: went on with {fitting} at a "
              "time, which gives the same mean loss and takes longer", flush=True)  # fmt: skip
    return result, fitting
