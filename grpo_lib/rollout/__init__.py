"""Sampling groups of completions, and scoring them again under a policy."""

from grpo_lib.rollout.rollouts import Rollouts, up_to_last
from grpo_lib.rollout.sampling import compact, sample_groups, sample_token, shard
from grpo_lib.rollout.shift import (
    CompletionLogits,
    completion_log_probs,
    completion_logits,
    completion_outputs,
    offset_log_probs,
)

__all__ = [
    "CompletionLogits",
    "Rollouts",
    "compact",
    "completion_log_probs",
    "completion_logits",
    "completion_outputs",
    "offset_log_probs",
    "sample_groups",
    "sample_token",
    "shard",
    "up_to_last",
]
