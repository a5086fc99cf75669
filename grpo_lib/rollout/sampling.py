"""Sampling groups of completions.

What production engines have and this one does not: paged memory, continuous batching of new
prompts, top-p and top-k (they would make the sampled distribution differ from the one whose
log-probs we keep).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from grpo_lib.fast.decoding import decoder_of
from grpo_lib.policy import Policy
from grpo_lib.rollout.rollouts import Rollouts
from grpo_lib.support.checks import check_number, check_whole
from grpo_lib.support.modules import in_eval_mode, unwrapped, vocabulary_of
from grpo_lib.tokenizer import EOS, PAD, pad

DROP_SHARE = 0.1  # finished rows are dropped once they are this share of the rows in work


@torch.no_grad()
@in_eval_mode
def sample_groups(policy: Policy, prompts: Sequence[Sequence[int]], group_size: int, *,
                  max_new_tokens: int, temperature: float = 1.0,
                  generator: torch.Generator | None = None,
                  eos_id: int | Sequence[int] = EOS, device: torch.device | str = "cpu",
                  use_cache: bool = True, part: tuple[int, int] = (0, 1)) -> Rollouts:
    """Sample ``group_size`` (TRL: num_generations) completions of every prompt.

    ``prompts``: N lists of token ids. Tokens are drawn from softmax(logits / temperature);
    temperature 0 takes the most likely token. All random numbers are drawn first, from the
    CPU ``generator`` (None: a fresh one, seeded by the system), one for each row and column:
    what a row samples does not depend on which other rows are still running.

    Each prompt is encoded once and shared by its group; a finished row costs nothing more. The
    policy is in eval mode meanwhile; a compiled one, or one of several processes', is called
    without its wrapper (rows and columns change from token to token).
    ``use_cache=False`` encodes everything again for every token: same result, slowly.
    ``eos_id``: the token that ends a completion, or several. ``part=(k, n)``: of n nearly equal
    parts of the prompts only the k-th, from 0, with the tokens that it has in the whole.
    TypeError, ValueError: a bad argument, or logits of a wrong shape. FloatingPointError: nan.
    """
    policy = unwrapped(policy)
    group_size, max_new_tokens, temperature = check_sampling(policy, prompts, group_size,
                                                             max_new_tokens, temperature)
    uniforms = draw_uniforms(len(prompts) * group_size, max_new_tokens, generator)
    mine = shard(len(prompts), part)
    uniforms = uniforms[mine.start * group_size : mine.stop * group_size].to(device)
    prompt_tokens, prompt_mask = (t[mine].to(device) for t in pad(prompts, "left"))
    batch, width = len(uniforms), prompt_tokens.shape[1]
    ends = torch.tensor([eos_id] if isinstance(eos_id, int) else list(eos_id), device=device)

    cache = policy.new_cache(len(prompt_tokens), width + max_new_tokens) if use_cache else None
    logits = policy(prompt_tokens, prompt_mask, cache)
    check_logits(policy, logits, prompt_tokens, ends, cache is not None)
    logits = logits[:, -1].repeat_interleave(group_size, 0)
    if cache is not None:
        cache = cache.repeat(group_size, width + max_new_tokens)
    decoder = None if cache is None else decoder_of(policy)
    prompt_tokens, prompt_mask = (t.repeat_interleave(group_size, 0)
                                  for t in (prompt_tokens, prompt_mask))

    completions = torch.full((batch, max_new_tokens), PAD, device=device)
    log_probs = torch.zeros(batch, max_new_tokens, dtype=logits.dtype, device=device)
    rows = torch.arange(batch, device=device)  # the rows in work, a few of them ended
    ended = torch.zeros(batch, dtype=torch.bool, device=device)  # of the rows in work
    for step in range(max_new_tokens):
        chosen, log_probs[rows, step] = sample_token(logits, uniforms[rows, step], temperature)
        completions[rows, step] = chosen
        ended |= torch.isin(chosen, ends)
        count = len(rows) - int(ended.sum())
        if count == 0 or step + 1 == max_new_tokens:
            break
        if count <= (1 - DROP_SHARE) * len(rows):
            kept = compact(~ended, count)
            rows, chosen, ended = rows[kept], chosen[kept], ended[kept]
            if cache is not None:
                cache.keep(kept)
        if cache is None:
            seen = torch.cat((prompt_tokens[rows], completions[rows, : step + 1]), 1)
            seen_mask = torch.cat((prompt_mask[rows], torch.ones_like(seen[:, width:])), 1)
            logits = policy(seen, seen_mask)[:, -1]
        elif decoder is None:
            logits = policy(chosen[:, None], None, cache)[:, -1]
        else:
            logits = decoder.step(chosen, cache)
    completions, log_probs = completions[:, : step + 1], log_probs[:, : step + 1]
    is_end = torch.isin(completions, ends)
    after = is_end.cumsum(1) > is_end  # what a row in work drew after its end
    return Rollouts(torch.cat((prompt_tokens, completions.masked_fill(after, PAD)), 1),
                    prompt_mask, ~after, log_probs.masked_fill(after, 0.0),
                    is_end.any(1), group_size, temperature)


def draw_uniforms(rows: int, columns: int, generator: torch.Generator | None) -> Tensor:
    """A uniform number for each token that may be sampled: (rows, columns), float64, on the CPU."""
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    return torch.rand(rows, columns, dtype=torch.float64, generator=generator)


def compact(live: Tensor, count: int) -> Tensor:
    """Indices that bring the ``count`` live rows (B,) to the front, moving as few as possible: the
    last live rows take the places of rows that are not."""
    order = torch.arange(count, device=live.device)
    order[~live[:count]] = count + live[count:].nonzero().squeeze(1)
    return order


def shard(count: int, part: tuple[int, int]) -> slice:
    """The k-th of n nearly equal parts of ``count`` things, for ``part=(k, n)``."""
    number, parts = part
    if not 0 <= number < parts <= count:
        raise ValueError(f"part: got {part!r} of {count}; allowed is (k, n) with k from 0 to n - 1 "
                         f"and n up to {count}")
    size, longer = divmod(count, parts)
    start = number * size + min(number, longer)
    return slice(start, start + size + (number < longer))


def sample_token(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token a row by inverse CDF, and its log-prob: (B, V), (B,) -> (B,), (B,).

    The token is the first whose cumulative probability exceeds the row's uniform number.
    Temperature 0 is the limit: the most likely token, with log-prob 0.
    """
    if temperature == 0:
        if logits.isnan().any():
            raise FloatingPointError("logits: the policy's hold nan, of which none is the largest")
        return logits.argmax(-1), logits.new_zeros(len(logits))
    log_probs = F.log_softmax(logits / temperature, dim=-1)
    if log_probs.isnan().any():
        raise FloatingPointError(f"logits: the policy's logits / {temperature} hold nan or inf, so "
                                 f"there is no distribution to sample from")
    cdf = log_probs.double().exp().cumsum(-1)
    cdf /= cdf[:, -1:].clone()  # so that the last entry is exactly 1, above every uniform number
    chosen = torch.searchsorted(cdf, uniforms[:, None], right=True)
    return chosen.squeeze(1), log_probs.gather(1, chosen).squeeze(1)


def check_logits(policy, logits: object, tokens: Tensor, ends: Tensor, cached: bool) -> None:
    """TypeError or ValueError unless a policy has returned floating-point numbers (B, T, V) for
    tokens (B, T), or (B, 1, V), those of the last place, with a cache; V more than each end."""
    kind, (batch, width) = type(policy).__name__, tokens.shape
    if not isinstance(logits, Tensor):
        raise TypeError(f"policy: {kind}.forward returned a {type(logits).__name__}, must be a "
                        f"tensor of logits (B, T, V)")
    widths = (width, 1) if cached else (width,)
    if logits.dim() != 3 or len(logits) != batch or logits.shape[1] not in widths:
        raise ValueError(f"policy: {kind}.forward returned shape {tuple(logits.shape)} for tokens "
                         f"({batch}, {width}), must be ({batch}, {width}, V)")
    if not logits.is_floating_point():
        raise ValueError(f"policy: {kind}.forward returned {logits.dtype}, must be a "
                         f"floating-point dtype")
    if ends.max() >= logits.shape[2]:
        raise ValueError(f"policy: returned logits of {logits.shape[2]} tokens, must be more than "
                         f"eos_id, {ends.max()}, so that a completion can end")


def check_sampling(policy, prompts, group_size, max_new_tokens,
                   temperature) -> tuple[int, int, float]:
    """The last three as Python's own numbers. ValueError with the argument's name if
    ``sample_groups`` cannot use these."""
    wrong = prompts if isinstance(prompts, str) or not hasattr(prompts, "__len__") else next(
        (p for p in prompts if isinstance(p, str) or not hasattr(p, "__len__")), None)
    if wrong is not None:
        raise TypeError(f"prompts: got {wrong!r}, must be lists of token ids, one for each prompt "
                        f"(of a text: [task.tokenizer.encode(text)])")
    if len(prompts) == 0 or any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("prompts: got none, or an empty one; allowed is one or more, each of one "
                         "token or more")
    known, largest = vocabulary_of(policy), max(max(prompt) for prompt in prompts)
    if known is not None and largest >= known:
        raise ValueError(f"prompts: got token {int(largest)}, must be below {known}, the number of "
                         f"tokens that the policy knows")
    return (check_whole("group_size", group_size, 1),
            check_whole("max_new_tokens", max_new_tokens, 1),
            check_number("temperature", temperature, least=0))
