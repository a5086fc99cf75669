"""Importing changes nothing in a session; ``course.set_up`` changes what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell
from waiting import PATIENCE

from grpo_lib import course

ROOT = Path(__file__).parents[2]
LOADED = """
import atexit, gc, importlib, json, locale, logging, os, pkgutil, random, signal, sys, threading
import warnings
from IPython.core.interactiveshell import InteractiveShell
import ipywidgets, matplotlib, matplotlib.figure, numpy, torch
from torch import nn
shell = InteractiveShell.instance()
shell.set_custom_exc((ZeroDivisionError,), lambda *args, **kwargs: None)

def state():
    return {
        "environment": dict(os.environ), "folder": os.getcwd(), "path": list(sys.path),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_default_device(),
                  torch.get_float32_matmul_precision(), vars(torch._tensor_str.PRINT_OPTS),
                  torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()),
        "numpy": (numpy.geterr(), numpy.get_printoptions()),
        "random numbers": (torch.get_rng_state().tolist(), random.getstate(),
                           numpy.random.get_state()[1].tolist()),
        "errors": (shell.custom_exceptions, shell.CustomTB, sys.excepthook, sys.displayhook,
                   threading.excepthook, shell.showtraceback),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "matplotlib": (dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)),
        "signals": [signal.getsignal(s) for s in sorted(signal.valid_signals())],
        "logging": (logging.root.level, list(logging.root.handlers), logging.raiseExceptions),
        "python": (sys.getrecursionlimit(), sys.gettrace(), list(sys.meta_path), gc.isenabled(),
                   locale.setlocale(locale.LC_ALL), list(sys.path_hooks), atexit._ncallbacks()),
        "streams": (sys.stdout, sys.stderr, sys.stdout.errors, sys.stderr.errors),
        "threads alive": threading.active_count(),
    }

def differences(before):
    return [name for name, value in state().items() if repr(value) != repr(before[name])]
"""
IMPORTS = """
before, changed = state(), {}
import grpo_lib
names = ["grpo_lib", *(m.name for m in pkgutil.walk_packages(grpo_lib.__path__, "grpo_lib."))]
for name in names:
    importlib.import_module(name)
    if differences(before):
        changed[name] = differences(before)
        before = state()
print(json.dumps([len(names), changed]))
"""


def run_python(code, **environment):
    """What ``code`` prints last, as JSON, in a fresh Python whose threads nobody has settled."""
    usual = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=usual | environment,
                          capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_importing_any_module_changes_nothing_in_the_session():
    count, changed = run_python(LOADED + IMPORTS)
    assert count > 60 and changed == {}


@pytest.mark.slow
def test_importing_before_torch_leaves_the_environment_alone():
    code = ("import json, os\nbefore = dict(os.environ)\n"
            "import grpo_lib, grpo_lib.support.threads, grpo_lib.course, grpo_lib.policy\n"
            "print(json.dumps(before == dict(os.environ)))")
    assert run_python(code)


@pytest.mark.slow
def test_set_up_settles_threads_that_sleep():
    code = ("import json, os, sys\nimport grpo_lib.course\nassert 'torch' not in sys.modules\n"
            "grpo_lib.course.set_up()\nimport torch\n"
            "print(json.dumps([os.environ['OMP_WAIT_POLICY'], torch.get_num_threads() <= 4]))")
    assert run_python(code) == ["PASSIVE", True]


@pytest.mark.slow
def test_set_up_after_torch_leaves_the_environment_and_takes_one_thread():
    code = ("import json, os\nimport torch\nimport grpo_lib.course\ngrpo_lib.course.set_up()\n"
            "print(json.dumps(['OMP_WAIT_POLICY' in os.environ, torch.get_num_threads()]))")
    assert run_python(code) == [False, 1]


@pytest.mark.parametrize(("lacking", "said"), [
    (["torch"], "the lessons need torch: run the line  %pip install torch  in a cell of its own"),
    (["PIL", "ipywidgets"], "pillow, ipywidgets: run the line  %pip install pillow ipywidgets")])
def test_a_missing_package_is_named_in_one_line(monkeypatch, lacking, said):
    monkeypatch.setattr(course, "find_spec", lambda name: None if name in lacking else object())
    with pytest.raises(ImportError) as caught:
        course.set_up()
    assert said in str(caught.value)
    assert caught.value._render_traceback_() == [f"ImportError: {caught.value}"]


# --- the advice -----------------------------------------------------------------------------

@pytest.fixture
def shell(monkeypatch):
    """An IPython shell that notes which tracebacks it shows."""
    shell = InteractiveShell()
    shell.shown = []
    shell.showtraceback = lambda exc=None, **_: shell.shown.append(exc or sys.exc_info())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    yield shell
    shell.history_manager.end_session()


def test_a_name_that_is_not_there_comes_with_advice(shell):
    course.advise()
    shell.run_cell("tusk")
    [(kind, error, _)] = shell.shown
    assert kind is NameError and str(error) == f"name 'tusk' is not defined; {course.ADVICE}"


def test_a_name_that_a_function_of_a_module_misses_comes_without(shell):
    course.advise()
    shell.run_cell("import types\nm = types.ModuleType('m')\n"
                   "exec('def f():\\n    return tusk', m.__dict__)\nm.f()")
    assert str(shell.shown[0][1]) == "name 'tusk' is not defined"


def test_advising_twice_advises_once(shell):
    course.advise()
    course.advise()
    shell.run_cell("tusk")
    assert str(shell.shown[0][1]).count(course.ADVICE) == 1


def test_a_handler_of_another_error_keeps_it(shell):
    seen = []
    shell.set_custom_exc((ImportError, ZeroDivisionError),
                         lambda shell, kind, *_, **__: seen.append(kind))
    course.advise()
    for source in ("1 / 0", "import no_such_module", "tusk", "[][0]"):
        shell.run_cell(source)
    assert seen == [ZeroDivisionError, ModuleNotFoundError]
    assert [kind for kind, *_ in shell.shown] == [NameError, IndexError]
    assert course.ADVICE in str(shell.shown[0][1])


@pytest.mark.parametrize("theirs", [(NameError,), (Exception,), (KeyError, NameError)])
def test_a_handler_that_takes_name_errors_stays(shell, theirs):
    seen = []
    shell.set_custom_exc(theirs, lambda shell, kind, *_, **__: seen.append(kind))
    before = shell.CustomTB
    course.advise()
    assert shell.CustomTB is before and shell.custom_exceptions == theirs
    shell.run_cell("tusk")
    assert seen == [NameError] and shell.shown == []


def test_without_ipython_there_is_no_advice(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython")
    course.advise()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    course.advise()
