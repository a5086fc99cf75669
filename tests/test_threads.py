"""Torch's threads: how many, and whether they spin while they wait."""

import importlib.util
import os
import sys
from types import SimpleNamespace

import pytest

from grpo_lib import threads


@pytest.fixture
def load(monkeypatch):
    """Loads the room afresh, with torch loaded before it or not, in a given environment."""

    def fresh(torch_was_first, **environment):
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
            monkeypatch.setenv(name, "")  # so that what the room sets is undone afterwards
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fake = SimpleNamespace(chosen=[], available=8)
        fake.get_num_threads = lambda: fake.available
        fake.set_num_threads = fake.chosen.append
        if torch_was_first:
            monkeypatch.setitem(sys.modules, "torch", fake)
        else:
            monkeypatch.delitem(sys.modules, "torch", raising=False)
        spec = importlib.util.spec_from_file_location("fresh_threads", threads.__file__)
        room = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(room)
        monkeypatch.setitem(sys.modules, "torch", fake)
        return room, fake

    return fresh


@pytest.mark.parametrize(("available", "chosen"), [(1, 1), (2, 1), (3, 3), (4, 4), (64, 4)])
def test_loaded_before_torch_its_threads_sleep_and_are_four_at_most(load, available, chosen):
    room, torch = load(torch_was_first=False)
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    torch.available = available
    room.settle()
    assert torch.chosen == [chosen]


def test_loaded_after_torch_one_thread_is_safe(load):
    room, torch = load(torch_was_first=True)
    room.settle()
    assert torch.chosen == [1]
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize("policy", ["PASSIVE", "passive"])
def test_loaded_after_torch_threads_that_sleep_already_are_fine(load, policy):
    room, torch = load(torch_was_first=True, OMP_WAIT_POLICY=policy)
    room.settle()
    assert torch.chosen == [4]


def test_loaded_after_torch_threads_that_spin_are_not(load):
    room, torch = load(torch_was_first=True, OMP_WAIT_POLICY="ACTIVE")
    room.settle()
    assert torch.chosen == [1]


@pytest.mark.parametrize("torch_was_first", [True, False])
def test_a_number_chosen_in_the_environment_is_left_alone(load, torch_was_first):
    room, torch = load(torch_was_first, OMP_NUM_THREADS="7")
    room.settle()
    assert torch.chosen == []
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_wait_policy_chosen_in_the_environment_is_left_alone(load):
    load(torch_was_first=False, OMP_WAIT_POLICY="ACTIVE")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
