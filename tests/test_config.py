"""Settings that are checked by name, and metrics that are all described."""

import json
import math
from dataclasses import FrozenInstanceError, fields, replace
from typing import get_args, get_type_hints

import pytest

from grpo_lib.advantages import BASELINES, SCALES
from grpo_lib.algorithms import ALGORITHMS, CHOICES
from grpo_lib.config import GRPOConfig, StepMetrics, describe_fields
from grpo_lib.objective import KLS, RATIOS, SURROGATES, WEIGHTS

WHOLE = {"steps": 0, "prompts_per_step": 1, "group_size": 2, "num_iterations": 1,
         "minibatches": 1, "eval_every": 0, "eval_problems": 1, "seed": 0}
BAD = [
    *((name, value) for name, least in WHOLE.items()
      for value in (least - 1, float(least + 1), str(least + 1), None, True, math.nan)),
    *((name, value) for name in ("temperature", "learning_rate", "max_grad_norm")
      for value in (0, 0.0, -1, math.nan, math.inf, "1", None)),
    *((name, value) for name in ("std_eps", "beta", "epsilon")
      for value in (-1e-9, math.nan, math.inf, "0")),
    ("epsilon", 1.5), ("epsilon_high", -0.1), ("epsilon_high", math.nan), ("epsilon_high", "x"),
    ("delta", 1.0), ("delta", 1.2), ("delta", math.nan), ("delta", "x"),
    *((name, value) for name in ("kl", "baseline", "scale", "ratio", "aggregation", "surrogate",
                                 "algorithm") for value in ("other", "", 1)),
    ("minibatches", 513),
    *((name, value) for name in ("use_bias_correction_kl", "kl_in_reward", "critic", "whiten",
                                 "dynamic_sampling", "mask_truncated_completions", "measure_kl")
      for value in (0, 1, "true", "False")), ("measure_kl", None),
    *((name, value) for name in ("gamma", "gae_lambda", "overlong_share", "top_entropy_quantile")
      for value in (-0.1, 1.1, math.nan, "x")),
    *((name, value) for name in ("sapo_temperature_pos", "sapo_temperature_neg",
                                 "top_entropy_quantile") for value in (0, -1, "x")),
    ("entropy_coef", math.inf), ("off_policy_mask_threshold", "x"), ("max_num_gen_batches", 0),
    ("value_learning_rate", 0),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_an_error_that_names_its_field(name, value):
    with pytest.raises(ValueError, match=f"^{name}: got ") as caught:
        GRPOConfig(**{name: value})
    message = str(caught.value)
    assert repr(value) in message
    assert "allowed" in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "value"), [
    *WHOLE.items(), ("temperature", 1), ("temperature", 0.01), ("epsilon", 0), ("epsilon", 1),
    ("epsilon_high", 0.0), ("epsilon_high", 3), ("epsilon_high", math.inf), ("delta", 1.21),
    ("beta", 0), ("std_eps", 0), ("baseline", "none"), ("scale", "batch"),
    ("aggregation", "constant"), ("minibatches", 512), ("algorithm", "dapo"),
    ("entropy_coef", -0.01), ("top_entropy_quantile", 0.2), ("off_policy_mask_threshold", 0),
    ("overlong_share", 1), ("whiten", True), ("max_num_gen_batches", 1),
])
def test_a_value_at_the_edge_is_taken(name, value):
    config = GRPOConfig(**{name: value})
    assert getattr(config, name) == value
    if name in CHOICES:
        assert getattr(config.choices, name) == value


@pytest.mark.parametrize(("name", "value", "why"), [
    ("kl", "k1", "beta is 0"), ("use_bias_correction_kl", True, "beta is 0"),
    ("gae_lambda", 0.5, "there is no critic"), ("sapo_temperature_pos", 2.0, "only surrogate"),
])
def test_a_choice_that_changes_nothing_is_told(name, value, why):
    with pytest.warns(UserWarning, match=f"{name}: .* will change nothing, since {why}"):
        GRPOConfig(**{name: value})


def test_a_choice_that_the_row_makes_is_not_told():
    assert ALGORITHMS["rloo"].idle_choices()  # its KL goes into the reward, with beta 0
    GRPOConfig(algorithm="rloo")  # warnings are errors here
    GRPOConfig(algorithm="rloo", kl="k1")


def test_a_ratio_of_sequences_averaged_over_tokens_is_told():
    for aggregation in ("token_mean", "constant", "sequence_sum"):
        with pytest.warns(UserWarning, match="once for each of its tokens"):
            GRPOConfig(algorithm="gspo", aggregation=aggregation)
    GRPOConfig(algorithm="gspo", aggregation="nonempty_sequence_mean")


def test_an_algorithm_is_a_row_that_the_choices_override():
    config = GRPOConfig(algorithm="dapo", epsilon=0.1)
    assert config.choices == replace(ALGORITHMS["dapo"], epsilon=0.1)
    assert config.choices.epsilon_high == 0.28
    assert GRPOConfig(algorithm="grpo").choices == ALGORITHMS["grpo"]
    assert GRPOConfig().choices == replace(ALGORITHMS["grpo"], aggregation="token_mean")
    assert replace(config, algorithm="grpo").choices == replace(ALGORITHMS["grpo"], epsilon=0.1)


def test_an_unknown_algorithm_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="algorithm: got 'gropo', allowed are grpo, reinforce"):
        GRPOConfig(algorithm="gropo")


def test_a_group_of_one_is_enough_for_an_algorithm_without_groups():
    for name in ("reinforce", "reinforce_baseline", "reinforce_plus_plus", "ppo"):
        assert GRPOConfig(algorithm=name, group_size=1).group_size == 1
    for name in ("grpo", "rloo", "dr_grpo", "maxrl", "lite_ppo"):
        with pytest.raises(ValueError, match="group_size: got 1"):
            GRPOConfig(algorithm=name, group_size=1)


def test_a_group_of_one_says_why():
    with pytest.raises(ValueError, match="compared with the others of its group"):
        GRPOConfig(group_size=1)


def test_delta_is_compared_with_the_upper_clip():
    assert GRPOConfig(epsilon_high=0.5, delta=1.6).delta == 1.6
    with pytest.raises(ValueError, match=r"delta: got 1\.5"):
        GRPOConfig(epsilon_high=0.6, delta=1.5)


def test_minibatches_are_compared_with_the_completions_of_a_step():
    assert GRPOConfig(prompts_per_step=2, group_size=3, minibatches=6).minibatches == 6
    with pytest.raises(ValueError, match="minibatches: got 7, allowed are at most the 6"):
        GRPOConfig(prompts_per_step=2, group_size=3, minibatches=7)


def test_the_defaults_of_the_flagship_run():
    given = GRPOConfig()
    config = given.choices
    assert (config.aggregation, config.ratio, config.kl) == ("token_mean", "token", "k3")
    assert (config.baseline, config.scale, config.std_eps) == ("mean", "group", 1e-4)
    assert (config.epsilon, config.epsilon_high, config.delta) == (0.2, None, None)
    assert (config.beta, given.temperature) == (0.0, 1.0)
    assert config.use_bias_correction_kl is False


def test_settings_cannot_be_changed_under_a_run():
    with pytest.raises(FrozenInstanceError):
        GRPOConfig().beta = 0.1


def test_settings_survive_json():
    config = GRPOConfig(beta=0.04, epsilon_high=0.28, seed=3)
    again = GRPOConfig(**json.loads(json.dumps(config.to_dict())))
    assert again.choices == config.choices
    assert again.to_dict() == config.to_dict()
    assert None not in [again.to_dict()[name] for name in ("epsilon", "scale", "kl")]


def test_every_row_survives_json():
    for name in ALGORITHMS:
        config = GRPOConfig(algorithm=name)
        assert GRPOConfig(**json.loads(json.dumps(config.to_dict()))).choices == config.choices


@pytest.mark.parametrize("cls", [GRPOConfig, StepMetrics])
def test_every_field_has_a_sentence_of_its_own(cls):
    described = describe_fields(cls)
    assert list(described) == [f.name for f in fields(cls)]
    assert all(len(about.split()) >= 3 for about in described.values())
    assert len(set(described.values())) == len(described)


def test_metrics_are_one_line_of_json_rounded_to_six_places():
    values = {f.name: 1 / 3 for f in fields(StepMetrics)} | {
        "step": 4, "held_out_accuracy": None, "tokens": 12,
        "rewards": {"rewards/short/mean": 1 / 3, "rewards/short/std": None}}
    line = StepMetrics(**values).to_json()
    assert "\n" not in line
    content = json.loads(line)
    assert list(content) == [*(f.name for f in fields(StepMetrics) if f.name != "rewards"),
                             "rewards/short/mean", "rewards/short/std"]
    assert (content["rewards/short/mean"], content["rewards/short/std"]) == (0.333333, None)
    assert (content["step"], content["held_out_accuracy"], content["loss"]) == (4, None, 0.333333)


@pytest.mark.parametrize("name, table", {
    "baseline": BASELINES, "scale": SCALES, "ratio": RATIOS, "surrogate": SURROGATES, "kl": KLS,
    "aggregation": WEIGHTS}.items())
def test_an_editor_completes_the_names_of_each_table(name, table):
    names, _none = get_args(get_type_hints(GRPOConfig)[name])
    assert get_args(names) == tuple(table)
