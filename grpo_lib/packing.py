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
    """

    def __init__(self, prompts: Tensor, prompt_mask: Tensor, prompt_of: Tensor,
                 completions: Tensor, mask: Tensor):
        self.prompt_of, inner = prompt_of, mask[:, 1:]  # inner: tokens that another one follows
        self.shapes = prompt_mask.shape, inner.shape
        self.places = [m.flatten().nonzero().squeeze(1) for m in (prompt_mask, inner)]
        self.counts = [len(places) for places in self.places]
        lengths, steps = prompt_mask.sum(1), torch.arange(inner.shape[1], device=mask.device)
        self.last = lengths.cumsum(0) - 1  # of each prompt, in the list
        self.tokens = torch.cat((prompts[prompt_mask], completions[:, :-1][inner]))
        self.positions = torch.cat((token_positions(prompt_mask)[prompt_mask],
                                    (lengths[prompt_of, None] + steps)[inner]))
        self.allowed = attention_mask(prompt_mask)
        self.allowed_inner = torch.cat(
            (prompt_mask[prompt_of, None].expand(-1, len(steps), -1),
             (steps[:, None] >= steps).expand(len(inner), -1, -1)), 2)[:, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Prompts look at themselves, completions at their prompt too: (n, n_heads, head_width)
        each."""
        split = [part.split(self.counts) for part in (q, k, v)]
        prompts, inner = ([rows(part[i], self.places[i], self.shapes[i]).transpose(1, 2)
                           for part in split] for i in (0, 1))
        inner[1:] = [torch.cat((shared.index_select(0, self.prompt_of), own), 2)
                     for shared, own in zip(prompts[1:], inner[1:])]
        return torch.cat([
            F.scaled_dot_product_attention(*heads, attn_mask=allowed).transpose(1, 2).flatten(
                0, 1).index_select(0, places)
            for heads, allowed, places in ((prompts, self.allowed, self.places[0]),
                                           (inner, self.allowed_inner, self.places[1]))])

    def in_rows(self, outputs: Tensor) -> Tensor:
        """Outputs (n, V) of the list where they score a completion token: (B, T, V)."""
        prompts, inner = outputs.split(self.counts)
        later = rows(inner, self.places[1], self.shapes[1])
        return torch.cat((prompts[self.last][self.prompt_of][:, None], later), 1)


def rows(listed: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """A list (n, ...) put into rows, 0 where it has nothing: (B, T, ...)."""
    empty = listed.new_zeros(shape[0] * shape[1], *listed.shape[1:])
    return empty.index_copy_(0, places, listed).unflatten(0, shape)
