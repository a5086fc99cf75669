"""Settings that are checked by name, and metrics that are all described."""

import json
import math
from dataclasses import FrozenInstanceError, fields

import pytest

from grpo_lib.config import GRPOConfig, StepMetrics, describe_fields

WHOLE = {"steps": 0, "prompts_per_step": 1, "group_size": 2, "num_iterations": 1,
         "minibatches": 1, "eval_every": 0, "eval_problems": 1, "seed": 0}
BAD = [
    *((name, value) for name, least in WHOLE.items()
      for value in (least - 1, float(least + 1), str(least + 1), None, True, math.nan)),
    *((name, value) for name in ("temperature", "learning_rate", "max_grad_norm")
      for value in (0, 0.0, -1, math.nan, math.inf, "1", None)),
    *((name, value) for name in ("std_eps", "beta", "epsilon")
      for value in (-1e-9, math.nan, math.inf, "0", None)),
    ("epsilon", 1.5), ("epsilon_high", -0.1), ("epsilon_high", math.nan), ("epsilon_high", "x"),
    ("delta", 1.0), ("delta", 1.2), ("delta", math.nan), ("delta", "x"),
    *((name, value) for name in ("kl", "baseline", "scale", "ratio", "aggregation")
      for value in ("other", "", None, 1)),
    ("minibatches", 513),
    *(("use_bias_correction_kl", value) for value in (None, 0, 1, "true", "False")),
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
    ("beta", 0), ("std_eps", 0), ("kl", "k1"), ("baseline", "none"), ("scale", "batch"),
    ("ratio", "sequence"), ("aggregation", "constant"), ("minibatches", 512),
    ("use_bias_correction_kl", True),
])
def test_a_value_at_the_edge_is_taken(name, value):
    assert getattr(GRPOConfig(**{name: value}), name) == value


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
    config = GRPOConfig()
    assert (config.aggregation, config.ratio, config.kl) == ("token_mean", "token", "k3")
    assert (config.baseline, config.scale, config.std_eps) == ("mean", "group", 1e-4)
    assert (config.epsilon, config.epsilon_high, config.delta) == (0.2, None, None)
    assert (config.beta, config.temperature) == (0.0, 1.0)
    assert config.use_bias_correction_kl is False


def test_settings_cannot_be_changed_under_a_run():
    with pytest.raises(FrozenInstanceError):
        GRPOConfig().beta = 0.1


def test_settings_survive_json():
    config = GRPOConfig(beta=0.04, epsilon_high=0.28, seed=3)
    assert GRPOConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("cls", [GRPOConfig, StepMetrics])
def test_every_field_has_a_sentence_of_its_own(cls):
    described = describe_fields(cls)
    assert list(described) == [f.name for f in fields(cls)]
    assert all(len(about.split()) >= 3 for about in described.values())
    assert len(set(described.values())) == len(described)


def test_metrics_are_one_line_of_json_rounded_to_six_places():
    values = {f.name: 1 / 3 for f in fields(StepMetrics)} | {
        "step": 4, "held_out_accuracy": None, "tokens": 12}
    line = StepMetrics(**values).to_json()
    assert "\n" not in line
    content = json.loads(line)
    assert list(content) == [f.name for f in fields(StepMetrics)]
    assert (content["step"], content["held_out_accuracy"], content["loss"]) == (4, None, 0.333333)
