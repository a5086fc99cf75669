"""Sampling groups of completions, and scoring them again under a policy.

Left out of production engines: paged memory, continuous batching of new prompts, top-p and
top-k (they would make the sampled distribution differ from the one whose log-probs we keep).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from grpo_lib.fast.packing import pack
from grpo_lib.policy import Policy, token_log_probs
from grpo_lib.support.checks import check_number, check_whole, settle
from grpo_lib.support.modules import eval_mode, in_eval_mode, unwrapped, vocabulary_of
from grpo_lib.tokenizer import EOS, PAD, pad

DROP_SHARE = 0.1  # finished rows are dropped once they are this share of the rows in work


@dataclass(frozen=True)
class Rollouts:
    """N prompts with G completions each; row n * G + g is completion g of prompt n.

    tokens          (N*G, P+T)  prompts, left-padded to P tokens, then completions
    prompt_mask     (N*G, P)    True on prompt tokens, False on padding
    mask            (N*G, T)    True on the tokens that count, those the policy chose; up to and
                                including end-of-sequence
    log_probs       (N*G, T)    of the sampled tokens, from sampling; 0 where mask is False
    finished        (N*G,)      whether end-of-sequence came before max_new_tokens
    attention_mask  (N*G, T)    True on the completion tokens that later ones attend to, not on
                                padding; None: all up to the last that counts

    **Several turns.** A tool's answer, or an environment's, stands inside the completion and the
    policy reads it, but did not choose it: ``mask`` is False there, ``attention_mask`` True. So it
    is attended to in scoring and left out of loss, advantages, KL, entropy and lengths, and the
    verifier is not shown it. Sample a turn, write the answer behind it, and sample the next:

    >>> import torch
    >>> from grpo_lib.policy import TinyPolicy
    >>> policy, generator = TinyPolicy(12, 8), torch.Generator().manual_seed(0)
    >>> first = sample_groups(policy, [[3, 4]], 2, max_new_tokens=4, generator=generator)
    >>> answer = torch.tensor([[7, 8]] * 2)  # of the tool, one for each completion
    >>> read = torch.cat((first.tokens, answer), 1)
    >>> texts = [row[seen].tolist() for row, seen in zip(read, torch.cat(
    ...     (first.prompt_mask, first.attended, torch.ones_like(answer) > 0), 1))]
    >>> then = sample_groups(policy, texts, 1, max_new_tokens=4, generator=generator)
    >>> both = first.followed_by(answer, then)
    >>> both.mask.shape == both.attention_mask.shape == both.completions.shape
    True
    >>> bool((~both.mask[:, 4:6]).all() and both.attention_mask[:, 4:6].all())
    True
    >>> torch.allclose(completion_log_probs(policy, both), both.log_probs)
    True

    A sampler that does this is given to ``GRPOTrainer(sampler=)``.

    ValueError: an attention_mask of another shape than mask, or 0 on a token that counts.
    """

    tokens: Tensor
    prompt_mask: Tensor
    mask: Tensor
    log_probs: Tensor
    finished: Tensor
    group_size: int
    temperature: float
    attention_mask: Tensor | None = None

    def __post_init__(self):
        settle(self, mask=self.mask != 0, prompt_mask=self.prompt_mask != 0)  # numbers too
        if self.attention_mask is None:
            return
        settle(self, attention_mask=self.attention_mask != 0)
        if self.attention_mask.shape != self.mask.shape:
            raise ValueError(f"attention_mask: got shape {tuple(self.attention_mask.shape)}, must "
                             f"be that of mask, {tuple(self.mask.shape)}")
        if (self.mask & ~self.attention_mask).any():
            raise ValueError("attention_mask: got 0 on a token that counts, must be 1 on each of "
                             "them")

    @property
    def attended(self) -> Tensor:
        """Which completion tokens are there, for later ones to attend to: bool (N*G, T)."""
        return up_to_last(self.mask) if self.attention_mask is None else self.attention_mask

    @property
    def prompt_length(self) -> int:
        return self.prompt_mask.shape[1]

    @property
    def completions(self) -> Tensor:
        """The completion tokens (N*G, T)."""
        return self.tokens[:, self.prompt_length :]

    @property
    def lengths(self) -> Tensor:
        """Tokens that count in each completion, end-of-sequence counted: (N*G,), float32."""
        return self.mask.sum(1).float()

    def select(self, rows: Tensor) -> Rollouts:
        """Some rows, cut after the last column in which a token of theirs counts, for a
        minibatch; their groups may be incomplete."""
        used = int(up_to_last(self.mask[rows]).any(0).sum().clamp(min=1))
        seen = None if self.attention_mask is None else self.attention_mask[rows][:, :used]
        return replace(self, tokens=self.tokens[rows][:, : self.prompt_length + used],
                       prompt_mask=self.prompt_mask[rows], mask=self.mask[rows][:, :used],
                       log_probs=self.log_probs[rows][:, :used], finished=self.finished[rows],
                       attention_mask=seen)

    def to(self, device: torch.device | str) -> Rollouts:
        """The same on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in moved.items()
                                if isinstance(value, Tensor)})

    def scored_by(self, policy: Policy, rows_at_once: int | None = None) -> Rollouts:
        """The same completions with the log-probs of another policy."""
        with torch.no_grad():
            return replace(self, log_probs=completion_log_probs(policy, self, rows_at_once))

    @staticmethod
    def join(parts: Sequence[Rollouts]) -> Rollouts:
        """Several batches of one group size and temperature as one, padded to the longest."""
        if len(parts) == 1:
            return parts[0]
        if len({(part.group_size, part.temperature) for part in parts}) != 1:
            raise ValueError("parts: got different group sizes or temperatures, allowed is one or "
                             "more rollouts of the same")
        width, used = (max(getattr(part, name).shape[1] for part in parts)
                       for name in ("prompt_mask", "mask"))

        def stack(pick, left=0, right=0, fill=0):
            return torch.cat([F.pad(pick(part), (left - part.prompt_length if left else 0,
                                                 right - part.mask.shape[1] if right else 0),
                                    value=fill) for part in parts])

        given = any(part.attention_mask is not None for part in parts)
        return replace(parts[0], tokens=stack(lambda p: p.tokens, width, used, PAD),
                       prompt_mask=stack(lambda p: p.prompt_mask, width),
                       mask=stack(lambda p: p.mask, 0, used),
                       log_probs=stack(lambda p: p.log_probs, 0, used),
                       finished=torch.cat([part.finished for part in parts]),
                       attention_mask=stack(lambda p: p.attended, 0, used) if given else None)

    def followed_by(self, answer: Tensor, then: Rollouts) -> Rollouts:
        """This turn, an answer to it that the policy reads (N*G, A), and its next turn: ``then``
        is sampled in groups of 1 from these rows' texts, in their order."""
        nothing = torch.zeros_like(answer, dtype=torch.bool)

        def beside(name: str, between: Tensor) -> Tensor:
            return torch.cat((getattr(self, name), between, getattr(then, name)), 1)

        return replace(self, tokens=torch.cat((self.tokens, answer, then.completions), 1),
                       mask=beside("mask", nothing), finished=then.finished,
                       log_probs=beside("log_probs", nothing.to(self.log_probs.dtype)),
                       attention_mask=beside("attended", ~nothing))


def up_to_last(mask: Tensor) -> Tensor:
    """The tokens of each row up to the last that counts, the gaps between included: bool (B, T)."""
    return mask.flip(1).cumsum(1).flip(1) > 0


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

    Each prompt is encoded once and shared by its group; a finished row stops costing. The policy
    is in eval mode meanwhile; a compiled one, or one of several processes', is called without its
    wrapper (rows and columns change from token to token).
    ``use_cache=False`` encodes everything again for every token: same result, slowly.
    ``eos_id``: the token that ends a completion, or several. ``part=(k, n)``: of n nearly equal
    parts of the prompts only the k-th, from 0, with the tokens that it has in the whole.
    """
    policy = unwrapped(policy)
    group_size, max_new_tokens, temperature = check_sampling(policy, prompts, group_size,
                                                             max_new_tokens, temperature)
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    uniforms = torch.rand(len(prompts) * group_size, max_new_tokens, dtype=torch.float64,
                          generator=generator)
    chosen = shard(len(prompts), part)
    uniforms = uniforms[chosen.start * group_size : chosen.stop * group_size].to(device)
    prompt_tokens, prompt_mask = (t[chosen].to(device) for t in pad(prompts, "left"))
    batch, width = len(uniforms), prompt_tokens.shape[1]
    ends = torch.tensor([eos_id] if isinstance(eos_id, int) else list(eos_id), device=device)

    cache = policy.new_cache(len(prompt_tokens), width + max_new_tokens) if use_cache else None
    logits = policy(prompt_tokens, prompt_mask, cache)
    check_logits(policy, logits, prompt_tokens, cache is not None)
    if ends.max() >= logits.shape[2]:
        raise ValueError(f"policy: returned logits of {logits.shape[2]} tokens, must be more than "
                         f"eos_id, {ends.max()}, so that a completion can end")
    logits = logits[:, -1].repeat_interleave(group_size, 0)
    if cache is not None:
        cache = cache.repeat(group_size, width + max_new_tokens)
    prompt_tokens, prompt_mask = (t.repeat_interleave(group_size, 0)
                                  for t in (prompt_tokens, prompt_mask))

    completions = torch.full((batch, max_new_tokens), PAD, device=device)
    log_probs = torch.zeros(batch, max_new_tokens, dtype=logits.dtype, device=device)
    rows = torch.arange(batch, device=device)  # the rows in work, a few of them ended
    ended = torch.zeros(batch, dtype=torch.bool, device=device)  # of the rows in work
    for step in range(max_new_tokens):
        chosen, log_probs[rows, step] = choose(logits, uniforms[rows, step], temperature)
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
        if cache is not None:
            logits = policy(chosen[:, None], None, cache)[:, -1]
        else:
            seen = torch.cat((prompt_tokens[rows], completions[rows, : step + 1]), 1)
            seen_mask = torch.cat((prompt_mask[rows], torch.ones_like(seen[:, width:])), 1)
            logits = policy(seen, seen_mask)[:, -1]
    completions, log_probs = completions[:, : step + 1], log_probs[:, : step + 1]
    is_end = torch.isin(completions, ends)
    after = is_end.cumsum(1) > is_end  # what a row in work drew after its end
    return Rollouts(torch.cat((prompt_tokens, completions.masked_fill(after, PAD)), 1),
                    prompt_mask, ~after, log_probs.masked_fill(after, 0.0),
                    is_end.any(1), group_size, temperature)


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


def choose(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
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


def completion_outputs(model: Callable, rollouts: Rollouts) -> Tensor:
    """What a model says just before each completion token: (N*G, T, ...).

    The one place where the shift by one is made: the token in column P + t is scored by the
    output at column P + t - 1, the last place that has not seen it. Where padding stands inside
    completions (``attention_mask``), it is moved behind them first.
    """
    there = rollouts.attended
    if rollouts.attention_mask is not None and (there[:, 1:] & ~there[:, :-1]).any():
        closed, back = without_gaps(rollouts)
        return completion_outputs(model, closed)[torch.arange(len(back))[:, None], back]
    mask = torch.cat((rollouts.prompt_mask, there), 1).long()
    with eval_mode(model):
        if getattr(unwrapped(model), "packs", False):  # leaves out padding (packing)
            return model(rollouts.tokens, mask, None,
                         pack(rollouts.tokens, mask, rollouts.prompt_length))
        return model(rollouts.tokens[:, :-1], mask[:, :-1])[:, rollouts.prompt_length - 1 :]


def without_gaps(rollouts: Rollouts) -> tuple[Rollouts, Tensor]:
    """The completions with all padding behind them, cut to the longest, and where each token
    stands now: (N*G, T)."""
    there = rollouts.attended
    every, width = (~there).long().argsort(dim=1, stable=True), int(there.sum(1).max())
    order = every[:, :width]
    tokens = torch.cat((rollouts.tokens[:, : rollouts.prompt_length],
                        rollouts.completions.gather(1, order)), 1)
    return replace(rollouts, tokens=tokens, mask=rollouts.mask.gather(1, order),
                   log_probs=rollouts.log_probs.gather(1, order),
                   attention_mask=there.gather(1, order)), every.argsort(1).clamp(max=width - 1)


def completion_logits(policy: Policy, rollouts: Rollouts) -> Tensor:
    """Logits / temperature that score each completion token: (N*G, T, V)."""
    if rollouts.temperature <= 0:
        raise ValueError(f"rollouts: sampled at temperature {rollouts.temperature}; only a "
                         f"temperature above 0 has log-probs to score")
    return completion_outputs(policy, rollouts) / rollouts.temperature


def completion_log_probs(policy: Policy, rollouts: Rollouts,
                         rows_at_once: int | None = None) -> Tensor:
    """log pi of every completion token under ``policy``: (N*G, T), 0 where mask is 0.

    Differentiable. Under the policy that sampled them it equals ``rollouts.log_probs``.
    ``rows_at_once``: so many rows go through the policy together (None: all), which takes less
    memory where no gradient is kept.
    """
    if rows_at_once is not None:
        rows_at_once = check_whole("rows_at_once", rows_at_once, 1)
        width = rollouts.mask.shape[1]
        rows = torch.arange(len(rollouts.mask), device=rollouts.mask.device).split(rows_at_once)
        parts = [completion_log_probs(policy, rollouts.select(some)) for some in rows]
        return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])
    log_probs = token_log_probs(completion_logits(policy, rollouts), rollouts.completions)
    return log_probs.masked_fill(~rollouts.mask, 0.0)


def offset_log_probs(policy: Policy, rollouts: Rollouts, offset: int) -> Tensor:
    """log pi of every completion token by the logits ``offset`` columns away: (N*G, T).

    The token in column c is scored by the logits at column c + offset. Offset -1 is right and
    equals ``completion_log_probs``; every other is a mistake to look at. 0 where mask is 0;
    nan where there is no such column.
    """
    width, start = rollouts.tokens.shape[1], rollouts.prompt_length
    offset = check_whole("offset", offset, -start, f" to {width - start}", most=width - start)
    seen_mask = torch.cat((rollouts.prompt_mask, rollouts.attended), 1).long()
    with eval_mode(policy):
        logits = policy(rollouts.tokens, seen_mask) / rollouts.temperature
    logits = logits[:, start + offset :][:, : width - start]
    scored = rollouts.completions[:, : logits.shape[1]]
    missing = logits.new_full((len(logits), width - start - logits.shape[1]), torch.nan)
    log_probs = torch.cat((token_log_probs(logits, scored), missing), 1)
    return log_probs.masked_fill(~rollouts.mask, 0.0)


def check_logits(policy, logits: object, tokens: Tensor, cached: bool) -> None:
    """TypeError or ValueError unless a policy has returned floating-point numbers (B, T, V) for
    tokens (B, T), or (B, 1, V), those of the last place, with a cache."""
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
