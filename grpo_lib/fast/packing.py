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

from grpo_lib.support.modules import offers
from grpo_lib.transformer import attention_mask, token_positions

ROW = 24  # tokens for which a row of completions has room, where none is longer; as measured


def packs(model, width: int) -> bool:
    """Whether ``packed_outputs`` are a model's: it offers ``outputs_at``, as ``TransformerPolicy``
    does, and rows of ``width`` tokens fit its context. (Called with longer ones, it says so.)"""
    return offers(model, "outputs_at") and width <= model.config.context_length


def packed_outputs(model, tokens: Tensor, mask: Tensor, start: int) -> Tensor:
    """What a model says before each completion token, (B, T, ...), by its ``outputs_at``:
    ``model(tokens, mask)[:, start - 1 : -1]`` wherever ``mask[:, start:]`` is 1, 0 elsewhere."""
    packed = pack(tokens, mask, start)
    return packed.in_rows(model.outputs_at(packed.tokens, packed.positions, packed.attend))


def pack(tokens: Tensor, mask: Tensor, start: int) -> Packed:
    """tokens, mask (B, start + T): prompts, padded on the left, then completions, padded on the
    right."""
    texts = torch.stack((tokens[:, :start], mask[:, :start].to(tokens.dtype)), 1)
    texts, prompt_of = torch.unique(texts, dim=0, return_inverse=True)
    return Packed(texts[:, 0], texts[:, 1] > 0, prompt_of, tokens[:, start:], mask[:, start:] > 0)


class Packed:
    """Prompts (N, P) and completions (B, T) of the prompts ``prompt_of`` (B,), as one list of n
    tokens at their ``positions``. A completion's last token is left out: it scores nothing.

    For attention they stand in rows again: each prompt in one, and completions of one prompt one
    after another in others, as many as fit. ``seen``, for prompts and for completions: which of the
    list's tokens the queries of all rows are, and which the keys (a completion's are its prompt's,
    then its row's), and which token may attend to which. A place that is not needed holds a token
    of the same prompt, to which no token attends. (A nan spreads through its row, never to another
    prompt.) ``back``: where in all these rows each token of the list stands.
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

        # where in the rows each token of the list stands
        count, width = prompt_mask.shape
        row, start, prompt_of_row, size = into_rows(prompt_of.tolist(), inner.sum(1).tolist())
        row, start, prompt_of_row = (torch.tensor(found, device=device, dtype=torch.long)
                                     for found in (row, start, prompt_of_row))
        text = torch.arange(len(inner), device=device)[:, None].expand_as(inner)[inner]
        places = prompt_mask.nonzero()[:, 0] * width + in_prompt
        here = row[text] * size + (start[:, None] + steps)[inner]
        self.back = torch.cat((places, count * width + here))

        # and the other way round: what stands at each place, and who looks at whom
        listed = torch.arange(len(self.back), device=device)
        of_prompts = self.last[:, None].repeat(1, width)
        of_prompts.view(-1)[places] = listed[: len(places)]
        of_rows = self.last[prompt_of_row, None].repeat(1, size)
        of_rows.view(-1)[here] = listed[len(places) :]
        text_at = torch.full_like(of_rows, -1)
        text_at.view(-1)[here] = text
        there = torch.arange(width, device=device) < lengths[:, None]
        of_both = torch.cat((of_prompts[prompt_of_row], of_rows), 1)
        own = attention_mask(text_at >= 0) & (text_at[:, None, :, None] == text_at[:, None, None])
        prompt = there[prompt_of_row, None, None].expand(-1, -1, size, -1)
        self.seen = ((of_prompts, of_prompts, attention_mask(there)),
                     (of_rows, of_both, torch.cat((prompt, own), 3)))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Prompts look at themselves, completions at their prompt too: (n, n_heads, head_width)
        each."""
        found = []
        for queries, keys, allowed in self.seen:
            parts = (part.index_select(0, places.flatten()).unflatten(0, places.shape)
                     for part, places in ((q, queries), (k, keys), (v, keys)))
            heads = (part.transpose(1, 2) for part in parts)
            out = F.scaled_dot_product_attention(*heads, attn_mask=allowed)
            found.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(found).index_select(0, self.back)

    def in_rows(self, outputs: Tensor) -> Tensor:
        """Outputs (n, V) of the list where they score a completion token: (B, T, V)."""
        first = outputs[self.last][self.prompt_of][:, None]
        later = outputs.new_zeros(self.inner[0] * self.inner[1], *outputs.shape[1:])
        later = later.index_copy_(0, self.scored, outputs[len(outputs) - len(self.scored) :])
        return torch.cat((first, later.unflatten(0, self.inner)), 1)


def into_rows(prompt_of: list[int], lengths: list[int],
              ) -> tuple[list[int], list[int], list[int], int]:
    """Completions of one prompt one after another in rows of ``ROW`` tokens, or of the longest's.

    Longest first, each into the row of its prompt with the least room that is enough. The row of
    each and where it begins there, the prompt of each row, and the tokens it has room for.
    """
    size = max([ROW, *lengths])
    row, start, prompts = [0] * len(lengths), [0] * len(lengths), []
    with_room: dict[int, dict[int, list[int]]] = {}  # of each prompt: its rows, by their room
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        length, mine = lengths[text], with_room.setdefault(prompt_of[text], {})
        if length == 0:
            break
        room = next((room for room in range(length, size) if mine.get(room)), size)
        if room == size:
            mine[size] = [len(prompts)]
            prompts.append(prompt_of[text])
        row[text], start[text] = mine[room].pop(), size - room
        mine.setdefault(room - length, []).append(row[text])
    return row, start, prompts, size
