"""Examples become batches in which all answers start in one column.

What is padding is masked, but masked is not absent: attention multiplies the values of masked positions by zero, and
zero times NaN is NaN. So padding repeats a token that the row holds anyway (its first prompt token; in a decoder the
start token), and no embedding is read that the row would not read without padding: not that of the padding token,
which many models never trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IGNORED = -100


def collate_answers(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Left-pad prompts and right-pad answers, so that every answer starts in the same column.

    The last answer token predicts nothing, so the inputs end before it: with P the longest prompt and A the longest
    answer they have L = P + A - 1 columns, and the last A of them predict the A answer tokens.

    Args:
        prompts: Token ids of each prompt, none empty.
        answers: Token ids of each answer, none empty; the end-of-sequence token is theirs where it is wanted.

    Returns:
        ``input_ids``, ``attention_mask``, ``position_ids`` (B, L), int64; ``labels`` (B, A), int64, -100 beyond each
        answer.
    """
    prompt_length = max(map(len, prompts))
    answer_length = max(map(len, answers))
    shape = (len(prompts), prompt_length + answer_length)
    ids = torch.tensor([prompt[0] for prompt in prompts], dtype=torch.long)[:, None].repeat(1, shape[1])
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full((len(prompts), answer_length), IGNORED, dtype=torch.long)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        columns = slice(prompt_length - len(prompt), prompt_length + len(answer))
        ids[row, columns] = torch.tensor([*prompt, *answer], dtype=torch.long)
        mask[row, columns] = 1
        labels[row, : len(answer)] = torch.tensor(answer, dtype=torch.long)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return {
        "input_ids": ids[:, :-1],
        "attention_mask": mask[:, :-1],
        "position_ids": positions[:, :-1],
        "labels": labels,
    }


def collate_encoder_decoder(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], decoder_start_id: int
) -> dict[str, Tensor]:
    """Prompts for the encoder and answers for the decoder, both right-padded: answers start in column 0.

    The decoder reads its start token and the answer without its last token, so that column t predicts answer token t.

    Args:
        prompts: Token ids of each prompt, none empty.
        answers: Token ids of each answer, none empty.
        decoder_start_id: The token with which the decoder starts.

    Returns:
        ``input_ids``, ``attention_mask`` (B, P), int64; ``decoder_input_ids`` (B, A), int64; ``labels`` (B, A), int64,
        -100 beyond each answer.
    """
    ids = _right_padded(prompts, [prompt[0] for prompt in prompts])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    starts = [decoder_start_id] * len(answers)
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        "decoder_input_ids": _right_padded([[decoder_start_id, *answer[:-1]] for answer in answers], starts),
        "labels": _right_padded(answers, [IGNORED] * len(answers)),
    }


def _right_padded(rows: Sequence[Sequence[int]], values: Sequence[int]) -> Tensor:
    """The rows (B, longest); each one is filled with its own value."""
    width = max(map(len, rows))
    filled = [[*row, *[value] * (width - len(row))] for row, value in zip(rows, values, strict=True)]
    return torch.tensor(filled, dtype=torch.long)
