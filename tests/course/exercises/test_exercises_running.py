"""A learner's function may loop, print, raise and set what it likes: the kernel stays usable, and
nobody sees a stack trace."""

import contextlib
import os
import random
import signal
import sys
import time
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from waiting import PATIENCE

from grpo_lib.course.exercises import EXERCISES, CurveQuestion, Exercise, Question, check
from grpo_lib.course.exercises.running import default_device, limited

EXAMPLE = EXERCISES["group_advantages"]
alarms = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="Linux and macOS have alarms")


def stopped(function, limit=0.2, within=PATIENCE):
    """The verdict on a function that never ends; afterwards everything works."""
    start = time.perf_counter()
    verdict = check.group_advantages(function, limit=limit)
    assert time.perf_counter() - start < within
    assert sys.gettrace() is TRACE and check.group_advantages(EXAMPLE.reference)
    assert f"stopped after {limit:g} s" in verdict.text and verdict.status == "error"


TRACE = sys.gettrace()


@pytest.fixture(autouse=True)
def trace_as_it_is():
    global TRACE
    TRACE = sys.gettrace()


# --- endless ones ---------------------------------------------------------------------------------

@alarms
class TestEndless:
    @pytest.fixture(autouse=True)
    def an_alarm_may_fall_into_a_callback_of_the_interpreters_own(self, monkeypatch):
        monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)

    def test_one_that_swallows_everything(self):
        def swallows(r):
            while True:
                try:
                    for _ in range(1000):
                        r = r + 0
                except:  # noqa: E722
                    pass

        stopped(swallows)

    def test_one_that_suppresses_it(self):
        def suppresses(r):
            while True:
                with contextlib.suppress(BaseException):
                    for _ in range(1000):
                        r = r + 0

        stopped(suppresses)

    def test_one_that_loops_in_another_function_of_its_cell(self):
        def helper(r):
            try:
                while True:
                    r = r + 0
            except BaseException:
                return r

        def calls(r):
            while True:
                r = helper(r)

        stopped(calls)

    def test_one_that_prints_fills_no_memory(self):
        def prints(r):
            while True:
                print("x" * 1000)

        tracemalloc.start()
        stopped(prints, limit=0.5)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6

    def test_one_that_calls_itself(self):
        def calls(r):
            return calls(r) + 1

        verdict = check.group_advantages(calls)
        assert verdict.status == "error" and "RecursionError" in verdict.text

    @pytest.mark.slow
    @pytest.mark.skipif(sys.version_info < (3, 11), reason="before 3.11 calls lie on the "
                        "system's stack: it ends the process before anybody can look")
    def test_one_that_calls_itself_with_another_limit(self):
        def deep(r):
            sys.setrecursionlimit(10**7)

            def calls(r):
                try:
                    return calls(r) + 1
                except RecursionError:
                    too_deep.add(True)
                    raise
            return calls(r)

        before, too_deep = sys.getrecursionlimit(), set()
        verdict = check.group_advantages(deep)
        assert sys.getrecursionlimit() == before and verdict.status == "error"
        assert too_deep, "calls piled up until the time was over"
        # on a busy machine the time may be over first
        assert "RecursionError" in verdict.text or "stopped after" in verdict.text

    def test_an_alarm_after_the_end_stops_nobody(self):
        def late(signum, frame):
            raise AssertionError

        before = signal.signal(signal.SIGALRM, late)
        try:
            limited(lambda: None, 1.0, {})
            assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
        finally:
            signal.signal(signal.SIGALRM, before)


# --- what is left behind --------------------------------------------------------------------------

def test_every_setting_is_afterwards_what_it_was(tmp_path):
    def state():
        return (random.getstate(), np.random.get_state()[1].tolist(),
                torch.get_rng_state().tolist(), torch.get_default_dtype(),
                default_device(), torch.is_anomaly_enabled(), torch.is_grad_enabled(),
                torch.get_num_threads(), np.geterr(), sys.getrecursionlimit(), os.getcwd(),
                warnings.filters[:])

    def meddles(r):
        result = EXAMPLE.reference(r)
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.autograd.set_detect_anomaly(True)
        torch.set_grad_enabled(False)
        torch.set_num_threads(torch.get_num_threads() + 1)
        np.seterr(all="raise")
        sys.setrecursionlimit(5000)
        os.chdir(tmp_path)
        warnings.simplefilter("error")
        return result

    before = state()
    with warnings.catch_warnings():
        assert check.group_advantages(meddles)
    assert state() == before


def test_a_device_set_in_one_case_does_not_make_the_next():
    def meddles(r):
        assert r.device.type == "cpu"
        torch.set_default_device("meta")
        return (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)

    assert check.group_advantages(meddles)


def test_a_default_device_is_only_set_where_it_was_changed(monkeypatch):
    """After set_default_device(None), torch 2.9 fails whenever it is asked for the device."""
    def ask():
        raise AttributeError("'NoneType' object has no attribute 'device'")

    sets = []
    monkeypatch.setattr(torch, "set_default_device", sets.append)
    assert check.group_advantages(EXAMPLE.reference) and sets == []
    monkeypatch.setattr(torch, "get_default_device", ask)
    assert check.group_advantages(EXAMPLE.reference) and sets == []


def test_nothing_is_printed_anywhere(capsys):
    def loud(r):
        print("one")
        print("two", file=sys.stderr)
        warnings.warn("three", stacklevel=1)
        return EXAMPLE.reference(r)

    verdict = check.group_advantages(loud)
    count = 2 * len(list(EXAMPLE.cases()))
    assert verdict and f"(It printed {count} lines, left out here.)" in verdict.text
    assert capsys.readouterr() == ("", "")


def test_a_closed_output_is_no_matter(capsys):
    def closes(r):
        sys.stdout.close()
        return EXAMPLE.reference(r)

    assert check.group_advantages(closes)
    print("still open")
    assert "still open" in capsys.readouterr().out


# --- never a stack trace --------------------------------------------------------------------------

class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no")


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no")


def raises(error):
    def function(*arguments):
        raise error

    return function


NONSENSE = [raises(Silent()), raises(RuntimeError("x" * 100_000)), lambda *_: Unshowable(),
            lambda *_: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)],
                                                  layout=torch.jagged),
            lambda *_: torch.ones(2).to_sparse(), lambda *_: np.array(["a"]),
            lambda *_: [[1.0], [1.0, 2.0]], lambda *_: 10**400, lambda *_: np.zeros(2, "O"),
            lambda *_: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.quint8),
            lambda *_: [None], Unshowable(), Unshowable, 3, None, "text", len, [1], lambda: 1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("nonsense", NONSENSE, ids=range(len(NONSENSE)))
def test_no_function_makes_a_checker_raise(nonsense):
    for exercise in [e for e in EXERCISES.values() if isinstance(e, Exercise)]:
        verdict = exercise.check(nonsense)
        assert not verdict and len(verdict.text) < 2500 and "Traceback" not in verdict.text


@pytest.mark.parametrize("guess", [
    ["none", "end masked out"], {"none"}, {}, np.array(["sign"]), 10**400, -(10**400),
    torch.ones(2, 2), Unshowable(), object(), b"sign", 1e400, "9" * 5000])
def test_no_guess_makes_a_question_raise(guess):
    for question in [e for e in EXERCISES.values() if isinstance(e, (Question, CurveQuestion))]:
        assert question.check(guess).status in ("error", "wrong")


def test_a_numpy_text_is_a_text():
    assert check.curves_b(np.str_("sign")) and check.curves_b(np.array("sign"))
    assert "allowed is one of 'none'" in check.curves_d(["none", "end masked out"]).text


def test_a_number_beyond_all_floats_is_too_large():
    assert "too large" in check.advantage_of_one(10**400).text
    assert "too small" in check.advantage_of_one(-(10**400)).text


def test_what_goes_wrong_in_judging_is_said(monkeypatch):
    def fails(self, found, notes):
        raise RuntimeError("inside")

    monkeypatch.setattr(Exercise, "judge", fails)
    verdict = check.entropy(EXERCISES["entropy"].reference)
    assert verdict.status == "error" and "RuntimeError: inside" in verdict.text


def test_leaving_python_while_a_repaired_run_is_shown_is_no_matter():
    leash = EXERCISES["leash"]

    def leaves(*arguments):
        if arguments[-1] > 100:
            raise SystemExit
        return leash.reference(*arguments)

    assert leash.check(leaves).text == "leash: right, on 3 cases."


def test_a_long_message_is_cut():
    text = check.group_advantages(raises(RuntimeError("x" * 100_000))).text
    assert "RuntimeError: xxx" in text and "..." in text and len(text) < 600
