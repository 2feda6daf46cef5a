"""From prompts to token ids: image tokens, labels by offsets, padding.

Which tokens are supervised follows from the characters that each covers, so that it holds for every
tokenizer: a token is supervised if it covers a character of the explanation or of its end.

B prompts, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loupe.explanation.prompts import Prompt

# Label of a token that is not supervised, as in transformers.
IGNORED = -100


class Tokens(NamedTuple):
    """Ids of one prompt, and their labels."""

    ids: list[int]
    labels: list[int]


class TokenBatch(NamedTuple):
    """Padded prompts.

    Attributes:
        ids: (B, L) int64.
        attention: (B, L) int64, 1 = token, 0 = padding.
        labels: (B, L) int64, IGNORED where nothing is supervised.
    """

    ids: Tensor
    attention: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> TokenBatch:
        """The same on a device."""
        return TokenBatch(*(part.to(device) for part in self))


def encode(tokenizer: Any, prompt: Prompt, image_id: int, image_tokens: int) -> Tokens:
    """Tokens of a prompt, the image's place filled with `image_tokens` of its id.

    Args:
        tokenizer: A fast one of transformers.
        prompt: Of `prompts.fill`.
        image_id: The image's token.
        image_tokens: How many tokens the tower gives.
    """
    # Some tokenizers begin every text with a token of their own: at the very start, once.
    before = tokenizer(prompt.before)["input_ids"] if prompt.before else []
    told = tokenizer(prompt.after, add_special_tokens=False, return_offsets_mapping=True)
    labels = [
        token if end > prompt.start and end > start else IGNORED
        for token, (start, end) in zip(told["input_ids"], told["offset_mapping"], strict=True)
    ]
    ids = [*before, *[image_id] * image_tokens, *told["input_ids"]]
    return Tokens(ids, [IGNORED] * (len(before) + image_tokens) + labels)


def supervised(tokens: Tokens) -> int:
    """Number of tokens that a loss is computed on; the first token of all has no prediction."""
    return sum(label != IGNORED for label in tokens.labels[1:])


def pad(batch: Sequence[Tokens], padding: int, *, left: bool = False) -> TokenBatch:
    """Pads prompts to the longest: right in training, left where text is to be written."""
    length = max(len(tokens.ids) for tokens in batch)
    rows = []
    for tokens in batch:
        missing = length - len(tokens.ids)
        parts = (
            (tokens.ids, padding),
            ([1] * len(tokens.ids), 0),
            (tokens.labels, IGNORED),
        )
        rows.append(
            [[value] * missing + own if left else own + [value] * missing for own, value in parts]
        )
    return TokenBatch(*(torch.tensor(column) for column in zip(*rows, strict=True)))
