"""Options of the tests: strict comparison of notebooks, set here so that plain
``pytest --nbval`` needs no others and pytest works where nbval is missing."""

import importlib.util
import os
import signal
from pathlib import Path

from grpo_lib.support import threads

ROOT = Path(__file__).parent
# Lesson 09 needs the llm extra, which requirements.txt does not bring.
LLM = all(importlib.util.find_spec(name) for name in ("transformers", "peft"))
collect_ignore = [] if LLM else ["notebooks/09_real_llm.ipynb"]

# Kernels that nbval starts, and processes that tests start, import grpo_lib from here.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


threads.settle()  # kernels and processes that tests start inherit how threads wait


def pytest_ignore_collect(collection_path, config):
    """With ``-m gpu`` or ``-m browser`` only files that have such tests are imported: a machine
    with a GPU needs neither Jupyter nor anything else that the other tests import."""
    mark = config.option.markexpr.strip()
    if (mark in ("gpu", "browser") and collection_path.match("test_*.py")
            and f"mark.{mark}" not in collection_path.read_text(encoding="utf-8")):
        return True


def pytest_report_header():
    if not LLM:
        return ("notebooks/09_real_llm.ipynb: left out, transformers or peft is missing "
                "(pip install -e '.[llm]')")


def pytest_configure(config):
    # A shell's background job starts with Ctrl-C ignored; tests of Ctrl-C need it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    option = config.option
    if hasattr(option, "nbval_sanitize_with"):
        if not option.nbval_sanitize_with:
            option.nbval_sanitize_with = str(ROOT / "tests" / "nbval_sanitize.cfg")
        option.nbval_current_env = option.nbval_current_env or not option.nbval_kernel_name
        option.nbval_kernel_startup_timeout = 600  # a busy machine takes its time
