"""One token more for every row, in as few operations as it takes: what sampling spends its time on.

The same numbers as ``policy(tokens, None, cache)``, without gradient. Sampling takes many small
steps, in which starting an operation costs as much as its work. So the weights are put together
once for a whole rollout: queries, keys and values in one matrix, with the norm before it multiplied
in; the same for the SwiGLU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from grpo_lib.support.modules import offers
from grpo_lib.transformer import KVCache, TransformerPolicy

FEWEST = 400  # numbers in a row's keys, below which torch multiplies batches of them by a slow loop


class Decoder:
    """The weights of a ``TransformerPolicy`` as they are when it is made, ready for decoding."""

    @torch.no_grad()
    def __init__(self, policy: TransformerPolicy):
        config = policy.config
        width = config.d_model // config.n_heads
        self.blocks = []
        for block in policy.model.layers:
            attention, mlp = block.self_attn, block.mlp
            heads = after_norm(block.input_layernorm, attention.paired_weight())
            heads[:, : config.d_model] /= width**0.5  # the queries, as attention has them
            both = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))
            self.blocks.append((heads, attention.o_proj.weight.T,
                                after_norm(block.post_attention_layernorm, both),
                                mlp.down_proj.weight.T))
        self.head = after_norm(policy.model.norm, policy.lm_head.weight)
        self.embedding, self.rotary = policy.model.embed_tokens.weight, policy.rotary.flatten(1)
        self.width, self.n_heads = width, config.n_heads
        wide = torch.promote_types(self.embedding.dtype, torch.float32)
        self.least = self.embedding.new_tensor(config.d_model * config.norm_eps, dtype=wide) ** 0.5

    def step(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """tokens (B,), each after what the cache holds -> logits (B, V)."""
        count, start = len(tokens), cache.filled
        turns = torch.view_as_complex(F.embedding(cache.extend(None), self.rotary).unflatten(
            -1, (-1, 2)))[:, None]
        seen = cache.in_use(-(-FEWEST // self.width))
        x = F.embedding(tokens, self.embedding)
        allowed = torch.where(cache.mask[:, seen], x.new_zeros(()), -torch.inf)
        allowed = allowed.repeat_interleave(self.n_heads, 0)[:, None]
        for layer, (heads, o_proj, gate_and_up, down) in enumerate(self.blocks):
            parts = torch.mm(self.normed(x), heads).view(count, 3, -1, self.width)
            torch.view_as_complex(parts[:, :2].unflatten(-1, (-1, 2))).mul_(turns)  # rotated
            cache.memory[:, layer, :, :, start] = parts[:, 1:].transpose(0, 1)
            keys, values = cache.memory[:, layer].flatten(1, 2)[:, :, seen]
            scores = torch.baddbmm(allowed, parts[:, 0].reshape(-1, 1, self.width), keys.mT)
            out = torch.bmm(scores.softmax(-1), values)
            x = torch.addmm(x, out.reshape(count, -1), o_proj)
            gate, up = torch.mm(self.normed(x), gate_and_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate).mul_(up), down)
        return torch.mm(self.normed(x), self.head)

    def normed(self, x: Tensor) -> Tensor:
        """RMSNorm but for its weight and sqrt(width), which ``after_norm`` has:
        x / sqrt(|x|^2 + width * eps)."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self.least.dtype)
        return (x / torch.hypot(length, self.least)).to(x.dtype)


def decoder_of(policy) -> Decoder | None:
    """A decoder with a policy's weights of now. None: it is no ``TransformerPolicy``, or calling it
    may do something else."""
    if type(policy) is not TransformerPolicy or not offers(policy, "outputs_at"):
        return None
    return Decoder(policy)


def after_norm(norm, weight: Tensor) -> Tensor:
    """A matrix that follows an RMSNorm, with the norm's weight and sqrt(width) multiplied in."""
    return (weight * norm.weight * norm.weight.numel() ** 0.5).T
