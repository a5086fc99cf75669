"""Torch's threads: how many, and whether they spin while they wait."""

import os
import sys
from types import SimpleNamespace

import pytest

from grpo_lib.support import threads


@pytest.fixture
def session(monkeypatch):
    """A session in which torch is loaded already or not, in a given environment; returns what
    stands for torch. Importing torch loads it."""

    def start(torch_was_first, **environment):
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
            monkeypatch.setenv(name, "")  # so that what is settled is undone afterwards
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fake = SimpleNamespace(chosen=[], available=8)
        fake.get_num_threads = lambda: fake.available
        fake.set_num_threads = fake.chosen.append
        monkeypatch.setitem(sys.modules, "torch", fake)
        if not torch_was_first:
            monkeypatch.delitem(sys.modules, "torch")

        class Finder:
            """Finds the stand-in when torch is imported."""

            @staticmethod
            def find_spec(name, path=None, target=None):
                from importlib.util import spec_from_loader

                return spec_from_loader(name, Finder) if name == "torch" else None

            @staticmethod
            def create_module(spec):
                return None

            @staticmethod
            def exec_module(module):
                sys.modules["torch"] = fake

        monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
        return fake

    return start


@pytest.mark.parametrize(("available", "chosen"), [(1, 1), (2, 1), (3, 3), (4, 4), (64, 4)])
def test_settled_before_torch_its_threads_sleep_and_are_four_at_most(session, available, chosen):
    torch = session(torch_was_first=False)
    torch.available = available
    threads.settle()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert torch.chosen == [chosen]


def test_settled_twice_nothing_more_changes(session):
    torch = session(torch_was_first=False)
    threads.settle()
    torch.available = torch.chosen[-1]
    threads.settle()
    assert torch.chosen == [4, 4] and os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_settled_after_torch_one_thread_is_safe(session):
    torch = session(torch_was_first=True)
    threads.settle()
    assert torch.chosen == [1]
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.parametrize("policy", ["PASSIVE", "passive"])
def test_settled_after_torch_threads_that_sleep_already_are_fine(session, policy):
    torch = session(torch_was_first=True, OMP_WAIT_POLICY=policy)
    threads.settle()
    assert torch.chosen == [4]


@pytest.mark.parametrize("torch_was_first", [True, False])
def test_threads_that_shall_spin_are_one(session, torch_was_first):
    torch = session(torch_was_first, OMP_WAIT_POLICY="ACTIVE")
    threads.settle()
    assert torch.chosen == [1]
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize("torch_was_first", [True, False])
def test_a_number_chosen_in_the_environment_is_left_alone(session, torch_was_first):
    torch = session(torch_was_first, OMP_NUM_THREADS="7")
    threads.settle()
    assert torch.chosen == []
    assert os.environ["OMP_NUM_THREADS"] == "7"
