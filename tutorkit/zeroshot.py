"""What a decoder says before any fine-tuning: the answer of its language-model head to a question.

The prompt ends where the answer word would stand; the head's scores for the two words decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tutorkit.data import truncate
from tutorkit.heads import pool
from tutorkit.precision import autocast, choose_device, choose_precision

QUESTION = "Is this film review positive or negative? Answer with one word.\n\n{review}"
PLAIN = "Film review: {review}\nThe reviewer's opinion of the film is"
ANSWERS = ("Negative", "Positive")  # in the order of the labels 0, 1


@torch.no_grad()
def zero_shot_probabilities(
    model: torch.nn.Module,
    tokenizer,
    texts: Sequence[str],
    max_length: int = 128,
    truncation: str = "head+tail",
    batch_size: int = 32,
    precision: str = "auto",
    device: str = "auto",
) -> np.ndarray:
    """Probability of "negative" and "positive" as the next word, for each text.

    Args:
        model: a decoder with its language-model head (`tutorkit.models.load_language_model`).
        tokenizer: its tokenizer; a chat template is used where it has one.
        texts: N reviews.
        max_length: tokens of the review itself; the question comes on top.
        truncation: as in `tutorkit.data.SentimentDataset`.

    Returns:
        (N, 2) probabilities, normalised over the two words.
    """
    where = choose_device(device)
    numeric = choose_precision(precision, where)
    model.to(where).eval()
    answers = [_first_id(tokenizer, word) for word in ANSWERS]
    if answers[0] == answers[1]:
        raise ValueError(f"expected two answers that differ in their first token, found {ANSWERS} "
                         "with the same one: this tokenizer can't tell them apart")
    prompts = [_prompt_ids(tokenizer, text, max_length, truncation) for text in texts]
    order = np.argsort([-len(ids) for ids in prompts], kind="stable")
    found = np.empty((len(texts), 2))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        longest = max(len(prompts[row]) for row in rows)
        input_ids = torch.full((len(rows), longest), tokenizer.pad_token_id)  # (B, T)
        mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            input_ids[i, : len(prompts[row])] = torch.tensor(prompts[row])
            mask[i, : len(prompts[row])] = 1
        input_ids, mask = input_ids.to(where), mask.to(where)
        with autocast(numeric, where):
            hidden = model.base_model(input_ids, attention_mask=mask).last_hidden_state  # (B, T, H)
            # Only the last position's scores are needed: (B, V) instead of (B, T, V).
            scores = model.get_output_embeddings()(pool(hidden, mask, "last"))
        found[rows] = scores[:, answers].double().softmax(dim=1).cpu().numpy()
    return found


def _prompt_ids(tokenizer, text: str, max_length: int, truncation: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) > max_length:
        text = tokenizer.decode(truncate(ids, max_length, truncation))
    if tokenizer.chat_template is None:
        return tokenizer(PLAIN.format(review=text))["input_ids"]
    message = {"role": "user", "content": QUESTION.format(review=text)}
    prompt = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    return tokenizer(prompt, add_special_tokens=False)["input_ids"]


def _first_id(tokenizer, word: str) -> int:
    """The first token of an answer; after a plain prompt the word begins with a space."""
    text = word if tokenizer.chat_template is not None else f" {word.lower()}"
    return tokenizer(text, add_special_tokens=False)["input_ids"][0]
