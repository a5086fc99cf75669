"""Small policies, tasks and rollouts that many tests share."""

import os

import pytest
import torch

from grpo_lib.rollout import sample_groups
from grpo_lib.tasks import SortTask
from grpo_lib.transformer import PolicyConfig, TransformerPolicy

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    torch.set_num_threads(1)


@pytest.fixture
def make_policy():
    """Makes a small transformer whose logits differ enough for every input to matter."""

    def make(vocab_size=12, dtype=torch.float64, seed=0, **shape):
        sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_hidden": 24,
                 "context_length": 32, "init_std": 0.3} | shape
        generator = torch.Generator().manual_seed(seed)
        return TransformerPolicy(PolicyConfig(vocab_size, **sizes), generator).to(dtype)

    return make


@pytest.fixture
def policy(make_policy):
    return make_policy()


@pytest.fixture
def prompts():
    """Three prompts of unequal lengths, so that two of them are padded."""
    return [[3, 4, 5, 6, 7], [8, 9], [10, 11, 2, 3]]


@pytest.fixture
def seeded():
    """Makes a generator from a seed."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture
def sample(prompts, seeded):
    """Samples groups of four completions of the prompts; some end early, some are cut off."""

    def draw(policy, some_prompts=prompts, group_size=4, seed=3, max_new_tokens=8, **options):
        return sample_groups(policy, some_prompts, group_size, max_new_tokens=max_new_tokens,
                             generator=seeded(seed), **options)

    return draw


@pytest.fixture
def sort_task():
    return SortTask(2, 3)
