"""Options of the tests: which are run, and a strict comparison of notebooks, set here so that plain
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

# Folders of tests that take minutes, or need more than requirements.txt brings
SLOW = [*(ROOT / "tests" / name for name in ("browser", "grading", "llm", "parity", "projector",
                                             "seat", "site", "slides", "wheel")),
        ROOT / "notebooks" / "09_real_llm.ipynb"]

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


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="only the slow tests: those marked so and "
                     "the folders that conftest.py names, but not those of a release; without it "
                     "both are left out, unless the command names their file or folder")


def pytest_collection_modifyitems(config, items):
    if config.option.markexpr:  # chosen by -m
        return
    named = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
    named -= {ROOT, ROOT / "tests", ROOT / "notebooks"}

    def slow(item):
        return ("slow" in item.keywords or "release" in item.keywords
                or any(p in SLOW for p in (item.path, *item.path.parents)))

    def chosen(item):
        if config.option.slow:
            return slow(item) and "release" not in item.keywords
        return not slow(item) or any(p in named for p in (item.path, *item.path.parents))

    left_out = [item for item in items if not chosen(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = filter(chosen, items)


def pytest_report_header(config):
    if not LLM and not config.option.slow:
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
