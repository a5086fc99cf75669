"""On a machine with a GPU and little else: the gpu tests and ``benchmarks`` need no Jupyter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import PATIENCE

ROOT = Path(__file__).parents[2]
JUPYTER = {"ipywidgets", "IPython", "ipykernel", "jupyter_client", "jupyterlab", "nbclient",
           "nbformat", "nbval", "traitlets", "matplotlib", "PIL", "hypothesis", "xdist",
           "playwright", "tqdm"}
MISSING = """import importlib.machinery, sys
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
"""


def without(packages, code):
    """Code in a fresh Python in which these packages are not installed, and there is no GPU."""
    finder = MISSING.replace("{}", repr(packages))
    return subprocess.run(
        [sys.executable, "-c", finder + code], cwd=ROOT, capture_output=True, text=True,
        check=False, timeout=PATIENCE, env=os.environ | {
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
@pytest.mark.parametrize("packages", [JUPYTER, JUPYTER | {"transformers", "peft", "trl"}],
                         ids=["no-jupyter", "nothing-but-torch"])
def test_the_gpu_tests_are_collected_by_themselves(packages):
    done = without(packages, "import pytest; sys.exit(pytest.main("
                             "['-m', 'gpu', 'tests', '-v', '-p', 'no:cacheprovider']))")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    found = {line.split("::")[0] for line in lines if "::" in line}
    assert "tests/test_gpu.py" in found <= {"tests/test_gpu.py", "tests/llm/test_on_cuda.py"}
    assert all("SKIPPED" in line for line in lines if "::" in line)
    assert "deselected" not in done.stdout, "files without gpu tests were imported"


@pytest.mark.slow
def test_a_benchmark_that_cannot_be_measured_says_why_in_one_line():
    done = without(JUPYTER, "import torch; torch.cuda.is_available = lambda: False; "
                            "from benchmarks.__main__ import PARTS; PARTS.main('', ['cuda'])")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "benchmarks cuda: no CUDA device\n"


@pytest.mark.slow
def test_what_is_asked_for_is_imported_and_nothing_else():
    code = ("import recordings.measuring\nfrom benchmarks.__main__ import PARTS\n"
            "PARTS.logs = PARTS.folder / 'none'\n"
            "PARTS.part('cuda'); recordings.measuring.write_atomically = lambda path, text: None\n"
            "sys.modules['benchmarks.cuda'].why_not = lambda: None\n"
            "sys.modules['benchmarks.cuda'].measure = lambda: {}\n"
            "PARTS.main('', ['cuda'])\n"
            "print(sorted(n for n in sys.modules if n.startswith('benchmarks.')))")
    done = without(JUPYTER, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['benchmarks.__main__', 'benchmarks.cuda']"


@pytest.mark.slow
@pytest.mark.parametrize(("package", "part"), [("benchmarks", "cuda"), ("recordings", "kl")])
def test_help_and_the_page_of_results_need_no_more_than_the_library(package, part):
    start = f"from {package}.__main__ import PARTS; "
    done = without(JUPYTER, start + "PARTS.main('', ['--help'])")
    assert done.returncode == 0 and part in done.stdout and done.stderr == ""
    done = without(JUPYTER, start + "sys.stdout.buffer.write(PARTS.results().encode())")
    assert done.returncode == 0, done.stderr
    page = (ROOT / package / "results.md").read_text(encoding="utf-8")
    assert done.stdout == page, f"python -m {package} report writes it anew"


def test_what_stands_in_the_lab_book_is_kept(tmp_path, monkeypatch):
    from recordings.measuring import LAB_BOOK, Parts

    parts = Parts("benchmarks", "Speed", tmp_path)
    monkeypatch.setattr(parts, "folder", tmp_path)
    (tmp_path / "results.md").write_text(f"# Old\n\nold{LAB_BOOK}\nfigures\n", encoding="utf-8")
    assert parts.results() == (f"# Speed\n\nWritten by `python -m benchmarks`.\n\n{LAB_BOOK}"
                               "\nfigures\n")
