"""Faults by hand, one for each formula and promise: a wrong function in place of the right one.

A fault wraps a function as ``right`` and stands directly below its definition, so it goes on
working when the lines inside are rewritten or their variables renamed. ``python tools/mutants.py``
puts each into a copy of the repository and looks for a test that notices.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """``wrong``, an expression that may use ``right``, in place of a function or method."""

    name: str
    module: str  # below grpo_lib, without .py
    function: str
    wrong: str
    tests: str  # what pytest runs first


def of(module: str, tests: str, *entries: tuple[str, str, str]) -> list[Fault]:
    """The faults (name, function, wrong) of one module."""
    return [Fault(name, module, function, wrong, tests) for name, function, wrong in entries]


FAULTS = [
    *of("advantages", "tests/test_advantages.py",
        ("advantage-sign", "group_advantages", "lambda *a, **k: -right(*a, **k)"),
        ("mean-over-the-batch", "group_advantages",
         "lambda rewards, *a, **k: right(rewards.reshape(1, -1), *a, **k).view_as(rewards)"),
        ("std-of-the-population", "group_advantages", "lambda rewards, *a, **k: right(rewards, *a, "
         "**k) * (rewards.shape[1] / max(1, rewards.shape[1] - 1)) ** 0.5"),
        ("groups-that-teach-turned", "informative_groups", "lambda *a, **k: 1 - right(*a, **k)"),
        ("chance-of-all-right-only", "informative_share",
         "lambda p, group_size: 1 - p**group_size"),
        ("overlong-is-rewarded", "soft_overlong_punishment", "lambda *a, **k: -right(*a, **k)")),
    *of("returns", "tests/test_advantages.py tests/test_critic.py",
        ("reward-at-the-next-token", "token_rewards",
         "lambda *a, **k: right(*a, **k).roll(1, 1)"),
        ("gae-without-lambda", "gae", "lambda rewards, values, mask, gamma=1.0, lam=1.0: "
         "right(rewards, values, mask, gamma, 1.0)"),
        ("gae-without-gamma", "gae", "lambda rewards, values, mask, gamma=1.0, lam=1.0: "
         "right(rewards, values, mask, 1.0, lam)"),
        ("whitened-over-padding", "whiten",
         "lambda values, mask: right(values, mask * 0 + 1)")),
    *of("lab/statistics", "tests/test_advantages.py",
        ("noise-counted-as-signal", "signal_and_noise",
         "lambda estimates: right(estimates)[::-1]")),
    *of("objective/ratio", "tests/test_objective.py tests/test_surrogates.py",
        ("ratio-upside-down", "importance_ratio",
         "lambda new, old, *a, **k: right(old, new, *a, **k)")),
    *of("objective/surrogates", "tests/test_objective.py tests/test_surrogates.py",
        ("max-for-min", "clipped_surrogate",
         "lambda ratio, advantages, *a, **k: -right(ratio, -advantages, *a, **k)"),
        ("epsilon-high-ignored", "clipped_surrogate", "lambda ratio, advantages, epsilon=0.2, "
         "epsilon_high=None, delta=None: right(ratio, advantages, epsilon, None, delta)"),
        ("delta-ignored", "clipped_surrogate", "lambda ratio, advantages, epsilon=0.2, "
         "epsilon_high=None, delta=None: right(ratio, advantages, epsilon, epsilon_high, None)"),
        ("cispo-sign", "cispo_surrogate", "lambda *a, **k: -right(*a, **k)"),
        ("sapo-temperatures-swapped", "sapo_surrogate", "lambda ratio, advantages, positive=1.0, "
         "negative=1.05: right(ratio, advantages, negative, positive)"),
        ("gmpo-over-padding", "gmpo_surrogate", "lambda new, old, advantages, mask, *a, **k: "
         "right(new, old, advantages, mask * 0 + 1, *a, **k)")),
    *of("objective/diagnostics", "tests/test_objective.py tests/test_surrogates.py",
        ("slope-sign", "surrogate_gradient", "lambda *a, **k: -right(*a, **k)"),
        ("clipped-where-it-is-not", "clip_binds",
         "lambda *a, **k: tuple(~side for side in right(*a, **k))")),
    *of("objective/kl", "tests/test_objective.py tests/test_surrogates.py",
        ("kl-the-other-way-round", "kl_estimate",
         "lambda new, reference, *a, **k: right(reference, new, *a, **k)"),
        ("k2-for-k3", "kl_estimate", "lambda new, reference, kl='k3': "
         "right(new, reference, 'k2' if kl == 'k3' else kl)")),
    *of("objective/weights", "tests/test_objective.py tests/test_surrogates.py",
        ("padding-is-weighed", "token_weights",
         "lambda mask, *a, **k: right(mask * 0 + 1, *a, **k)"),
        ("token-mean-for-sequence-mean", "aggregate",
         "lambda x, mask, how='sequence_mean', *a, **k: "
         "right(x, mask, 'token_mean' if how == 'sequence_mean' else how, *a, **k)"),
        ("constant-of-the-widest-row", "aggregate",
         "lambda x, mask, how='sequence_mean', max_length=None: "
         "right(x, mask, how, max_length and mask.shape[1])")),
    *of("objective/loss", "tests/test_objective.py tests/test_surrogates.py",
        ("loss-sign", "grpo_loss",
         "lambda *a, **k: (lambda out: out._replace(loss=-out.loss))(right(*a, **k))"),
        ("beta-ignored", "grpo_loss", "lambda *a, **k: right(*a, **k | {'beta': 0.0})"),
        ("ratio-always-one", "grpo_loss",
         "lambda new, old, *a, **k: right(new, new.detach(), *a, **k)")),
    *of("corrections", "tests/test_corrections.py",
        ("the-surest-tokens", "top_entropy_mask",
         "lambda entropies, *a, **k: right(-entropies, *a, **k)"),
        ("off-policy-of-the-good", "off_policy_mask", "lambda new, old, advantages, *a, **k: "
         "right(new, old, -advantages, *a, **k)"),
        ("sampler-upside-down", "sampler_weights",
         "lambda old, sampler, *a, **k: right(sampler, old, *a, **k)")),
    *of("rollout/shift", "tests/test_rollout.py tests/fast/test_packing.py",
        ("scores-shifted-by-one", "completion_log_probs",
         "lambda *a, **k: right(*a, **k).roll(1, 1)")),
    *of("rollout/rollouts", "tests/test_rollout.py",
        ("other-rows-than-asked-for", "Rollouts.select",
         "lambda self, rows: right(self, 0 * rows)")),
    *of("rollout/sampling", "tests/test_rollout.py tests/fast/test_packing.py",
        ("temperature-ignored", "sample_token",
         "lambda logits, uniforms, temperature=1.0: right(logits, uniforms, 1.0)"),
        ("always-the-likeliest", "sample_token",
         "lambda logits, uniforms, temperature=1.0: right(logits, uniforms, 1e-4)"),
        ("groups-interleaved", "sample_groups", "lambda policy, prompts, group_size, **k: "
         "(lambda r: r.select(torch.arange(len(r.mask)).view(-1, group_size).T.flatten()))("
         "right(policy, prompts, group_size, **k))")),
    *of("policy", "tests/test_policy.py",
        ("logits-as-log-probs", "token_log_probs",
         "lambda logits, tokens: logits.gather(-1, tokens[..., None]).squeeze(-1)"),
        ("entropy-sign", "token_entropy", "lambda logits: -right(logits)")),
    *of("transformer", "tests/test_policy.py",
        ("tokens-see-the-future", "attention_mask", "lambda mask: right(mask) | True"),
        ("positions-turn-back", "rotate", "lambda x, turns: right(x, turns.conj())")),
    *of("fast/packing", "tests/fast/test_packing.py",
        ("packed-answers-of-other-tokens", "Packed.in_rows",
         "lambda self, outputs: right(self, outputs).flip(0)")),
    *of("support/modules", "tests/fast/test_packing.py",
        ("what-was-changed-is-not-called", "offers",
         "lambda model, method: hasattr(model, method)")),
    *of("fast/decoding", "tests/fast/test_packing.py",
        ("decoded-at-another-temperature", "Decoder.step",
         "lambda self, *a, **k: right(self, *a, **k) * 1.01")),
    *of("training", "tests/test_training.py",
        ("advantages-of-other-rows", "GRPOTrainer.update",
         "lambda self, rollouts, advantages, *a, **k: "
         "right(self, rollouts, advantages.flip(0), *a, **k)"),
        ("reference-moves-along", "GRPOTrainer.__init__", "lambda self, *a, **k: "
         "(right(self, *a, **k), setattr(self, 'ref_policy', self.policy))[0]"),
        ("spoiled-weights-not-seen", "GRPOTrainer.nonfinite_weights", "lambda self: []")),
    *of("batches", "tests/test_joined_batches.py",
        ("other-groups-than-those-kept", "Batch.groups", "lambda self, which: "
         "right(self, 0 * which)")),
    *of("dynamic_sampling", "tests/test_training.py tests/test_joined_batches.py",
        ("what-is-thrown-away-is-forgotten", "collect",
         "lambda *a: (lambda pair: (pair[1], pair[1]))(right(*a))")),
    *of("update", "tests/test_training.py",
        ("minibatch-takes-the-first-rows", "gradient_step",
         "lambda trainer, rollouts, rows, *a, **k: right(trainer, rollouts, "
         "torch.arange(len(rows)), *a, **k)")),
    *of("critic", "tests/test_critic.py tests/test_training.py",
        ("values-of-padding-count", "value_loss",
         "lambda values, returns, mask: right(values, returns, mask * 0 + 1)")),
    *of("support/optim", "tests/test_training.py tests/test_critic.py",
        ("gradients-never-clipped", "clip_grad_norm",
         "lambda module, longest, what: right(module, 1e9, what)"),
        ("nan-is-not-seen", "check_finite", "lambda **tensors: None")),
    *of("algorithms", "tests/test_algorithms.py tests/test_training.py",
        ("cut-off-rows-are-trained-on", "Algorithm.loss_mask", "lambda self, mask, finished: mask"),
        ("overlong-not-punished", "Algorithm.shaped_rewards",
         "lambda self, rewards, *a, **k: rewards"),
        ("critic-learns-zero", "Algorithm.returns",
         "lambda self, *a, **k: right(self, *a, **k) * 0")),
    *of("evaluation", "tests/test_evaluation.py",
        ("pass-at-k-plugged-in", "pass_at_k",
         "lambda samples, right, k: 1 - (1 - right / samples) ** k"),
        ("interval-of-half-the-width", "wilson_interval",
         "lambda share, count, z=1.96: right(share, count, z / 2)")),
    *of("lab/statistics", "tests/lab/test_statistics.py",
        ("p-value-halved", "permutation_test", "lambda *a, **k: right(*a, **k) / 2")),
    *of("pretraining", "tests/test_pretraining.py",
        ("pretraining-sign", "example_loss", "lambda *a, **k: -right(*a, **k)")),
    *of("lab/exact", "tests/lab/test_exact.py tests/lab/test_exact_sequences.py",
        ("exact-kl-the-other-way-round", "kl_divergence", "lambda p, q: right(q, p)"),
        ("completions-kl-the-other-way-round", "sequence_kl",
         "lambda policy, ref_policy, *a, **k: right(ref_policy, policy, *a, **k)"),
        ("rewards-not-weighed", "expected_reward",
         "lambda policy, completions, rewards: right(policy, completions, rewards) * 0.5")),
    *of("lab/length_bias", "tests/lab/test_length_bias.py",
        ("length-score-sign", "length_score", "lambda *a, **k: -right(*a, **k)")),
    *of("lab/xray", "tests/lab/test_xray.py",
        ("agreement-sign", "agreement", "lambda *a, **k: -right(*a, **k)")),
    *of("tokenizer", "tests/test_tokenizer.py tests/test_rollout.py",
        ("padded-on-the-other-side", "pad", "lambda sequences, side: "
         "right(sequences, {'left': 'right', 'right': 'left'}.get(side, side))")),
    *of("tasks/base", "tests/test_tasks.py",
        ("held-out-is-trained-on", "is_held_out", "lambda prompt: False")),
    *of("tasks/chain", "tests/test_tasks.py",
        ("verifier-takes-any-place", "ChainTask.correct",
         "lambda self, problem, completion: problem.answer in completion")),
    *of("tasks/sorting", "tests/test_tasks.py",
        ("half-right-is-right", "SortTask.correct",
         "lambda self, problem, completion: self.reward(problem, completion) > 0.5")),
    *of("support/checkpoint", "tests/test_fuzz.py tests/support/test_checkpoint.py",
        ("damage-not-noticed", "checksum", "lambda *a, **k: 0")),
    *of("support/locks", "tests/support/test_run_faults.py",
        ("two-may-write-one-run", "lock", "lambda path: None")),
    *of("course/exercises/base", "tests/course/exercises/test_exercises.py "
        "tests/course/exercises/test_exercises_judging.py",
        ("every-answer-is-right", "Verdict.__bool__", "lambda self: True")),
]
