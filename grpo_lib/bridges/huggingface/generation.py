"""Sampling by transformers' own ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from torch import nn

from grpo_lib.bridges.huggingface.policy import HuggingFacePolicy
from grpo_lib.rollout import Rollouts, shard
from grpo_lib.rollout.sampling import check_sampling
from grpo_lib.support.modules import in_eval_mode, unwrapped
from grpo_lib.tokenizer import PAD, pad


@torch.no_grad()
@in_eval_mode
def generate_groups(policy: HuggingFacePolicy, prompts: Sequence[Sequence[int]], group_size: int,
                    *, max_new_tokens: int, temperature: float = 1.0,
                    generator: torch.Generator | None = None, eos_id: int | Sequence[int],
                    device: torch.device | str = "cpu", part: tuple[int, int] = (0, 1),
                    rows_at_once: int = 16) -> Rollouts:
    """``sample_groups`` by transformers' own ``generate``: ``GRPOTrainer(sampler=)``.

    The model's default generation settings (top-p, top-k, repetition penalty) are set aside: they
    would sample from another distribution than the one that is scored. Random numbers are
    torch's own, seeded from ``generator``; other numbers than ``sample_groups`` draws. log_probs
    are computed afterwards, ``rows_at_once`` completions at a time.
    """
    from transformers import GenerationConfig

    policy = unwrapped(policy)
    group_size, max_new_tokens, temperature = check_sampling(policy, prompts, group_size,
                                                             max_new_tokens, temperature)
    ends = [eos_id] if isinstance(eos_id, int) else list(eos_id)
    chosen = shard(len(prompts), part)
    tokens, prompt_mask = (t[chosen].repeat_interleave(group_size, 0).to(device)
                           for t in pad(prompts, "left"))
    policy.check_length(tokens.shape[1] + max_new_tokens)
    seed = torch.randint(2**62, (part[1],), generator=generator)[part[0]].item()
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    plain = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=PAD,
                             **(how if temperature > 0 else {"do_sample": False}))
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with (torch.random.fork_rng(devices), generation_config(policy.model, plain),
          policy.products_in_autocast(tokens)):
        torch.manual_seed(seed)
        tokens = policy.model.generate(input_ids=tokens, attention_mask=prompt_mask,
                                       generation_config=plain)
    completions = tokens[:, prompt_mask.shape[1] :]
    ended = torch.isin(completions, torch.tensor(ends, device=completions.device))
    dtype = torch.promote_types(next(policy.parameters()).dtype, torch.float32)  # of the logits
    mask = (ended.long().cumsum(1) - ended.long() == 0).to(dtype)
    rollouts = Rollouts(torch.cat((tokens[:, : prompt_mask.shape[1]],
                                   completions.masked_fill(mask == 0, PAD)), 1), prompt_mask,
                        mask, torch.zeros_like(mask), ended.any(1), group_size, temperature)
    return rollouts if temperature == 0 else rollouts.scored_by(policy, rows_at_once)


@contextmanager
def generation_config(model: nn.Module, config):
    """``generate`` fills what a config leaves open from the model's own: not here."""
    model = getattr(model, "get_base_model", lambda: model)()
    before, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = before
