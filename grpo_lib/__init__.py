"""grpo_lib: Group Relative Policy Optimization, small enough to read, exact enough to trust.

A public name loads its module when first used: ``import grpo_lib`` needs no torch, and only
the modules that draw need matplotlib or ipywidgets. Importing changes nothing in your session;
``grpo_lib.course.set_up()`` does, which the notebooks call.
"""

from __future__ import annotations  # for an old Python, to be told that it is too old

from importlib import import_module

__version__ = "0.1.0"

_MODULES = {
    "tokenizer": ["Tokenizer", "pad"],
    "policy": ["Policy", "TinyPolicy", "token_log_probs", "token_entropy"],
    "transformer": ["PolicyConfig", "TransformerPolicy", "KVCache"],
    "tasks": ["Task", "Problem", "ChainTask", "SortTask", "TASKS", "get_task", "is_held_out"],
    "fast.packing": [],
    "fast.decoding": [],
    "rollout": ["Rollouts", "sample_groups", "completion_logits", "completion_log_probs"],
    "advantages": ["group_advantages", "informative_groups", "informative_share",
                   "soft_overlong_punishment"],
    "returns": ["token_rewards", "gae", "whiten"],
    "support.checks": [],
    "support.threads": [],
    "corrections": ["top_entropy_mask", "off_policy_mask", "sampler_weights"],
    "objective": ["LossChoices", "LossOutput", "importance_ratio", "clipped_surrogate",
                  "cispo_surrogate", "sapo_surrogate", "gmpo_surrogate", "surrogate_gradient",
                  "clip_binds", "clip_stats", "outside_fraction", "kl_estimate", "aggregate",
                  "token_weights", "grpo_loss"],
    "algorithms": ["Algorithm", "ALGORITHMS"],
    "critic": ["ValueModel", "Critic", "completion_values", "value_loss"],
    "lab.length_bias": ["length_distribution", "mean_length", "expected_push", "follow_push"],
    "support.checkpoint": ["CheckpointError", "save_policy", "load_policy", "load_base_model"],
    "evaluation": ["Evaluation", "evaluate", "pass_at_k", "wilson_interval"],
    "lab.statistics": ["signal_and_noise", "plug_in_pass_at_k", "majority_at_k", "permutation_test",
                       "independent_guesses", "estimate_moments"],
    "config": ["GRPOConfig", "StepMetrics"],
    "support.processes": [],
    "training": ["GRPOTrainer"],
    "pretraining": ["PretrainConfig", "pretrain", "one_step_accuracy"],
    "lab.exact": ["kl_divergence", "kl_divergence_gradient", "kl_estimator_moments",
              "kl_estimator_slope", "kl_estimator_gradient", "enumerate_completions",
              "expected_reward", "sequence_kl", "Estimator", "estimator", "mean_of_prompts"],
    "course.recorded": [],
    "course.plots": [],
    "course.explorers": [],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
# grpo_lib.exact is grpo_lib.lab.exact
_PLACE = {module.rpartition(".")[2]: module for module in _MODULES}

__all__ = [*_HOME, *_PLACE]


def __getattr__(name: str):
    if name in _PLACE:
        return import_module(f"grpo_lib.{_PLACE[name]}")
    if name in _HOME:
        return getattr(import_module(f"grpo_lib.{_HOME[name]}"), name)
    raise AttributeError(f"module 'grpo_lib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
