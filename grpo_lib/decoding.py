"""One token more for every row, in as few operations as it takes: what sampling spends its time on.

The same numbers as ``policy(tokens, None, cache)``, which calls this where no gradient is kept.
Sampling takes many small steps, in which starting an operation costs as much as its work. So the
weights are put together once for a whole rollout: queries, keys and values in one matrix, with
the norm before it multiplied in; the same for the SwiGLU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class Decoder:
    """The weights of a ``TransformerPolicy`` as they are when it is made, ready for decoding."""

    @torch.no_grad()
    def __init__(self, policy):
        width = policy.config.d_model // policy.config.n_heads
        self.blocks = []
        for block in policy.model.layers:
            attention, mlp = block.self_attn, block.mlp
            heads = attention.paired_weight() * block.input_layernorm.weight
            both = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))
            self.blocks.append((heads.T, attention.o_proj.weight.T,
                                (both * block.post_attention_layernorm.weight).T,
                                mlp.down_proj.weight.T))
        self.head = (policy.lm_head.weight * policy.model.norm.weight).T
        self.embedding, self.rotary = policy.model.embed_tokens.weight, policy.rotary
        self.width, self.eps = width, policy.config.norm_eps

    def step(self, tokens: Tensor, cache) -> Tensor:
        """tokens (B,), each after what the cache holds -> logits (B, V)."""
        count, start = len(tokens), cache.filled
        turns = torch.view_as_complex(self.rotary[cache.extend(None)])
        seen = slice(cache.filled)
        allowed = cache.mask[:, None, None, seen]
        x = self.embedding[tokens]
        for layer, (heads, o_proj, gate_and_up, down) in enumerate(self.blocks):
            q, k, v = torch.mm(self.normed(x), heads).view(count, 3, -1, self.width).unbind(1)
            q, k = (torch.view_as_real(torch.view_as_complex(
                part.unflatten(-1, (-1, 2))) * turns).flatten(-2) for part in (q, k))
            cache.keys[layer, :, :, start], cache.values[layer, :, :, start] = k, v
            out = F.scaled_dot_product_attention(
                q[:, :, None], cache.keys[layer, :, :, seen], cache.values[layer, :, :, seen],
                attn_mask=allowed)
            x = torch.addmm(x, out.reshape(count, -1), o_proj)
            gate, up = torch.mm(self.normed(x), gate_and_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate).mul_(up), down)
        return torch.mm(self.normed(x), self.head)

    def normed(self, x: Tensor) -> Tensor:
        """RMSNorm without its weight."""
        return F.rms_norm(x, x.shape[-1:], None, self.eps)
