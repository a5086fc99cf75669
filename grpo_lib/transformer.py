"""The policy that the course trains: the Llama block (RMSNorm, rotary positions, SwiGLU) with
Llama's weight names.

What Llama has and this does not: grouped-query attention, tied embeddings, biases, dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grpo_lib.support.checks import check_number, check_whole, settle

LONGEST_CONTEXT = 2**20  # tokens, for which the table of rotary angles is made at once


@dataclass(frozen=True)
class PolicyConfig:
    """The shape of a ``TransformerPolicy``; names in brackets are LlamaConfig's."""

    vocab_size: int
    d_model: int = 64  # width of the residual stream (hidden_size)
    n_layers: int = 2  # blocks (num_hidden_layers)
    n_heads: int = 4  # attention heads, each d_model / n_heads wide (num_attention_heads)
    d_hidden: int = 168  # width of the SwiGLU's hidden layer (intermediate_size)
    context_length: int = 64  # longest prompt + completion (max_position_embeddings)
    rope_theta: float = 1e4  # rotary wavelengths grow from 2 pi towards 2 pi theta (rope_theta)
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm (rms_norm_eps)
    init_std: float = 0.02  # every matrix starts as N(0, init_std) (initializer_range)

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "d_hidden", "context_length"):
            settle(self, **{name: check_whole(name, getattr(self, name), 1)})
        if self.context_length > LONGEST_CONTEXT:
            raise ValueError(f"context_length: got {self.context_length}, allowed is up to "
                             f"{LONGEST_CONTEXT}")
        settle(self, rope_theta=check_number("rope_theta", self.rope_theta, above=0))
        for name in ("norm_eps", "init_std"):
            settle(self, **{name: check_number(name, getattr(self, name), least=0)})
        if self.d_model % (2 * self.n_heads):
            raise ValueError(f"d_model: got {self.d_model} with n_heads={self.n_heads}; allowed "
                             f"is a multiple of 2 * n_heads, for rotary pairs in every head")

    def to_dict(self) -> dict:
        return asdict(self)


class KVCache:
    """Keys and values of the tokens seen so far, in memory allocated once.

    memory: keys and values, (2, n_layers, B, n_heads, length, head_width); mask: (B, length), 1
    on real tokens; positions: (B,) position of the next token; ``filled`` columns are in use.
    """

    def __init__(self, config: PolicyConfig, batch: int, length: int, like: Tensor):
        shape = (config.n_layers, batch, config.n_heads, length, config.d_model // config.n_heads)
        self.memory = like.new_empty(2, *shape)
        self.mask = torch.zeros(batch, length, dtype=torch.bool, device=like.device)
        self.positions = torch.zeros(batch, dtype=torch.long, device=like.device)
        self.filled, self.widened = 0, False
        self.config = config

    def extend(self, mask: Tensor | None) -> Tensor:
        """Make room for mask.shape[1] more tokens (None: one in every row): their positions
        (B, t)."""
        start, self.filled = self.filled, self.filled + (1 if mask is None else mask.shape[1])
        if self.filled > self.mask.shape[1]:
            wanted, self.filled = self.filled, start
            raise ValueError(f"cache: {wanted} tokens do not fit its length {self.mask.shape[1]}")
        self.mask[:, start : self.filled] = True if mask is None else mask
        before = self.positions[:, None]
        if mask is None:
            self.positions = self.positions + 1
            return before
        self.positions = self.positions + mask.long().sum(1)
        return before + token_positions(mask)

    def in_use(self, least: int) -> slice:
        """The columns in use and, until they are ``least``, some after them, which are masked."""
        if self.filled < least and not self.widened:
            self.memory[..., self.filled : least, :] = 0  # times a weight of 0: nan would stay nan
            self.widened = True
        return slice(max(self.filled, least))

    def attention(self, new: int) -> Callable:
        """Attention of the ``new`` newest tokens to all, whose keys and values it stores; see
        ``attention``."""
        seen, newest = slice(self.filled), slice(self.filled - new, self.filled)
        allowed = attention_mask(self.mask[:, seen])[:, :, newest]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.memory[:, layer, :, :, newest] = torch.stack((k, v)).transpose(2, 3)
            keys, values = self.memory[:, layer, :, :, seen]
            return F.scaled_dot_product_attention(q.transpose(1, 2), keys, values,
                                                  attn_mask=allowed).transpose(1, 2)

        return attend

    def repeat(self, times: int, length: int) -> KVCache:
        """A cache of ``length`` columns in which every row stands ``times`` times in a row:
        how a prompt that was encoded once is shared by its whole group."""
        batch = self.mask.shape[0]
        copy = KVCache(self.config, batch * times, length, self.memory)
        old = self.memory[:, :, :, None, :, : self.filled]
        copy.memory.unflatten(2, (batch, times))[..., : self.filled, :] = old
        copy.mask[:, : self.filled] = self.mask[:, : self.filled].repeat_interleave(times, 0)
        copy.positions = self.positions.repeat_interleave(times, 0)
        copy.filled = self.filled
        return copy

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (indices), so that finished completions stop costing. A row
        that stays at its place is not copied."""
        count, used = len(rows), slice(self.filled)
        places = (rows != torch.arange(count, device=rows.device)).nonzero().squeeze(1)
        moved = rows[places]
        self.memory[:, :, places, :, used] = self.memory[:, :, moved, :, used]
        self.memory = self.memory[:, :, :count]
        self.mask, self.positions = self.mask[rows], self.positions[rows]


def token_positions(mask: Tensor) -> Tensor:
    """Position of every token among its row's real tokens: (B, T) -> (B, T).

    Left padding therefore does not move a text; padding itself sits at position 0.
    """
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def attention_mask(mask: Tensor) -> Tensor:
    """Which keys (last dimension) each query may look at: (B, T) -> (B, 1, T, T), bool.

    Itself and every real token before it. (Padding looks at itself, so that no softmax is
    over nothing; nobody reads its output.)
    """
    steps = torch.arange(mask.shape[1], device=mask.device)
    causal, itself = steps[:, None] >= steps, steps[:, None] == steps
    return ((mask[:, None, :].bool() & causal) | itself)[:, None]


def attention(allowed: Tensor | None) -> Callable:
    """Attention among the tokens at hand, (B, T, n_heads, head_width), where ``allowed`` says so
    (see ``attention_mask``); None: each looks at itself and all before it."""
    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=allowed is None)
        return out.transpose(1, 2)

    return attend


def rotary_table(config: PolicyConfig) -> Tensor:
    """e^(i angle) of every position's pairs, as (cos, sin): (context_length, head_width / 2, 2).

    RoFormer (2104.09864) Eq. 15.
    """
    half = config.d_model // config.n_heads // 2
    frequencies = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(config.context_length, dtype=torch.float64)[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin()), -1).float()


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn each pair of neighbours in x (..., width) by its position's angle: as complex numbers,
    times ``turns`` (..., width / 2), which is one pass over memory where sines are five."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)


class Attention(nn.Module):
    """Self-attention of several heads (1706.03762), with rotary positions."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.n_heads = config.n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.d_model, config.d_model, bias=False) for _ in range(4))

    def forward(self, x: Tensor, turns: Tensor, attend: Callable) -> Tensor:
        """x (..., d_model) -> (..., d_model); turns (..., 1, head_width / 2) of its positions.

        ``attend`` takes queries, keys and values (..., n_heads, head_width), and knows who may
        look at whom.
        """
        heads = F.linear(x, self.paired_weight()).unflatten(-1, (3 * self.n_heads, -1))
        q_and_k, v = heads.split((2 * self.n_heads, self.n_heads), -2)
        q, k = rotate(q_and_k, turns).chunk(2, -2)
        return self.o_proj(attend(q, k, v).flatten(-2))

    def paired_weight(self) -> Tensor:
        """Queries', keys' and values' matrices as one. Llama's pairs, which are to be turned, are i
        and i + head_width / 2; here they stand next to each other, in queries as in keys, which
        changes no product of the two."""
        paired = torch.cat((self.q_proj.weight, self.k_proj.weight)).unflatten(
            0, (2 * self.n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        return torch.cat((paired, self.v_proj.weight))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (2002.05202, Eq. 6)."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_hidden, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.d_hidden, bias=False)
        self.down_proj = nn.Linear(config.d_hidden, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention, then the SwiGLU, each added to its input: (..., d_model) -> (..., d_model)."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, turns: Tensor, attend: Callable) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turns, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Blocks(nn.Module):
    """All but the head; Llama's checkpoints call it ``model``."""

    def __init__(self, config: PolicyConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)


class TransformerPolicy(nn.Module):
    """A decoder-only transformer, built and named like Llama's (2302.13971).

    ``TransformerPolicy(config, generator)``: the generator makes the initial weights, all
    matrices N(0, init_std); without one they differ from call to call.
    """

    rotary: Tensor  # (context_length, head_width / 2, 2)

    def __init__(self, config: PolicyConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.model = Blocks(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.register_buffer("rotary", rotary_table(config), persistent=False)
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, config.init_std, generator=generator)

    def new_cache(self, batch: int, length: int) -> KVCache:
        """See ``Policy``. ValueError: a length above context_length."""
        if length > self.config.context_length:
            raise ValueError(f"length: prompt and completion need {length} tokens, allowed are "
                             f"{self.config.context_length} (the policy's context_length)")
        return KVCache(self.config, batch, length, self.lm_head.weight)

    def forward(self, tokens: Tensor, mask: Tensor | None = None,
                cache: KVCache | None = None) -> Tensor:
        """tokens (B, T), mask (B, T) -> logits (B, T, V); see ``Policy``. ValueError: other shapes,
        or more tokens than context_length."""
        if tokens.dim() != 2 or tokens.shape[1] == 0:
            raise ValueError(f"tokens: got shape {tuple(tokens.shape)}, allowed is (B, T), T >= 1")
        if mask is not None and mask.shape != tokens.shape:
            raise ValueError(f"mask: got shape {tuple(mask.shape)}, allowed is that of tokens, "
                             f"{tuple(tokens.shape)}")
        if tokens.shape[1] > self.config.context_length:
            raise ValueError(f"tokens: got {tokens.shape[1]} a row, allowed are "
                             f"{self.config.context_length} (the policy's context_length)")
        if cache is not None:
            positions = cache.extend(torch.ones_like(tokens) if mask is None else mask)
            attend = cache.attention(tokens.shape[1])
        elif mask is not None:
            positions, attend = token_positions(mask), attention(attention_mask(mask))
        else:  # no padding: one row of positions serves all, and attention is plain causal
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
            attend = attention(None)
        return self.outputs_at(tokens, positions, attend)

    def outputs_at(self, tokens: Tensor, positions: Tensor, attend: Callable) -> Tensor:
        """tokens (...), in any order, at their positions (...) -> logits (..., V). ``attend`` knows
        who may look at whom; see ``attention``."""
        turns = torch.view_as_complex(self.rotary[positions])[..., None, :]
        x = self.model.embed_tokens(tokens)
        for layer, block in enumerate(self.model.layers):
            x = block(x, turns, partial(attend, layer))
        return self.lm_head(self.model.norm(x))
