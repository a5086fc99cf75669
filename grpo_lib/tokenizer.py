"""A word tokenizer: one token for each word of a small, fixed vocabulary.

What a real tokenizer has and this one does not: sub-words, bytes, merges. Every text of the
built-in tasks is a sequence of vocabulary words, so a token is something you can read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

PAD, EOS = 0, 1  # the two special tokens come first in every vocabulary
Side = Literal["left", "right"]  # where padding goes


class Tokenizer:
    """Turns text into token ids and back; ids 0 and 1 are ``<pad>`` and ``<eos>``.

    ``words`` are the vocabulary, in id order. White space between words may be left
    out when encoding ("s1=4" and "s1= 4" are the same two tokens); the longest word wins.
    """

    pad_id, eos_id = PAD, EOS

    def __init__(self, words: Sequence[str]):
        self.words = ("<pad>", "<eos>", *words)
        if len(set(self.words)) != len(self.words) or not all(words):
            raise ValueError("words: every word must be non-empty and appear once")
        self._ids = {word: i for i, word in enumerate(self.words)}
        longest_first = sorted(self.words, key=len, reverse=True)
        self._pattern = re.compile(r"\s*(" + "|".join(map(re.escape, longest_first)) + r")\s*")

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``. ValueError names the first part that is no word."""
        if not isinstance(text, str):
            raise TypeError(f"text: got a {type(text).__name__}, must be a str")
        ids, at = [], 0
        while at < len(text):
            match = self._pattern.match(text, at)
            if match is None:
                raise ValueError(f"text: {text[at : at + 12]!r} does not start with a word "
                                 f"of the vocabulary ({', '.join(self.words[2:8])}, ...)")
            ids.append(self._ids[match[1]])
            at = match.end()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, padding and end-of-sequence left out.

        Words are separated by a space; one that ends in "=" is glued to the next word.
        """
        return self._join([i for i in ids if i not in (PAD, EOS)])

    def _join(self, ids: Sequence[int]) -> str:
        words = [self.words[i] for i in ids]
        return "".join(w if w.endswith("=") else w + " " for w in words).rstrip()

    def decode_rows(self, tokens: Tensor, mask: Tensor) -> list[str]:
        """Texts of a batch: tokens (B, T), mask (B, T) with 1 where a token counts.

        A policy may sample ``<pad>``; it stays visible, so that no verifier overlooks it.
        """
        return [self._join([i for i, counts in zip(row, row_mask) if counts and i != EOS])
                for row, row_mask in zip(tokens.tolist(), mask.tolist())]


def pad(sequences: Sequence[Sequence[int]], side: Side) -> tuple[Tensor, Tensor]:
    """Stack token lists of unequal length: tokens (B, L) and mask (B, L), 1 on real tokens.

    ``side``: "left" for prompts that will be continued, "right" for finished texts.
    ValueError: no sequence, an empty one, or ids that are not whole numbers.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side: got {side!r}, allowed are 'left' and 'right'")
    if not isinstance(sequences, Sequence) or isinstance(sequences, str):
        raise TypeError(f"sequences: got a {type(sequences).__name__}, allowed is a list of lists "
                        f"of token ids")
    if len(sequences) == 0 or any(len(s) == 0 for s in sequences):
        raise ValueError("sequences: need at least one sequence and no empty one")
    length = max(len(s) for s in sequences)
    tokens = torch.full((len(sequences), length), PAD)
    mask = torch.zeros(len(sequences), length, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids = torch.as_tensor(sequence)
        columns = slice(length - len(ids), None) if side == "left" else slice(len(ids))
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"sequences: got {ids.dtype} in row {row}, allowed are token ids, "
                             f"which are whole numbers")
        tokens[row, columns] = ids
        mask[row, columns] = 1
    return tokens, mask
