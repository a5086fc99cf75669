"""Scoring completions without their padding, and each prompt once for all rows that share it.

Everything but attention works on single tokens, so it takes one list of all tokens that are there:
first the prompts', each prompt once, then the completions'. Only attention is shown rows again.
The numbers are those of ``policy(tokens, mask)``, gradients included; at the flagship's size it is
a quarter of the positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from grpo_lib.policy import attention_mask, token_positions

ROW = 24  # tokens of completions that attend together, if they are no longer; measured


def pack(tokens: Tensor, mask: Tensor, start: int) -> Packed:
    """tokens, mask (B, start + T): prompts, padded on the left, then completions, padded on the
    right, for ``policy(tokens, mask, None, packed)``.

    That is what the head says before each completion token, (B, T, V), 0 where there is none:
    ``policy(tokens, mask)[:, start - 1 : -1]`` wherever ``mask[:, start:]`` is 1.
    """
    texts = torch.stack((tokens[:, :start], mask[:, :start].to(tokens.dtype)), 1)
    texts, prompt_of = torch.unique(texts, dim=0, return_inverse=True)
    return Packed(texts[:, 0], texts[:, 1] > 0, prompt_of, tokens[:, start:], mask[:, start:] > 0)


class Packed:
    """Prompts (N, P) and completions (B, T) of the prompts ``prompt_of`` (B,), as one list of n
    tokens at their ``positions``. A completion's last token is left out: it scores nothing.

    For attention they stand in rows of one size: first each prompt in its own, then completions
    of one prompt after another, as many as fit. ``queries`` and ``keys`` are what stands where
    (places in the list), ``back`` is where in the rows each token of the list stands.
    """

    def __init__(self, prompts: Tensor, prompt_mask: Tensor, prompt_of: Tensor,
                 completions: Tensor, mask: Tensor):
        inner, device = mask[:, 1:], mask.device  # inner: tokens that another one follows
        lengths, steps = prompt_mask.sum(1), torch.arange(inner.shape[1], device=device)
        self.tokens = torch.cat((prompts[prompt_mask], completions[:, :-1][inner]))
        in_prompt = token_positions(prompt_mask)[prompt_mask]
        self.positions = torch.cat((in_prompt, (lengths[prompt_of, None] + steps)[inner]))
        self.prompt_of, self.last = prompt_of, lengths.cumsum(0) - 1  # of each prompt, in the list
        self.inner, self.scored = inner.shape, inner.flatten().nonzero().squeeze(1)

        count, width = prompt_mask.shape
        row, start, prompt_of_row, size = into_rows(prompt_of.tolist(), inner.sum(1).tolist())
        size = max(size, width)
        row, start = (torch.tensor(found, device=device) for found in (row, start))
        prompt_of_row = torch.tensor([*range(count), *prompt_of_row], device=device)
        self.rows = len(prompt_of_row)
        text = torch.arange(len(inner), device=device)[:, None].expand_as(inner)[inner]
        self.back = torch.cat((prompt_mask.nonzero()[:, 0] * size + in_prompt,
                               (count + row[text]) * size + (start[:, None] + steps)[inner]))
        self.queries = self.back.new_zeros(self.rows * size)
        self.queries[self.back] = torch.arange(len(self.back), device=device)
        of_text = torch.full_like(self.queries, -1)
        of_text[self.back] = torch.cat((torch.zeros_like(in_prompt), 1 + text))
        self.keys, of_text = self.queries.view(-1, size), of_text.view(-1, size)
        self.keys = torch.cat((self.keys[prompt_of_row, :width], self.keys), 1).flatten()
        theirs = of_text[prompt_of_row, :width] >= 0  # a completion sees all of its prompt
        theirs[:count] = False  # which sees itself, in its row
        own = attention_mask(of_text >= 0) & (of_text[:, None, :, None] == of_text[:, None, None])
        self.allowed = torch.cat((theirs[:, None, None].expand(-1, -1, size, -1), own), 3)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Prompts look at themselves, completions at their prompt too: (n, n_heads, head_width)
        each."""
        q, k, v = (part.index_select(0, places).unflatten(0, (self.rows, -1)).transpose(1, 2)
                   for part, places in ((q, self.queries), (k, self.keys), (v, self.keys)))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.allowed)
        return out.transpose(1, 2).flatten(0, 1).index_select(0, self.back)

    def in_rows(self, outputs: Tensor) -> Tensor:
        """Outputs (n, V) of the list where they score a completion token: (B, T, V)."""
        first = outputs[self.last][self.prompt_of][:, None]
        later = outputs.new_zeros(self.inner[0] * self.inner[1], *outputs.shape[1:])
        later = later.index_copy_(0, self.scored, outputs[len(outputs) - len(self.scored) :])
        return torch.cat((first, later.unflatten(0, self.inner)), 1)


def into_rows(prompt_of: list[int], lengths: list[int],
              ) -> tuple[list[int], list[int], list[int], int]:
    """Completions of one prompt one after another in rows of ``ROW`` tokens, or of the longest's.

    Longest first, each into the first row of its prompt that has room. The row of each and where it
    begins there, the prompt of each row, and the tokens it has room for.
    """
    size = max(ROW, *lengths)
    row, start, prompts, filled = [0] * len(lengths), [0] * len(lengths), [], []
    of_prompt: dict[int, list[int]] = {}
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        mine = of_prompt.setdefault(prompt_of[text], [])
        chosen = next((r for r in mine if filled[r] + lengths[text] <= size), None)
        if chosen is None:
            chosen = len(prompts)
            mine.append(chosen)
            prompts.append(prompt_of[text])
            filled.append(0)
        row[text], start[text] = chosen, filled[chosen]
        filled[chosen] += lengths[text]
    return row, start, prompts, size
