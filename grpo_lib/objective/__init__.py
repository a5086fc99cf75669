"""The GRPO loss: ratio, surrogates, KL, weights, and the loss that they make.

Pure functions of tensors: (B, T) a row a completion, a column a token; ``mask`` (B, T), bool or 0
and 1, says which tokens count: completion tokens up to and including end-of-sequence. All log-probs
are in nats and of logits / temperature.
"""

from grpo_lib.objective.diagnostics import (
    clip_binds,
    clip_stats,
    outside_fraction,
    surrogate_gradient,
)
from grpo_lib.objective.kl import KLS, KLEstimator, kl_estimate
from grpo_lib.objective.loss import LossChoices, LossOutput, grpo_loss
from grpo_lib.objective.ratio import RATIOS, RatioLevel, importance_ratio
from grpo_lib.objective.surrogates import (
    CLIPPING,
    SURROGATES,
    Surrogate,
    cispo_surrogate,
    clipped_surrogate,
    gmpo_surrogate,
    sapo_surrogate,
)
from grpo_lib.objective.weights import (
    AGGREGATIONS,
    PAPER_AGGREGATIONS,
    WEIGHTS,
    Aggregation,
    aggregate,
    token_weights,
)

__all__ = [
    "AGGREGATIONS", "CLIPPING", "KLS", "PAPER_AGGREGATIONS", "RATIOS", "SURROGATES", "WEIGHTS",
    "Aggregation", "KLEstimator", "LossChoices", "LossOutput", "RatioLevel", "Surrogate",
    "aggregate", "cispo_surrogate", "clip_binds", "clip_stats", "clipped_surrogate",
    "gmpo_surrogate", "grpo_loss", "importance_ratio", "kl_estimate", "outside_fraction",
    "sapo_surrogate", "surrogate_gradient", "token_weights",
]
