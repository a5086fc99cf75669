"""Comparisons with TRL's own code; left out where the ``parity`` extra is not installed."""

import importlib.util

import pytest

TRL = importlib.util.find_spec("trl") is not None
collect_ignore = [] if TRL else ["test_trl.py"]
compared = {"loss and gradient": 0, "loss and gradient, in which the gradient is not all 0": 0,
            "advantages": 0}


@pytest.fixture
def count():
    """count(what): another case was compared; ``moved``: its gradient is not all 0."""

    def add(what, moved=False):
        compared[what] += 1
        if moved:
            compared[f"{what}, in which the gradient is not all 0"] += 1

    return add


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # one of several processes: the first one tells
        session.config.workeroutput["compared"] = compared


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for what, number in getattr(node, "workeroutput", {}).get("compared", {}).items():
        compared[what] += number


def pytest_terminal_summary(terminalreporter):
    if any(compared.values()):
        import trl

        terminalreporter.write_line(f"compared with TRL {trl.__version__}: " + ", ".join(
            f"{n} cases of {what}" for what, n in compared.items()))
