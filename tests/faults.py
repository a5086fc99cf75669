"""Would the tests notice? Deliberate faults in the maths, each of which must turn them red.

    python tests/faults.py             all of them, one after the other (ten minutes)
    python tests/faults.py NAME ...    some
    python tests/faults.py --list      their names

A fault is a text of a file and a wrong text in its place. It is put into a copy of the
repository, never into the repository itself; there the tests that should notice run first,
and only if they stay green all others. Exit status: 0 if every fault was noticed, 1 if one
survived, 2 if an entry is out of date or its test is red without the fault too.

To add one: a line (name, old text, wrong text) in ``FAULTS`` below its file; a fourth
element names the tests to run first, where they are not those of its file.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
COPIED = ("grpo_lib", "tests", "benchmarks", "notebooks", "docs", "conftest.py", "pyproject.toml",
          "README.md", "LICENSE", "requirements.txt")
# All others: not the list's own tests, which see at once that a text has changed.
OTHERS = ("tests", "--ignore=tests/test_faults.py", "--ignore=tests/browser",
          "-m", "not gpu and not browser and not slow")
# A fork of a process that has loaded what is slow to load, where there is such a thing.
PROCESSES = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
SLOW_TO_LOAD = ["pytest", "torch", "hypothesis", "matplotlib.figure", "ipywidgets"]
LONGEST = 600  # seconds; a fault that makes the tests hang has been noticed


class Fault(NamedTuple):
    """``new`` in place of ``old`` in ``file``; ``tests`` are pytest's arguments."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


class OutOfDate(Exception):
    """An entry of the list does not fit the repository, or proves nothing about it."""


def faults_in(file: str, tests: str, *entries: tuple[str, ...]) -> list[Fault]:
    """The faults of one file; ``tests`` run first for those that name none of their own."""
    return [Fault(name, file, old, new, tuple(shlex.split((own or [tests])[0])))
            for name, old, new, *own in entries]


FAULTS = [
    *faults_in(
        "grpo_lib/advantages.py", "tests/test_advantages.py",
        ("advantage-sign", "rewards - rewards.mean(1, keepdim=True)",
         "rewards.mean(1, keepdim=True) - rewards"),
        ("informative-share-all-right-only", "1 - p**group_size - (1 - p) ** group_size",
         "1 - p**group_size"),
        ("informative-share-of-one-less", "1 - p**group_size - (1 - p) ** group_size",
         "1 - p**(group_size - 1) - (1 - p) ** (group_size - 1)"),
        ("noise-biased", "noise = estimates.var(1)", "noise = estimates.var(1, correction=0)"),
        ("noise-across-problems", "noise = estimates.var(1)", "noise = estimates.var(0)"),
        ("signal-keeps-the-noise", "- noise / estimates.shape[1]", ""),
        ("mean-over-prompts", "rewards - rewards.mean(1, keepdim=True)",
         "rewards - rewards.mean(0, keepdim=True)"),
        ("mean-over-the-batch", "rewards - rewards.mean(1, keepdim=True)",
         "rewards - rewards.mean()"),
        ("median-for-mean", "rewards - rewards.mean(1, keepdim=True)",
         "rewards - rewards.median(1, keepdim=True).values"),
        ("batch-baseline-of-the-group", "advantages = rewards - rewards.mean()\n",
         "advantages = rewards - rewards.mean(1, keepdim=True)\n"),
        ("batch-baseline-without-a-mean", "advantages = rewards - rewards.mean()\n",
         "advantages = rewards\n"),
        ("mean-scale-of-the-batch", "mean = rewards.mean(1, keepdim=True)",
         "mean = rewards.mean()"),
        ("mean-scale-without-eps", "(advantages / (mean + std_eps))", "(advantages / mean)"),
        ("mean-scale-multiplies", "(advantages / (mean + std_eps))",
         "(advantages * (mean + std_eps))"),
        ("token-reward-at-the-first-token", "last[:, None], rewards[:, None]",
         "0 * last[:, None], rewards[:, None]"),
        ("token-reward-one-late", "(mask.sum(1).long() - 1).clamp(min=0)",
         "mask.sum(1).long().clamp(max=mask.shape[1] - 1)"),
        ("kl-added-to-the-reward", "else -beta * kl", "else beta * kl"),
        ("kl-in-reward-without-beta", "else -beta * kl", "else -kl"),
        ("kl-of-padding-in-reward", "kl.masked_fill(mask == 0, 0.0)\n    last",
         "kl\n    last"),
        ("reward-of-an-empty-row", "rewards[:, None].to(mask.dtype)) * mask",
         "rewards[:, None].to(mask.dtype))"),
        ("gae-sign-of-the-value", "gamma * after - values) * mask",
         "gamma * after + values) * mask"),
        ("gae-value-undiscounted", "rewards + gamma * after - values",
         "rewards + after - values"),
        ("gae-without-lambda", "gamma * lam * running", "gamma * running"),
        ("gae-without-gamma", "gamma * lam * running", "lam * running"),
        ("gae-forwards", "for t in reversed(range(delta.shape[1])):",
         "for t in range(delta.shape[1]):"),
        ("gae-next-value-is-its-own", "torch.cat((values[:, 1:],", "torch.cat((values[:, :-1],"),
        ("gae-values-after-the-end", "values = values * mask\n    after", "after"),
        ("whiten-biased", "/ (tokens - 1).clamp(min=1)", "/ tokens.clamp(min=1)"),
        ("whiten-by-the-variance", "(variance + 1e-8).rsqrt()", "1 / (variance + 1e-8)"),
        ("whiten-without-mean", "return (values - mean) *", "return values *"),
        ("whiten-over-padding", "mean = (values * mask).sum() / tokens.clamp(min=1)",
         "mean = values.mean()"),
        ("overlong-is-rewarded", "(max_length - cache - lengths) / cache",
         "(lengths - max_length + cache) / cache"),
        ("overlong-without-a-floor", ".clamp(-1.0, 0.0)", ".clamp(max=0.0)"),
        ("overlong-reward-for-the-short", ".clamp(-1.0, 0.0)", ".clamp(min=-1.0)"),
        ("overlong-all-at-once", "(max_length - cache - lengths) / cache",
         "(max_length - cache - lengths)"),
        ("baseline-none-ignored", 'rewards if baseline == "none" else rewards -', "rewards -"),
        ("group-std-biased", "rewards.std(1, keepdim=True)",
         "rewards.std(1, keepdim=True, correction=0)"),
        ("batch-std-biased", "(rewards.std() + std_eps)",
         "(rewards.std(correction=0) + std_eps)"),
        ("std-over-prompts", "rewards.std(1, keepdim=True)", "rewards.std(0, keepdim=True)"),
        ("std-of-the-advantages", "(rewards.std() + std_eps)", "(advantages.std() + std_eps)"),
        ("variance-for-std", "rewards.std(1, keepdim=True)", "rewards.var(1, keepdim=True)"),
        ("std-eps-left-out", "(rewards.std(1, keepdim=True) + std_eps)",
         "rewards.std(1, keepdim=True).clamp(min=1e-30)"),
        ("std-eps-inside-the-root", "(rewards.std(1, keepdim=True) + std_eps)",
         "(rewards.var(1, keepdim=True) + std_eps).sqrt()"),
        ("leave-one-out-upside-down", "(group_size / (group_size - 1))",
         "((group_size - 1) / group_size)"),
        ("leave-one-out-wrong-factor", "(group_size / (group_size - 1))",
         "((group_size + 1) / group_size)"),
        ("leave-one-out-ignored", 'if baseline == "leave_one_out":', "if False:"),
        ("zero-variance-guard-left-out", "advantages.masked_fill(~spread[:, None], 0.0)",
         "advantages"),
        ("zero-variance-guard-exact", "8 * torch.finfo", "0 * torch.finfo"),
        ("zero-variance-guard-greedy", "8 * torch.finfo", "1e6 * torch.finfo"),
        ("zero-variance-over-the-batch", "rewards.amax(1) - rewards.amin(1)",
         "(rewards.amax() - rewards.amin()).expand(len(rewards))"),
        ("zero-variance-guard-without-baseline",
         "if by_group:\n        advantages = advantages.masked",
         "if True:\n        advantages = advantages.masked"),
    ),
    *faults_in(
        "grpo_lib/objective.py",
        "tests/test_objective.py tests/test_surrogates.py tests/test_corrections.py",
        ("ratio-upside-down",
         "RATIOS)\n    difference = (log_probs - old_log_probs)",
         "RATIOS)\n    difference = (old_log_probs - log_probs)"),
        ("ratio-of-padding",
         "RATIOS)\n    difference = (log_probs - old_log_probs).masked_fill(mask == 0, 0.0)",
         "RATIOS)\n    difference = (log_probs - old_log_probs)"),
        ("ratio-is-a-difference", "return difference.exp()", "return 1 + difference"),
        ("sequence-ratio-of-the-sum", 'if ratio != "sequence_sum":', "if False:"),
        ("sum-ratio-of-the-mean", 'if ratio != "sequence_sum":', "if True:"),
        ("sequence-ratio-counts-padding",
         "row = row / mask.sum(1, keepdim=True).clamp(min=1)", "row = row / mask.shape[1]"),
        ("sequence-ratio-arithmetic-mean", "row = difference.sum(1, keepdim=True)",
         "row = (difference.exp() * mask).sum(1, keepdim=True)"),
        ("sequence-ratio-ignored", 'if ratio == "token":', 'if ratio != "sequence_sum":'),
        ("sequence-token-without-gradient", "row.detach() + difference - difference.detach()",
         "row.detach() + 0 * difference"),
        ("sequence-token-through-the-row", "row.detach() + difference - difference.detach()",
         "row + difference - difference.detach()"),
        ("sequence-token-ignored", 'if ratio == "sequence_token":', "if False:"),
        ("cispo-weight-not-detached", "ratio.detach().clamp(1 - epsilon, 1 + epsilon_high) *",
         "ratio.clamp(1 - epsilon, 1 + epsilon_high) *"),
        ("cispo-weight-not-capped", "ratio.detach().clamp(1 - epsilon, 1 + epsilon_high) *",
         "ratio.detach() *"),
        ("cispo-without-a-weight", "ratio.detach().clamp(1 - epsilon, 1 + epsilon_high) *",
         "1 *"),
        ("cispo-cap-is-epsilon-high", "ratio.detach().clamp(1 - epsilon, 1 + epsilon_high) *",
         "ratio.detach().clamp(1 - epsilon, epsilon_high) *"),
        ("cispo-without-log-probs", "1 + epsilon_high) * advantages * log_probs",
         "1 + epsilon_high) * advantages * ratio"),
        ("sapo-temperatures-swapped", "advantages > 0, temperature_pos, temperature_neg",
         "advantages > 0, temperature_neg, temperature_pos"),
        ("sapo-gate-not-centred", "torch.sigmoid(tau * (ratio - 1))",
         "torch.sigmoid(tau * ratio)"),
        ("sapo-slope", "* 4 / tau", "* 4"),
        ("gmpo-clips-the-other-side", "clipped = torch.where(advantages > 0, difference.clamp(max",
         "clipped = torch.where(advantages < 0, difference.clamp(max"),
        ("gmpo-never-clips-above", "difference.clamp(max=math.log1p(epsilon_high))",
         "difference"),
        ("gmpo-never-clips-below", "difference.clamp(min=low))", "difference)"),
        ("gmpo-bound-is-of-the-log", "low = math.log1p(-epsilon)", "low = -epsilon"),
        ("gmpo-is-a-product",
         "* (clipped.sum(1, keepdim=True)\n                         "
         "/ mask.sum(1, keepdim=True).clamp(min=1)).exp()",
         "* clipped.sum(1, keepdim=True).exp()"),
        ("gmpo-ratio-of-padding",
         "difference = (log_probs - old_log_probs).masked_fill(mask == 0, 0.0)\n    clipped",
         "difference = (log_probs - old_log_probs)\n    clipped"),
        ("log-prob-surrogate-sign", "gain = advantages * log_probs",
         "gain = -advantages * log_probs"),
        ("log-prob-surrogate-of-the-ratio", "gain = advantages * log_probs", "gain = advantages"),
        ("own-surrogate-gets-the-old", "gain = surrogate(log_probs, r, advantages)",
         "gain = surrogate(old_log_probs, r, advantages)"),
        ("off-policy-mask-ignored",
         "gain = gain * off_policy_mask(log_probs.detach(), sampler, advantages, mask,\n"
         "                                      off_policy_mask_threshold)", "pass"),
        ("top-entropy-mask-ignored", "gain = gain * counted", "pass"),
        ("gmpo-counts-every-token", "advantages, counted, epsilon, epsilon_high)",
         "advantages, mask, epsilon, epsilon_high)"),
        ("sampler-weights-ignored", "gain = gain * sampler_weights(",
         "_ = gain * sampler_weights("),
        ("entropy-bonus-is-a-penalty", "loss = loss - entropy_coef", "loss = loss + entropy_coef"),
        ("entropy-bonus-over-everything", "aggregate(entropies, counted,",
         "aggregate(entropies, mask,"),
        ("unbounded-surrogates-clip",
         'bounded = surrogate in ("clip", "cispo", "gmpo")', "bounded = True"),
        ("surrogate-max-for-min", "torch.minimum(unclipped", "torch.maximum(unclipped"),
        ("surrogate-without-min",
         "return torch.minimum(unclipped * advantages, clipped * advantages)",
         "return clipped * advantages"),
        ("surrogate-never-clipped",
         "return torch.minimum(unclipped * advantages, clipped * advantages)",
         "return unclipped * advantages"),
        ("epsilon-high-ignored", "ratio.clamp(1 - epsilon, 1 + epsilon_high)",
         "ratio.clamp(1 - epsilon, 1 + epsilon)"),
        ("epsilon-high-on-both-sides", "ratio.clamp(1 - epsilon, 1 + epsilon_high)",
         "ratio.clamp(1 - epsilon_high, 1 + epsilon_high)"),
        ("epsilon-high-of-zero-is-none",
         "    high = epsilon if epsilon_high is None else epsilon_high",
         "    high = epsilon_high or epsilon"),
        ("epsilon-high-of-zero-is-none-in-stats",
         "epsilon_high = epsilon if epsilon_high is None else epsilon_high\n    return",
         "epsilon_high = epsilon_high or epsilon\n    return"),
        ("clip-above-only", "ratio.clamp(1 - epsilon, 1 + epsilon_high)",
         "ratio.clamp(max=1 + epsilon_high)"),
        ("clip-below-only", "ratio.clamp(1 - epsilon, 1 + epsilon_high)",
         "ratio.clamp(min=1 - epsilon)"),
        ("clip-by-quotient", "ratio.clamp(1 - epsilon, 1 + epsilon_high)",
         "ratio.clamp(1 / (1 + epsilon), 1 + epsilon_high)"),
        ("delta-ignored", "ratio if delta is None else ratio.clamp(max=delta)", "ratio"),
        ("delta-caps-from-below", "ratio.clamp(max=delta)", "ratio.clamp(min=delta)"),
        ("delta-caps-both-branches", "clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)",
         "clipped = unclipped.clamp(1 - epsilon, delta or 1 + epsilon_high)"),
        ("kl-direction", "d = ref_log_probs - log_probs", "d = log_probs - ref_log_probs"),
        ("k1-sign", "return -d", "return d"),
        ("k2-without-half", "d.square() / 2 if", "d.square() if"),
        ("k2-absolute", "d.square() / 2 if", "d.abs() if"),
        ("k3-sign-of-d", "d.expm1() - d", "d.expm1() + d"),
        ("k3-without-d", "d.expm1() - d", "d.expm1()"),
        ("k3-of-the-other-direction", "d.expm1() - d", "(-d).expm1() + d"),
        ("padding-counts", "per_token.masked_fill(mask == 0, 0.0) * mask", "per_token"),
        ("sequence-mean-over-padding", "return (values.sum(1) / mask.sum(1).clamp(min=1)).mean()",
         "return values.mean(1).mean()"),
        ("sequence-mean-over-columns",
         "return (values.sum(1) / mask.sum(1).clamp(min=1)).mean()",
         "return (values.sum(0) / mask.sum(0).clamp(min=1)).mean()"),
        ("sequence-sum-over-tokens", "return values.sum() / mask.shape[0]\n",
         "return values.sum() / mask.sum().clamp(min=1)\n"),
        ("sequence-sum-without-batch", "return values.sum() / mask.shape[0]\n",
         "return values.sum()\n"),
        ("nonempty-mean-counts-the-empty", ".sum() / rows_with_tokens(mask)",
         ".sum() / mask.shape[0]"),
        ("nonempty-weights-count-the-empty", "/ rows_with_tokens(counts)", "/ len(mask)"),
        ("sequence-mean-is-a-sum", "mask.sum(1).clamp(min=1)).mean()",
         "mask.sum(1).clamp(min=1)).sum()"),
        ("empty-rows-leave-the-mean", "(values.sum(1) / mask.sum(1).clamp(min=1)).mean()",
         "(values.sum(1) / mask.sum(1))[mask.sum(1) > 0].mean()"),
        ("token-mean-over-padding", "values.sum() / mask.sum().clamp(min=1)", "values.mean()"),
        ("constant-by-the-longest-row", "(mask.shape[0] * max_length)", "mask.numel()"),
        ("constant-without-batch", "(mask.shape[0] * max_length)", "max_length"),
        ("constant-without-length", "(mask.shape[0] * max_length)", "mask.shape[0]"),
        ("loss-sign", "policy_loss = -aggregate(", "policy_loss = aggregate("),
        ("kl-term-sign", "loss = loss + beta * aggregate", "loss = loss - beta * aggregate"),
        ("beta-ignored", "loss + beta * aggregate", "loss + aggregate"),
        ("kl-choice-ignored", "ref.masked_fill(mask == 0, 0.0), kl)",
         "ref.masked_fill(mask == 0, 0.0))"),
        ("kl-term-without-gradient",
         "kl_estimate(log_probs, ref.masked_fill(mask == 0, 0.0), kl)",
         "kl_estimate(log_probs.detach(), ref.masked_fill(mask == 0, 0.0), kl)"),
        ("kl-term-always-token-mean", "aggregate(distance, mask, aggregation, max_length)",
         'aggregate(distance, mask, "token_mean")'),
        ("kl-to-the-sampling-policy",
         "kl_estimate(log_probs, ref.masked_fill(mask == 0, 0.0), kl)",
         "kl_estimate(log_probs, old_log_probs, kl)"),
        ("old-policy-not-detached", "old_log_probs = old_log_probs.detach()",
         "old_log_probs = old_log_probs"),
        ("ratio-fully-detached", "r = importance_ratio(log_probs,",
         "r = importance_ratio(log_probs.detach(),"),
        ("advantages-not-detached", "advantages.detach().to(", "advantages.to("),
        ("reference-not-detached", "ref = ref_log_probs.detach()", "ref = ref_log_probs"),
        ("policy-loss-not-detached", "policy_loss, policy_loss.detach()",
         "policy_loss, policy_loss"),
        ("padding-poisons-the-gradient", "log_probs = log_probs.masked_fill(mask == 0, 0.0)",
         "log_probs = log_probs + 0"),
        ("advantages-along-columns", "advantages = advantages[:, None]",
         "advantages = advantages[None, :]"),
        ("clip-stats-low-side", "(advantages < 0) & (ratio < 1 - epsilon)",
         "(advantages > 0) & (ratio < 1 - epsilon)"),
        ("clip-stats-high-side", "(advantages > 0) & (ratio > 1 + epsilon_high)",
         "(advantages < 0) & (ratio > 1 + epsilon_high)"),
        ("clip-stats-epsilon-high-ignored", "(advantages > 0) & (ratio > 1 + epsilon_high)",
         "(advantages > 0) & (ratio > 1 + epsilon)"),
        ("clip-stats-without-sign", "(low | high).sum() / tokens",
         "(((ratio - 1).abs() > epsilon) & counts).sum() / tokens"),
        ("clip-stats-low-and-high-swapped", 'low.sum() / tokens, "clip_fraction_high": high',
         'high.sum() / tokens, "clip_fraction_high": low'),
        ("clip-stats-per-cell", "tokens = counts.sum().clamp(min=1)", "tokens = counts.numel()"),
        ("clip-stats-count-padding", "low, high = (where & counts", "low, high = (where"),
        ("clip-binds-at-the-edge", "(ratio < 1 - epsilon),", "(ratio <= 1 - epsilon),"),
        ("outside-counts-padding", "(ratio > 1 + epsilon_high)) & (mask > 0)",
         "(ratio > 1 + epsilon_high))"),
        ("outside-above-only", "outside = ((ratio < 1 - epsilon) |",
         "outside = ((ratio < -epsilon) |"),
        ("surrogate-gradient-unsigned", "(advantages * torch.ones_like(ratio))",
         "(advantages.abs() * torch.ones_like(ratio))"),
        ("surrogate-gradient-lower-side-flows", "blocked = low | high", "blocked = high"),
        ("surrogate-gradient-delta-ignored", "blocked = blocked | ((advantages < 0) & (ratio > "
         "delta))", "blocked = blocked | ((advantages < 0) & (ratio > 1e9))"),
        ("weights-of-padding", "counts / lengths.clamp(min=1) / len(mask)",
         "1 / lengths.clamp(min=1) / len(mask) + 0 * counts"),
        ("weights-forget-the-rows", "counts / lengths.clamp(min=1) / len(mask)",
         "counts / lengths.clamp(min=1)"),
        ("token-mean-weights-by-rows", "counts / lengths.sum().clamp(min=1)",
         "counts / counts.numel()"),
        ("constant-weights-by-the-batch", "return counts / (len(mask) * max_length)",
         "return counts / (len(mask) * mask.shape[1])"),
        ("corrected-kl-detached", "distance = r * distance", "distance = r.detach() * distance"),
        ("corrected-kl-upside-down", "distance = r * distance", "distance = distance / r"),
        ("ratio-min-of-padding", "everywhere.masked_fill(~counts, torch.inf).amin()",
         "everywhere.amin()"),
        ("ratio-max-of-padding", "everywhere.masked_fill(~counts, -torch.inf).amax()",
         "everywhere.amax()"),
        ("kl-stat-follows-kl", "kl_estimate(log_probs.detach(), ref), mask",
         "kl_estimate(log_probs.detach(), ref, kl), mask"),
        ("kl-stat-follows-aggregation", 'ref), mask, "token_mean")',
         "ref), mask, aggregation, max_length)"),
    ),
    *faults_in(
        "grpo_lib/algorithms.py", "tests/test_algorithms.py tests/test_training.py",
        ("config-epsilon-high-lost", "name in LOSS_CHOICES}",
         "name in LOSS_CHOICES if name != 'epsilon_high'}"),
        ("config-delta-lost", "name in LOSS_CHOICES}",
         "name in LOSS_CHOICES if name != 'delta'}"),
        ("config-beta-lost", "name in LOSS_CHOICES}",
         "name in LOSS_CHOICES if name != 'beta'}"),
        ("config-kl-lost", "name in LOSS_CHOICES}",
         "name in LOSS_CHOICES if name != 'kl'}"),
        ("config-ratio-lost", "name in LOSS_CHOICES}",
         "name in LOSS_CHOICES if name != 'ratio'}"),
        ("config-aggregation-lost", "name in LOSS_CHOICES}",
         "name in LOSS_CHOICES if name != 'aggregation'}"),
        ("config-use-bias-correction-kl-lost", "name in LOSS_CHOICES}",
         "name in LOSS_CHOICES if name != 'use_bias_correction_kl'}"),
        ("config-surrogate-lost", "name in LOSS_CHOICES}",
         "name in LOSS_CHOICES if name != 'surrogate'}"),
        ("config-entropy-coef-lost", "name in LOSS_CHOICES}",
         "name in LOSS_CHOICES if name != 'entropy_coef'}"),
        ("config-top-entropy-quantile-lost", "name in LOSS_CHOICES}",
         "name in LOSS_CHOICES if name != 'top_entropy_quantile'}"),
        ("config-off-policy-mask-threshold-lost", "name in LOSS_CHOICES}",
         "name in LOSS_CHOICES if name != 'off_policy_mask_threshold'}"),
        ("config-baseline-lost", "baseline=self.baseline, scale=self.scale",
         'baseline="mean", scale=self.scale'),
        ("config-scale-lost", "baseline=self.baseline, scale=self.scale",
         'baseline=self.baseline, scale="group"'),
        ("config-std-eps-lost", ",\n                                      std_eps=self.std_eps)",
         ")"),
        ("kl-in-reward-and-in-loss", 'options["beta"] = 0.0', "pass"),
        ("kl-in-reward-sign", "rewards - self.beta * distance.view_as(rewards)",
         "rewards + self.beta * distance.view_as(rewards)"),
        ("kl-in-reward-a-mean", "kl.masked_fill(mask == 0, 0.0).sum(1)",
         "kl.masked_fill(mask == 0, 0.0).mean(1)"),
        ("critic-without-values", "given, values, mask, self.gamma, self.gae_lambda)\n        else",
         "given, 0 * values, mask, self.gamma, self.gae_lambda)\n        else"),
        ("critic-gamma-lost", "result = gae(given, values, mask, self.gamma,",
         "result = gae(given, values, mask, 1.0,"),
        ("critic-lambda-lost", "result = gae(given, values, mask, self.gamma, self.gae_lambda)",
         "result = gae(given, values, mask, self.gamma)"),
        ("returns-without-values", "self.gae_lambda) + values * mask", "self.gae_lambda)"),
        ("whiten-ignored", "return whiten(result, mask) if self.whiten else result",
         "return result"),
        ("overlong-punishment-of-other-rows", "punishment.view_as(rewards)",
         "punishment.view(rewards.shape[::-1]).T"),
        ("overlong-punishment-ignored", "if self.overlong_share == 0:", "if True:"),
        ("overlong-share-of-nothing", "round(self.overlong_share * max_length)",
         "round((1 - self.overlong_share) * max_length)"),
        ("dapo-without-clip-higher", "epsilon_high=0.28, aggregation", "aggregation"),
        ("dr-grpo-with-std", 'source="2503.20783", scale="none"',
         'source="2503.20783", scale="group"'),
        ("rloo-with-the-mean", 'source="2402.14740", baseline="leave_one_out"',
         'source="2402.14740", baseline="mean"'),
        ("gspo-by-token", 'ratio="sequence", epsilon=3e-4', 'ratio="token", epsilon=3e-4'),
        ("maxrl-without-the-mean", 'source="2602.02710", scale="mean"',
         'source="2602.02710", scale="group"'),
    ),
    *faults_in(
        "grpo_lib/exercises/base.py", "tests/test_exercises.py",
        ("checker-recognises-the-first", "if self.does(found, frozenset([way])):", "if found:"),
        ("checker-knows-one-spelling", "return (self.name, *self.ways)", "return (self.name,)",
         "tests/test_exercises_judging.py"),
        ("checker-looks-at-one-case", "first = next((i for i, (a, b) in enumerate(zip(found, "
         "wanted))", "first = next((i for i, (a, b) in enumerate(zip(found[:1], wanted))"),
        ("checker-takes-half-precision", "if any(map(is_half, found)) and", "if False and",
         "tests/test_exercises_judging.py"),
        ("checker-asks-for-every-gradient", "            if self.gradient_asked:\n"
         "                raise", "            raise", "tests/test_exercises_judging.py"),
        ("checker-asks-for-no-gradient",
         "gradient = torch.zeros_like(leaf) if self.gradient_asked else None", "gradient = None",
         "tests/test_exercises_judging.py"),
        ("checker-gives-a-leaf", "passed[self.gradient_of] = leaf.clone()",
         "passed[self.gradient_of] = leaf", "tests/test_exercises_judging.py"),
        ("checker-takes-all-for-empty", "return code is not None and all(", "return True or all(",
         "tests/test_exercises_judging.py"),
        ("checker-takes-torch-for-the-learner",
         'last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]', "True",
         "tests/test_exercises_judging.py"),
        ("checker-raises", "except Exception as error:\n            return Verdict(",
         "except ZeroDivisionError as error:\n            return Verdict(",
         "tests/test_exercises_running.py"),
        ("question-without-tolerance", "abs(guess - self.answer) <= self.tolerance",
         "guess == self.answer"),
        ("curves-take-any-answer", "if guess in self.answers:", "if guess in self.shows:"),
    ),
    *faults_in(
        "grpo_lib/exercises/comparing.py", "tests/test_exercises.py",
        ("checker-ignores-gradients",
         "return close(a.gradient, b.gradient, (a.value.dtype, b.value.dtype), rtol, coarse)",
         "return True"),
        ("checker-takes-any-shape", "if a.shape != b.shape:\n        return False",
         "if a.shape != b.shape:\n        return a.numel() == b.numel()"),
        ("checker-knows-no-nan", "return torch.allclose(a.double(), b.double(), rtol=rtol, "
         "atol=atol, equal_nan=True)", "return torch.allclose(a.double(), b.double(), rtol=rtol, "
         "atol=atol)"),
        ("checker-cancels-no-input-change", "if isinstance(a, Tensor) and not torch.equal(",
         "if isinstance(a, Tensor) and torch.equal("),
        ("checker-names-the-wrong-argument", "zip(after, before), start=1)",
         "zip(after, before), start=0)"),
        ("checker-takes-a-list-for-nothing",
         "return torch.stack(list(parts)) if parts else torch.zeros(0)", "raise Unanswered"),
        ("checker-drops-imaginary-parts", "if value.is_complex():", "if False:",
         "tests/test_exercises_judging.py"),
        ("checker-shows-the-last-difference", "(~equal).flatten().long().argmax()",
         "equal.flatten().long().argmax()", "tests/test_exercises_judging.py"),
        ("checker-names-the-wrong-part", "        at -= count\n", "",
         "tests/test_exercises_judging.py"),
    ),
    *faults_in(
        "grpo_lib/exercises/running.py", "tests/test_exercises_running.py",
        ("checker-leaves-its-handler", "signal.signal(signal.SIGALRM, before)", "pass",
         "tests/test_exercises.py"),
        ("checker-moves-random-numbers", "    (torch.get_rng_state, torch.set_rng_state),\n", "",
         "tests/test_exercises.py"),
        ("checker-leaves-a-device", "torch.set_default_device(device)", "pass"),
        ("checker-prints-through", "contextlib.redirect_stdout(printed)",
         "contextlib.redirect_stdout(sys.__stdout__)", "tests/test_exercises.py"),
        ("checker-leaves-its-trace", "sys.settrace(trace)", "pass"),
        ("checker-lets-calls-pile-up", "sys.setrecursionlimit(DEEPEST)", "pass"),
    ),
    *faults_in(
        "grpo_lib/exercises/base.py", "tests/test_exercises.py",
        ("checker-points-at-its-own-line", "if frame.f_code.co_filename == cell",
         "if frame.f_code.co_filename != cell"),
        ("checker-calls-a-choice-a-mistake", "if mistake.legitimate:", "if False:"),
        ("repair-untouched-is-wrong", "if self.does(found, frozenset(self.faults)):", "if False:"),
        ("repair-half-mended-is-unknown",
         "for left in itertools.combinations(self.faults, len(self.faults) - 1):",
         "for left in ():"),
        ("repair-names-what-was-mended", "next(m for m in self.mistakes if m.name == left[0])",
         "next(m for m in self.mistakes if m.name not in left)"),
        ("repair-shows-nothing", "return replace(verdict, text=", "replace(verdict, text="),
    ),
    *faults_in(
        "grpo_lib/exercises/repairs.py", "tests/test_exercises.py",
        ("repair-founding-solution-unshifted",
         "def founding_loss(logits, tokens, old_log_probs, advantages, mask, epsilon):\n"
         "    log_probs = logits[:, :-1]",
         "def founding_loss(logits, tokens, old_log_probs, advantages, mask, epsilon):\n"
         "    log_probs = logits[:, 1:]"),
        ("repair-old-is-new-does-nothing", 'if old is None or "old is new" in faults:',
         "if old is None:"),
        ("repair-policy-does-not-count", "return Answer(value.double(), torch.cat(weights))",
         "return Answer(value.double())"),
        ("repair-k1-is-k3", 'if "k1" in faults:\n                penalty = -d',
         'if "k1" in faults:\n                penalty = d.exp() - d - 1'),
    ),
    *faults_in(
        "grpo_lib/environment.py", "tests/test_environment.py",
        ("wheels-from-the-network-too", 'source = ["--no-index", "-f", str(wheels)]',
         'source = ["-f", str(wheels)]'),
        ("wheels-of-an-empty-folder", 'if not any(folder.glob("*.whl")):', "if False:"),
        ("wheels-option-passed-on", "return folder, arguments[:at] + arguments[at + 2:]",
         "return folder, arguments"),
        ("wheels-with-sources", '"--only-binary=:all:", ', ""),
        ("environment-of-old-requirements",
         "stamp.read_bytes() == requirements.read_bytes():", "True:"),
    ),
    *faults_in(
        "docs/predictions.py", "tests/test_teaching.py",
        ("predictions-without-the-fold", "if fold and not said:", "if False:"),
        ("predictions-of-the-next-question", 'if kind == "heading" or "**Predict" in text:',
         'if kind == "heading":'),
    ),
    *faults_in(
        "docs/teaching/concept_quiz.md", "tests/test_teaching.py",
        ("quiz-biased-std", "- c. +1.50", "- c. +1.73"),
        ("quiz-wrong-letter", "| A5 | c |", "| A5 | a |"),
        ("quiz-prompt-counted", "| B7 | b |", "| B7 | c |"),
        ("quiz-k3-upside-down", "| A10 | c |", "| A10 | d |"),
        ("quiz-off-by-one", "| B6 | b |", "| B6 | c |"),
        ("quiz-choice-unexplained", "a: shifts twice; ", ""),
        ("quiz-unmarked-for-the-day", "**B12.** † ", "**B12.** "),
    ),
    *faults_in(
        "docs/teaching/plans.md", "tests/test_teaching.py",
        ("plan-a-minute-short", "| 9 | 1. From logits", "| 8 | 1. From logits"),
        ("plan-names-no-section", "| 2. Four quadrants | Four",
         "| 2. Five quadrants | Four"),
        ("plan-number-turned-round", "→ 18%.", "→ 81%."),
        ("day-break-it-for-nothing", "*9. Optional: break it* (9)",
         "*9. Optional: break it* (0)"),
    ),
    *faults_in(
        "notebooks/exercises.py", "tests/test_exercise_notebooks.py",
        ("solutions-elsewhere", 'f"{path.stem}_solutions.ipynb"', 'f"{path.stem}_answers.ipynb"'),
    ),
    *faults_in(
        "grpo_lib/algorithms.py", "tests/test_training.py tests/test_xray.py",
        ("truncated-completions-stay",
         "return mask * finished[:, None] if self.mask_truncated_completions else mask",
         "return mask"),
        ("finished-completions-go",
         "return mask * finished[:, None] if self.mask_truncated_completions else mask",
         "return mask * ~finished[:, None] if self.mask_truncated_completions else mask"),
    ),
    *faults_in(
        "grpo_lib/steering.py", "tests/test_steering.py",
        ("moves-a-step-late", "self.moves += [Move(trainer.step_count + 1, name,",
         "self.moves += [Move(trainer.step_count + 2, name,"),
        ("moves-are-not-taken", "                trainer.change(wanted)\n", ""),
        ("replay-a-step-late", "if m.step == trainer.step_count + 1}",
         "if m.step == trainer.step_count}"),
        ("back-keeps-later-moves", "self.moves = [m for m in self.moves if m.step <= step]",
         "pass"),
        ("back-keeps-later-settings", "self.wanted, self.error, self.note = then, None",
         "self.wanted, self.error, self.note = self.wanted, None"),
        ("reset-keeps-settings", "self.wanted = self.trainer.config\n", "pass\n"),
        ("checkpoints-on-a-full-disk-end-the-run",
         "except OSError as error:\n            self.note",
         "except ZeroDivisionError as error:\n            self.note"),
        ("interrupt-lets-it-run", "except KeyboardInterrupt:\n            self.pause()",
         "except KeyboardInterrupt:\n            pass"),
    ),
    *faults_in(
        "grpo_lib/training.py", "tests/test_steering.py",
        ("change-keeps-the-rate", 'group["lr"] = config.learning_rate', "pass"),
        ("change-keeps-the-algorithm", "self.config, self.algorithm = config, config.choices",
         "self.config = config"),
    ),
    *faults_in(
        "grpo_lib/xray.py", "tests/test_xray.py",
        ("xray-push-sign", "return -torch.autograd.grad(loss, leaf",
         "return torch.autograd.grad(loss, leaf"),
        ("xray-blocked-by-now", "could = push(without_kl, old) != 0",
         "could = push(without_kl, new) != 0"),
        ("xray-state-with-kl", "policy, whole = push(without_kl, new), push(algorithm, new)",
         "policy, whole = push(algorithm, new), push(algorithm, new)"),
        ("xray-padding-pushed", "(counted > 0) & could & (policy > 0)] = UP",
         "could & (policy >= 0)] = UP"),
        ("xray-before-is-after", '{"before the step": trainer.rollouts.log_probs,',
         '{"before the step": after,'),
    ),
    *faults_in(
        "grpo_lib/explorers/cockpit.py", "tests/test_explorers_cockpit.py",
        ("cockpit-marks-nothing", "marks=sorted({m.step for m in run.moves})", "marks=()"),
        ("cockpit-keeps-controls-at-back",
         "self.run.back(step)\n        self._show_settings()", "self.run.back(step)"),
        ("cockpit-hides-errors", 'self.say(f"not taken: {error}")', "pass"),
    ),
    *faults_in(
        "grpo_lib/explorers/what_if.py", "tests/test_explorers_token_xray.py",
        ("what-if-twice-the-same", "for pair in ((a, epsilon_a), (b, epsilon_b)))",
         "for pair in ((a, epsilon_a), (a, epsilon_b)))"),
    ),
    *faults_in(
        "grpo_lib/exercises/faulty.py", "tests/test_faulty.py",
        ("faulty-sign-is-right", "return rollouts, -advantages, ref",
         "return rollouts, advantages, ref"),
        ("faulty-rows-stay", "return rollouts, advantages.roll(1, 0), ref",
         "return rollouts, advantages.roll(0, 0), ref"),
        ("faulty-end-stays", "rollouts.finished & (last > 0), 0.0, 1.0",
         "rollouts.finished & (last > 0), 1.0, 1.0"),
    ),
    *faults_in(
        "grpo_lib/corrections.py", "tests/test_corrections.py",
        ("top-entropy-keeps-the-lowest", "(entropies >= threshold)", "(entropies <= threshold)"),
        ("top-entropy-share-turned", "torch.nanquantile(counted, 1 - quantile)",
         "torch.nanquantile(counted, quantile)"),
        ("top-entropy-counts-padding", "entropies.masked_fill(mask == 0, torch.nan)",
         "entropies.masked_fill(mask == 0, 0.0)"),
        ("top-entropy-drops-ties", "entropies >= threshold", "entropies > threshold"),
        ("off-policy-direction", "moved = (old_log_probs - log_probs)",
         "moved = (log_probs - old_log_probs)"),
        ("off-policy-drops-the-good", "(advantages >= 0).any", "(advantages <= 0).any"),
        ("off-policy-of-the-sum", "moved.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(",
         "moved.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(max=1, "),
        ("off-policy-counts-padding", ".nan_to_num(0.0) * mask", ".nan_to_num(0.0)"),
        ("sampler-ratio-upside-down", "(old_log_probs - sampler_log_probs).masked_fill",
         "(sampler_log_probs - old_log_probs).masked_fill"),
        ("sampler-ratio-always-of-tokens", 'if correction.startswith("sequence"):', "if False:"),
        ("sampler-weights-never-truncated", "return weights.clamp(low, ratio_max)",
         "return weights.clamp(low)"),
        ("sampler-truncate-is-a-mask", 'if correction.endswith("truncate"):', "if False:"),
        ("sampler-mask-keeps-the-large", "(weights < low) | (weights > ratio_max)",
         "(weights < low)"),
        ("sampler-mask-keeps-the-small", "(weights < low) | (weights > ratio_max)",
         "(weights > ratio_max)"),
    ),
    *faults_in(
        "grpo_lib/critic.py", "tests/test_critic.py",
        ("value-loss-sign", "(values - returns.detach()).square() / 2",
         "-(values - returns.detach()).square() / 2"),
        ("value-loss-without-half", "(values - returns.detach()).square() / 2",
         "(values - returns.detach()).square()"),
        ("value-loss-by-row", 'mask, "token_mean")', 'mask, "sequence_mean")'),
        ("value-returns-not-detached", "(values - returns.detach())", "(values - returns)"),
        ("values-of-padding", ".masked_fill(rollouts.mask == 0, 0.0)", ""),
        ("value-head-not-zero", "nn.init.zeros_(self.transformer.lm_head.weight)", "pass"),
        ("critic-shares-the-policy", "copy.deepcopy(policy).requires_grad_(True)",
         "policy"),
        ("critic-gradients-pile-up", "self.optimizer.zero_grad(set_to_none=True)", "pass"),
        ("critic-counted-once", "models = 2 if critic else 1", "models = 1"),
        ("one-moment-counted", '"optimizer": 2 * models', '"optimizer": models'),
    ),
    *faults_in(
        "grpo_lib/evaluation.py", "tests/test_evaluation.py",
        ("majority-ties-all-win", "number / subsets / (ties + 1)", "number / subsets"),
        ("majority-ties-all-lose", "number / subsets / (ties + 1)",
         "number / subsets * (ties == 0)"),
        ("majority-with-replacement", "number * math.comb(count, votes)", "number * count**votes"),
        ("majority-others-may-lead", "range(min(count, j, k - j - used) + 1)",
         "range(min(count, k - j - used) + 1)"),
        ("plug-in-without-replacement", "1.0 - (1.0 - right / samples) ** k",
         "1.0 - (1.0 - right / samples)"),
        ("moments-unweighted", "math.fsum(w * v for w, v in zip(chances, values))",
         "math.fsum(values) / len(values)"),
        ("permutation-test-one-sided", "return abs(part / len(first)",
         "return (part / len(first)"),
        ("permutation-test-wrong-size", "(total - part) / len(second))",
         "(total - part) / len(first))"),
        ("permutation-test-without-ties", "apart(first) * (1 - 1e-9) - 1e-12",
         "apart(first) + 1e-12"),
        ("pass-at-k-biased",
         "1.0 - math.comb(samples - right, k) / math.comb(samples, k)",
         "1.0 - (1 - right / samples) ** k"),
        ("pass-at-k-of-the-wrong-ones", "math.comb(samples - right, k)", "math.comb(right, k)"),
        ("pass-at-k-is-all-of-k",
         "1.0 - math.comb(samples - right, k) / math.comb(samples, k)",
         "math.comb(right, k) / math.comb(samples, k)"),
        ("pass-at-k-pools-the-problems", "for c in self.right.sum(1)) / len(self.right)",
         "for c in [self.right.sum() // len(self.right)])"),
        ("wilson-centre", "share + z * z / (2 * count)", "share + z * z / count"),
        ("wilson-half-width", "z * z / (4 * count * count)", "z * z / (4 * count)"),
        ("wilson-scale", "scale = 1 + z * z / count", "scale = 1 + z / count"),
        ("wilson-is-walds", "centre = share + z * z / (2 * count)", "centre, z = share, 0 * z"),
        ("wilson-at-90-per-cent", "z: float = 1.96", "z: float = 1.645"),
        ("interval-counts-samples", "wilson_interval(self.accuracy, len(self.right))",
         "wilson_interval(self.accuracy, self.right.numel())"),
        ("evaluation-of-unfinished", "rollouts.finished.tolist()) > 0", "[True] * len(texts)) > 0"),
        ("evaluation-by-reward", "task.grades(some", "task.rewards(some"),
        ("evaluation-interleaved", "rollouts.lengths.view(len(some), samples)",
         "rollouts.lengths.view(samples, len(some)).T"),
        ("evaluation-at-temperature-one", "temperature=temperature,\n", "temperature=1.0,\n"),
    ),
    *faults_in(
        "grpo_lib/exact.py", "tests/test_exact.py",
        ("completions-without-the-cut-off", "completions = ended + cut", "completions = ended",
         "tests/test_exact_sequences.py"),
        ("expected-reward-unweighted", "(completion_probabilities(policy, completions) * rewards)"
         ".sum()", "rewards.sum() + 0 * completion_probabilities(policy, completions).sum()",
         "tests/test_exact_sequences.py"),
        ("sequence-kl-direction", "(own.exp() * (own - ref)).sum()",
         "(own.exp() * (ref - own)).sum()", "tests/test_exact_sequences.py"),
        ("sequence-kl-of-the-reference", "(own.exp() * (own - ref)).sum()",
         "(ref.exp() * (own - ref)).sum()", "tests/test_exact_sequences.py"),
        ("groups-without-orders", "(ways + log_p).exp()", "log_p.exp()",
         "tests/test_exact_sequences.py"),
        ("groups-with-equal-chances", "counts * probabilities.log()", "0 * counts",
         "tests/test_exact_sequences.py"),
        ("estimator-unweighted", "mean = weights @ gradients", "mean = gradients.mean(0)",
         "tests/test_exact_sequences.py"),
        ("estimator-variance-about-zero", "(gradients - mean).square().sum(1)",
         "gradients.square().sum(1)", "tests/test_exact_sequences.py"),
        ("estimator-scale-upside-down",
         "(self.mean @ self.exact / (self.exact @ self.exact))",
         "(self.exact @ self.exact / (self.mean @ self.exact))", "tests/test_exact_sequences.py"),
        ("estimator-bias-unscaled", "(self.mean - self.scale * self.exact).norm()",
         "(self.mean - self.exact).norm()", "tests/test_exact_sequences.py"),
        ("estimator-noise-is-a-variance", "self.variance.sqrt() / self.mean.norm()",
         "self.variance / self.mean.norm()", "tests/test_exact_sequences.py"),
        ("variance-of-a-mean", "/ count**2)", "/ count)", "tests/test_exact_sequences.py"),
        ("groups-from-the-new-policy", "all_groups(old.sum(1).exp(), group_size)",
         "all_groups(now.sum(1).exp(), group_size)", "tests/test_exact_sequences.py"),
        ("group-gradient-sign", "return -by_completion.flatten(1)",
         "return by_completion.flatten(1)", "tests/test_exact_sequences.py"),
        ("group-gradient-counts-twins-once",
         "by_completion.scatter_add_(1, members[:, :, None].expand_as(slopes), slopes)",
         "by_completion.scatter_(1, members[:, :, None].expand_as(slopes), slopes)",
         "tests/test_exact_sequences.py"),
        ("exact-gradient-of-the-token-sum-first", "* rewards) @ scores.sum(1)",
         "* rewards) @ scores[:, 0]", "tests/test_exact_sequences.py"),
        ("kl-the-other-way", "(log_probs_p.exp() * difference)",
         "(log_probs_q.exp() * difference)"),
        ("kl-sign", "return (log_probs_p.exp() * difference).sum(-1)",
         "return -(log_probs_p.exp() * difference).sum(-1)"),
        ("kl-gradient-without-the-mean", "- ref - kl_divergence(log_probs, ref)[..., None])",
         "- ref)"),
        ("kl-std-about-zero", "(estimates - mean[..., None]).square()", "estimates.square()"),
        ("kl-moments-unweighted", "mean = (probs * estimates).sum(-1)",
         "mean = estimates.mean(-1)"),
        ("kl-slope-of-a-fixed-ratio", "importance_ratio(leaf, leaf.detach()",
         "importance_ratio(leaf.detach(), leaf.detach()"),
        ("kl-slope-ratio-forgotten", "if use_bias_correction_kl:\n            estimates",
         "if False:\n            estimates"),
        ("kl-slope-without-the-softmax", "(slope - (probs * slope).sum(-1, keepdim=True))",
         "slope"),
        ("kl-noise-keeps-the-signal", "- mean.square().sum(-1)", ""),
        ("kl-noise-of-onehot-alone", "(1 - 2 * probs + probs.square()", "(1 + probs.square()")),
    *faults_in(
        "grpo_lib/length_bias.py", "tests/test_length_bias.py",
        ("mean-length-from-zero", "return (length_distribution(stop, max_length) @ lengths)",
         "return (length_distribution(stop, max_length) @ (lengths - 1))"),
        ("no-cut-at-the-longest", "chances[-1] = (1 - stop) ** (max_length - 1)",
         "chances[-1] = chances[-1]"),
        ("score-sign", "score = 1 - stop * lengths", "score = stop * lengths - 1"),
        ("score-at-the-cut", "score[-1] = -stop * (max_length - 1)",
         "score[-1] = 1 - stop * max_length"),
        ("marks-always-even", "torch.xlogy(right, torch.tensor(share_right,",
         "torch.xlogy(right, torch.tensor(0.5,"),
        ("right-and-wrong-swapped", "zip((right, wrong), scores))", "zip((wrong, right), scores))"),
        ("group-size-forgotten", "total.sum() / group_size", "total.sum()"),
        ("no-other-prompts", "** (group_size * (prompts - 1))", "** 0"),
        ("descends", "logits = logits + rate", "logits = logits - rate")),
    *faults_in(
        "grpo_lib/rollout.py", "tests/test_rollout.py",
        ("scored-token-is-seen", "seen = rollouts.tokens[:, :-1]",
         "seen = rollouts.tokens[:, 1:]"),
        ("scored-one-too-early", "(seen, seen_mask)[:, rollouts.prompt_length - 1 :]",
         "(seen, seen_mask).roll(1, 1)[:, rollouts.prompt_length - 1 :]"),
        ("scoring-without-temperature",
         "completion_outputs(policy, rollouts) / rollouts.temperature",
         "completion_outputs(policy, rollouts)"),
        ("scoring-times-temperature",
         "completion_outputs(policy, rollouts) / rollouts.temperature",
         "completion_outputs(policy, rollouts) * rollouts.temperature"),
        ("joined-completions-padded-on-the-left", "stack(lambda p: p.log_probs, 0, used)",
         "stack(lambda p: p.log_probs.roll(1, 1), 0, used)"),
        ("scored-by-keeps-the-old", "log_probs=completion_log_probs(policy, self))",
         "log_probs=self.log_probs)"),
        ("sampling-without-temperature", "F.log_softmax(logits / temperature, dim=-1)",
         "F.log_softmax(logits, dim=-1)"),
        ("kept-log-probs-without-temperature", "log_probs.gather(1, chosen).squeeze(1)",
         "F.log_softmax(logits, dim=-1).gather(1, chosen).squeeze(1)"),
        ("eos-left-out-of-the-mask", "= live.to(mask.dtype)",
         "= (live & (chosen != eos_id)).to(mask.dtype)"),
        ("mask-goes-on-after-eos", "= live.to(mask.dtype)", "= 1"),
        ("tokens-after-eos", "torch.where(live, chosen, PAD)", "chosen"),
        ("log-probs-after-eos", "torch.where(live, chosen_log_probs, 0.0)", "chosen_log_probs"),
        ("finished-forgotten", "finished[rows] |= chosen == eos_id",
         "finished[rows] = chosen == eos_id"),
        ("eos-fixed", "chosen == eos_id", "chosen == EOS"),
        ("random-numbers-follow-the-running", "uniforms[rows, step]",
         "uniforms[: len(rows), step]"),
        ("one-random-number-a-row", "uniforms[rows, step]", "uniforms[rows, 0]"),
        ("prompts-padded-on-the-right", 'pad(prompts, "left")', 'pad(prompts, "right")'),
        ("first-logits-interleaved", "[:, -1].repeat_interleave(group_size, 0)",
         "[:, -1].repeat(group_size, 1)"),
        ("prompts-interleaved", "(t.repeat_interleave(group_size, 0)", "(t.repeat(group_size, 1)"),
        ("scoring-sees-the-padding",
         "torch.cat((rollouts.prompt_mask, rollouts.mask[:, :-1].long()), 1)",
         "torch.ones_like(seen)"),
        ("scores-of-padding-kept",
         "log_probs.masked_fill(rollouts.mask == 0, 0.0)\n\n\ndef offset",
         "log_probs\n\n\ndef offset"),
        ("offset-off-by-one", "logits[:, start + offset :]", "logits[:, start + offset + 1 :]"),
        ("offset-forgets-the-temperature", "policy(rollouts.tokens, seen_mask) / rollouts.temp"
         "erature", "policy(rollouts.tokens, seen_mask)"),
        ("minibatch-mixes-rows", "log_probs=self.log_probs[rows]",
         "log_probs=self.log_probs[: len(rows)]"),
        ("minibatch-cut-too-short", "self.mask[rows].sum(1).max()", "self.mask[rows].sum(1).min()"),
        ("length-without-eos", "return self.mask.sum(1)",
         "return self.mask.sum(1) - self.finished"),
        ("cdf-boundary", "right=True", "right=False"),
        ("cdf-ends-below-one", "cdf /= cdf[:, -1:].clone()", "cdf = cdf"),
        ("greedy-log-prob", "logits.new_zeros(len(logits))",
         "F.log_softmax(logits, -1).amax(-1)"),
    ),
    *faults_in(
        "grpo_lib/policy.py", "tests/test_policy.py -k 'not llama'",
        ("log-softmax-over-time", "F.log_softmax(logits, dim=-1).gather",
         "F.log_softmax(logits, dim=-2).gather"),
        ("log-probs-unnormalised", "F.log_softmax(logits, dim=-1).gather", "logits.gather"),
        ("entropy-sign", "torch.special.entr(log_probs.exp())",
         "-torch.special.entr(log_probs.exp())"),
        ("entropy-mean", "(log_probs.exp()).sum(-1)", "(log_probs.exp()).mean(-1)"),
        ("entropy-of-impossible-tokens", "torch.special.entr(log_probs.exp()).sum(-1)",
         "-(log_probs.exp() * log_probs).sum(-1)"),
        ("positions-count-padding", "return (mask.long().cumsum(1) - 1).clamp(min=0)",
         "return torch.arange(mask.shape[1], device=mask.device).expand_as(mask)"),
        ("positions-from-one", "return (mask.long().cumsum(1) - 1).clamp(min=0)",
         "return mask.long().cumsum(1)"),
        ("cache-positions-count-padding", "self.positions + mask.long().sum(1)",
         "self.positions + mask.shape[1]"),
        ("cache-positions-start-again", "self.positions[:, None] + token_positions(mask)",
         "token_positions(mask) + 0"),
        ("cache-positions-stand-still", "self.positions + mask.long().sum(1)", "self.positions"),
        ("causal-mask-sees-the-next", "steps[:, None] >= steps,", "steps[:, None] >= steps - 1,"),
        ("causal-mask-misses-the-last", "steps[:, None] >= steps,", "steps[:, None] >= steps + 2,"),
        ("padding-is-seen", "(mask[:, None, :].bool() & causal)",
         "(torch.ones_like(mask)[:, None, :].bool() & causal)"),
        ("attention-both-ways", "is_causal=allowed is None", "is_causal=False"),
        ("rotary-sign", "torch.cat((-second, first), -1)", "torch.cat((second, -first), -1)"),
        ("rotary-pairs-are-neighbours", "torch.cat((angles, angles), -1)",
         "angles.repeat_interleave(2, -1)"),
        ("rotary-frequencies", "dtype=torch.float64) / half)",
         "dtype=torch.float64) / (2 * half))"),
        ("rotary-theta-ignored", "config.rope_theta ** (", "1e4 ** ("),
        ("rotary-keys-left-out", "rotate(heads[1], cos, sin), heads[2]", "heads[1], heads[2]"),
        ("rotary-values-too", "rotate(heads[1], cos, sin), heads[2]",
         "rotate(heads[1], cos, sin), rotate(heads[2], cos, sin)"),
        ("rotary-cos-and-sin-swapped", "torch.stack((angles.cos(), angles.sin()))",
         "torch.stack((angles.sin(), angles.cos()))"),
        ("heads-interleaved", ".unflatten(-1, (self.n_heads, -1)).transpose(1, 2)",
         ".unflatten(-1, (-1, self.n_heads)).movedim(-1, 1)"),
        ("swiglu-gate-and-up-swapped", "F.silu(self.gate_proj(x)) * self.up_proj(x)",
         "self.gate_proj(x) * F.silu(self.up_proj(x))"),
        ("residual-left-out", "return x + self.mlp(", "return self.mlp("),
        ("last-norm-left-out", "self.lm_head(self.model.norm(x))", "self.lm_head(x)"),
        ("norm-eps-ignored",
         "self.model.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)",
         "self.model.norm = nn.RMSNorm(config.d_model)"),
        ("cache-forgets-padding", "self.mask[:, start : self.filled] = mask",
         "self.mask[:, start : self.filled] = True"),
        ("cache-keys-and-values-swapped", "self.values[layer, :, :, new] = keys, values",
         "self.values[layer, :, :, new] = values, keys"),
        ("cache-interleaved", ".repeat_interleave(times, 1)", ".repeat(1, times, 1, 1, 1)"),
        ("cache-positions-interleaved", "self.positions.repeat_interleave(times, 0)",
         "self.positions.repeat(times)"),
        ("cache-keeps-the-first-rows", "= old[:, rows, :, used]", "= old[:, :count, :, used]"),
        ("cache-keeps-other-positions", "self.mask[rows], self.positions[rows]",
         "self.mask[rows], self.positions[:count]"),
    ),
    *faults_in(
        "grpo_lib/tokenizer.py", "tests/test_tokenizer.py",
        ("sampled-padding-is-hidden", "if counts and i != EOS", "if counts and i > EOS"),
        ("text-after-eos", "if counts and i != EOS", "if i != EOS"),
        ("padding-sides-swapped", 'if side == "left" else', 'if side == "right" else'),
        ("pad-mask-of-everything", "mask[row, columns] = 1", "mask[row] = 1"),
    ),
    *faults_in(
        "grpo_lib/tasks/base.py", "tests/test_tasks.py",
        ("held-out-another-share", "% HELD_OUT_SHARE == 0", "% HELD_OUT_SHARE == 1"),
        ("held-out-by-process", "zlib.crc32(prompt.encode())", "hash(prompt)"),
        ("held-out-is-trained-on", 'is_held_out(problem.prompt) == (split == "held_out")',
         'split == "train" or is_held_out(problem.prompt)'),
        ("train-is-evaluated", 'is_held_out(problem.prompt) == (split == "held_out")',
         'split == "held_out" or not is_held_out(problem.prompt)'),
        ("held-out-repeats", "found.setdefault(problem.prompt, problem)",
         "found[len(found)] = problem"),
        ("cut-off-is-rewarded", "if done else 0.0", "if True else 0.0"),
        ("rewards-interleaved", "problems[row // group_size]", "problems[row % len(problems)]"),
        ("rewards-transposed", ".view(len(problems), group_size)",
         ".view(group_size, len(problems)).T"),
        ("grades-by-reward", "self._each(self.correct,", "self._each(self.reward,"),
        ("reward-sign", "return float(self.correct(problem, completion))",
         "return -float(self.correct(problem, completion))"),
    ),
    *faults_in(
        "grpo_lib/tasks/chain.py", "tests/test_tasks.py",
        ("verifier-takes-a-beginning", '.partition("=>")[2] == f" {problem.answer}"',
         '.partition("=>")[2].startswith(f" {problem.answer}")'),
        ("verifier-takes-an-ending", '.partition("=>")[2] == f" {problem.answer}"',
         ".endswith(problem.answer)"),
        ("verifier-takes-any-place", '.partition("=>")[2] == f" {problem.answer}"',
         '.count(problem.answer) > 0'),
        ("verifier-takes-the-last-arrow", '.partition("=>")[2] ==', '.rpartition("=>")[2] =='),
        ("verifier-without-arrow", '.partition("=>")[2] == f" {problem.answer}"',
         '.rpartition("=>")[2].strip() == problem.answer'),
        ("verifier-takes-a-signed-digit", '.partition("=>")[2] == f" {problem.answer}"',
         '.partition("=>")[2].lstrip(" +-*") == problem.answer'),
        ("operations-from-the-far-end", "in reversed(operations):", "in operations:"),
        ("subtraction-turned", "(a - b) % 10", "(b - a) % 10"),
        ("modulus", "(a * b) % 10", "(a * b) % 9"),
        ("steps-shifted-by-one", '{values[k]} " for k in kept', '{values[k - 1]} " for k in kept'),
        ("probe-shifted-by-one", "str(values[step])", "str(values[step - 1])"),
        ("answer-one-step-early", "chain_values(prompt)[-1]", "chain_values(prompt)[-2]"),
    ),
    *faults_in(
        "grpo_lib/tasks/sorting.py", "tests/test_tasks.py",
        ("sorted-downwards", '" ".join(sorted(digits))', '" ".join(sorted(digits)[::-1])'),
        ("extra-places-are-free", "max(len(wanted), len(got))", "len(wanted)"),
        ("missing-places-are-free", "max(len(wanted), len(got))", "max(1, len(got))"),
    ),
    *faults_in(
        "grpo_lib/training.py", "tests/test_training.py -k 'written_out or config_reaches'",
        ("advantages-interleaved", "(advantages if by_token else advantages.flatten())",
         "(advantages if by_token else advantages.T.flatten())"),
        ("minibatch-takes-other-advantages", "else row_advantages[rows],",
         "else row_advantages[: len(rows)],"),
        ("minibatch-takes-other-token-advantages", "row_advantages[rows][:, :width] if by_token",
         "row_advantages[: len(rows)][:, :width] if by_token", "tests/test_training.py"),
        ("dynamic-sampling-keeps-all", "return everything, everything.groups(which), rollout",
         "return everything, everything, rollout", "tests/test_training.py"),
        ("dynamic-sampling-keeps-the-silent", "which = informative.nonzero()",
         "which = (1 - informative).nonzero()", "tests/test_training.py"),
        ("dynamic-sampling-never-again",
         "self.config.max_num_gen_batches if self.algorithm.dynamic_sampling else 1", "1",
         "tests/test_training.py"),
        ("dynamic-sampling-never-enough", "if informative.sum() >= self.config.prompts_per_step:",
         "if False:", "tests/test_training.py"),
        ("dynamic-sampling-forgets-the-rows",
         "(which[:, None] * size + torch.arange(size))",
         "(which[:, None] + torch.arange(size) * len(which))", "tests/test_training.py"),
        ("spread-of-punished-rewards",
         "kept = informative_groups(rewards)\n            rewards = "
         "self.algorithm.shaped_rewards(rewards, rollouts.lengths.cpu(),\n"
         "                                                    self.task.max_new_tokens)",
         "rewards = self.algorithm.shaped_rewards(rewards, rollouts.lengths.cpu(),\n"
         "                                                    self.task.max_new_tokens)\n"
         "            kept = informative_groups(rewards)", "tests/test_training.py"),
        ("critic-never-trained", "self.critic.update(batch, self.returns[rows][:, :width])",
         "pass", "tests/test_training.py tests/test_critic.py"),
        ("critic-trained-on-other-rows", "self.critic.update(batch, self.returns[rows]",
         "self.critic.update(batch, self.returns[: len(rows)]",
         "tests/test_training.py tests/test_critic.py"),
        ("minibatch-takes-other-references", "ref_log_probs=ref_log_probs[rows,",
         "ref_log_probs=ref_log_probs[: len(rows),"),
        ("ratio-always-one", "token_log_probs(logits, batch.completions), batch.log_probs,",
         "token_log_probs(logits, batch.completions),\n"
         "                    token_log_probs(logits, batch.completions).detach(),",
         "tests/test_training.py -k every_pass"),
        ("gradients-pile-up", "self.optimizer.zero_grad(set_to_none=True)", "pass",
         "tests/test_training.py -k bit_for_bit"),
        ("gradients-never-shortened", "config.max_grad_norm, error", 'float("inf"), error'),
        ("one-step-a-pass", "order.tensor_split(config.minibatches)", "order.tensor_split(1)"),
        ("one-pass-only", "in range(config.num_iterations)", "in range(1)",
         "tests/test_training.py -k every_pass"),
        ("constant-by-the-minibatch", "max_length=self.task.max_new_tokens,",
         "max_length=batch.mask.shape[1],"),
        ("training-at-temperature-one", "temperature=config.temperature, generator",
         "temperature=1.0, generator"),
        ("evaluation-in-training-at-one",
         "temperature=config.temperature, device=self.device).accuracy",
         "temperature=1.0, device=self.device).accuracy",
         "tests/test_training.py -k every_few_steps"),
        ("training-on-held-out", "self.task.problems(config.prompts_per_step, rng)",
         'self.task.problems(config.prompts_per_step, rng, "held_out")',
         "tests/test_tasks.py -k rl_never"),
        ("reference-moves-along", "ref_policy if own else copy.deepcopy(policy)",
         "ref_policy if own else policy"),
        ("reference-ignored", "completion_log_probs(self.ref_policy, rollouts)",
         "completion_log_probs(self.policy, rollouts)", "tests/test_training.py -k frozen"),
        ("entropy-weighs-minibatches-alike", "batch.mask.sum().item() / tokens",
         "1 / config.minibatches", "tests/test_training.py -k means_and_extremes"),
        ("entropy-of-every-pass", "if iteration == 0:", "if True:",
         "tests/test_training.py -k means_and_extremes"),
        ("metric-groups-turned", "1 - informative_groups(rewards)", "informative_groups(rewards)",
         "tests/test_training.py -k all_equal"),
        ("metric-std-biased", "rewards.std().item()", "rewards.std(correction=0).item()",
         "tests/test_training.py -k metrics_follow"),
        ("metric-kl-direction", "kl_estimate(rollouts.log_probs, ref_log_probs",
         "kl_estimate(ref_log_probs, rollouts.log_probs",
         "tests/test_training.py -k metrics_follow"),
        ("metric-kl-over-padding", 'aggregate(distance, rollouts.mask, "token_mean")',
         "distance.mean()", "tests/test_training.py -k metrics_follow"),
        ("metric-accuracy-of-rewards", "grades.mean().item()", "rewards.mean().item()",
         "tests/test_training.py -k metrics_follow"),
        ("metric-lengths-turned", 'lengths[right].mean().item() if right.any()',
         'lengths[~right].mean().item() if right.any()',
         "tests/test_training.py -k right_and_wrong"),
        ("metric-rows-interleaved", "grades.flatten() > 0", "grades.T.flatten() > 0",
         "tests/test_training.py -k right_and_wrong"),
        ("metric-ratio-min", 'min(s["ratio_min"]', 'max(s["ratio_min"]',
         "tests/test_training.py -k means_and_extremes"),
        ("metric-gradient-after-shortening", '"grad_norm": norm.item()',
         '"grad_norm": min(norm.item(), config.max_grad_norm)'),
    ),
    *faults_in(
        "grpo_lib/pretraining.py", "tests/test_pretraining.py -k 'examples or share or the_mean'",
        ("prompts-are-trained-on", "mask[:, 1:] * (torch.arange(1, tokens.shape[1]) >= prompts)",
         "mask[:, 1:]"),
        ("first-token-not-trained-on", "tokens.shape[1]) >= prompts)",
         "tokens.shape[1]) > prompts)"),
        ("pretraining-sees-the-token", "policy(tokens[:, :-1])", "policy(tokens[:, 1:])"),
        ("pretraining-sign", "return -aggregate(log_probs", "return aggregate(log_probs"),
        ("pretraining-without-eos", "[*completion, task.tokenizer.eos_id]", "[*completion]"),
        ("skill-and-habit-swapped", "rng.random() < skill_share", "rng.random() >= skill_share"),
        ("pretraining-on-held-out", "task.problems(count, rng)",
         'task.problems(count, rng, "held_out")'),
        ("probes-padded-on-the-right", 'for text in texts], "left")',
         'for text in texts], "right")', "tests/test_pretraining.py -k one_step"),
    ),
]


def copy_repository(root: Path, copy: Path) -> None:
    """What the tests need of the repository, without what running left in it."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns(
                "__pycache__", ".*", "*.egg-info"))
        elif (root / name).exists():
            shutil.copy2(root / name, copy / name)


@contextmanager
def put_in(fault: Fault, copy: Path) -> Iterator[None]:
    """The copy with the fault in it, and without it again, whatever happens.

    OutOfDate: the old text is not there exactly once.
    """
    path = copy / fault.file
    before = path.read_bytes() if path.is_file() else b""
    found = before.decode().count(fault.old)
    if found != 1:
        raise OutOfDate(f"{fault.name}: {fault.old!r} is {found} times in {fault.file}, allowed "
                        f"is once")
    try:
        path.write_bytes(before.decode().replace(fault.old, fault.new).encode())
        yield
    finally:
        path.write_bytes(before)


def run_tests(copy: Path, arguments: Sequence[str]) -> str | None:
    """The first test that goes red, or None if all are green.

    OutOfDate: no test ran, since pytest could not collect them.
    """
    with tempfile.TemporaryDirectory(prefix="grpo_faults_") as folder:
        output = Path(folder) / "output"
        process = PROCESSES.Process(target=run_pytest, args=(copy, arguments, output))
        process.start()
        try:
            process.join(LONGEST)
            if process.is_alive():
                return f"more than {LONGEST} s"
        finally:
            process.kill()
            process.join()
        text = output.read_text(errors="replace") if output.exists() else ""
    if process.exitcode == 0:
        return None
    red = re.search(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", text, re.MULTILINE)
    if process.exitcode != 1 or red is None:
        raise OutOfDate(f"pytest {shlex.join(arguments)}: exit status {process.exitcode}, no test "
                        f"ran\n{text[-2000:]}")
    return red[1]


def run_pytest(copy: Path, arguments: Sequence[str], output: Path) -> None:
    """In a process of its own: pytest in the copy, its words to a file."""
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(copy)
    sys.path[:] = [str(copy), *(p for p in sys.path if Path(p).resolve() not in (ROOT, HERE))]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.pop("PYTEST_ADDOPTS", None)
    # Python knows a changed file by its second and size, which a wrong sign leaves alone.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *arguments]))


def noticed_by(fault: Fault, copy: Path, green: set[str]) -> str | None:
    """The test that notices a fault, those that should before all others; None: survived.

    ``green`` are tests known to be green without any fault, and is added to.
    """
    with put_in(fault, copy):
        test = run_tests(copy, fault.tests) or run_tests(copy, OTHERS)
    if test and "::" in test and test not in green:
        if run_tests(copy, [test]):
            raise OutOfDate(f"{fault.name}: {test} is red without any fault")
        green.add(test)
    return test


def survey(faults: Sequence[Fault], root: Path = ROOT) -> int:
    """Put in every fault in turn, print what notices it and a table; the exit status."""
    start, rows, wrong, green = time.monotonic(), [], [], set()
    with tempfile.TemporaryDirectory(prefix="grpo_faults_") as folder:
        copy = Path(folder).resolve()
        copy_repository(root, copy)
        for number, fault in enumerate(faults, start=1):
            before = time.monotonic()
            try:
                test = noticed_by(fault, copy, green)
            except OutOfDate as error:
                wrong.append(fault.name)
                print(f"OUT OF DATE {error}", flush=True)
                continue
            seconds = time.monotonic() - before
            rows.append((fault, test, seconds))
            verdict = f"red    {test}" if test else "GREEN  survived"
            print(f"{number:3} of {len(faults)}  {seconds:5.1f} s  {fault.name:40} {verdict}",
                  flush=True)
    print(table(rows, time.monotonic() - start))
    survived = [fault.name for fault, test, _ in rows if test is None]
    for title, names in (("Survived", survived), ("Out of date", wrong)):
        if names:
            print(f"{title}: {', '.join(names)}")
    return 2 if wrong else 1 if survived else 0


def table(rows: Sequence[tuple[Fault, str | None, float]], seconds: float) -> str:
    """Faults, how many were noticed, and seconds, a line for each file and one for all."""
    lines = [f"\n{'file':32}{'faults':>8}{'noticed':>9}{'seconds':>9}"]
    for file in dict.fromkeys(fault.file for fault, _, _ in rows):
        some = [row for row in rows if row[0].file == file]
        lines.append(f"{file:32}{len(some):8}{sum(test is not None for _, test, _ in some):9}"
                     f"{sum(row[2] for row in some):9.0f}")
    noticed = sum(test is not None for _, test, _ in rows)
    return "\n".join([*lines, f"{'all':32}{len(rows):8}{noticed:9}{seconds:9.0f}"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Put faults into a copy and run the tests.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to try (none: all)")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    options = parser.parse_args(arguments)
    by_name = {fault.name: fault for fault in FAULTS}
    unknown = [name for name in options.names if name not in by_name]
    if unknown:
        parser.error(f"got {', '.join(unknown)}, allowed are the names that --list shows")
    chosen = [by_name[name] for name in options.names] or FAULTS
    if options.list:
        for fault in chosen:
            print(f"{fault.name:40} {fault.file}")
        return 0
    PROCESSES.set_forkserver_preload(SLOW_TO_LOAD)
    # Told to stop, leave in order: the copy goes, and the tests with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return survey(chosen)


if __name__ == "__main__":
    sys.exit(main())
