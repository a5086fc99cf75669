"""The matrix: every Python on this machine, the lowest and the newest versions, each extra.

    nox -f .ci/noxfile.py                             # all of it, in hours; or a part:
    nox -f .ci/noxfile.py -p 3.12 -k "tests and newest and site"
    nox -f .ci/noxfile.py -s "tests(3.12 newest none)" -- whole
    nox -f .ci/noxfile.py -s table                    # write docs/matrix.md from what was kept

``resolve`` looks which versions go together; ``tests`` installs them into an environment of its own
and runs a short part of the tests there, with ``-- whole`` all of them (without an extra, README's
test command). Where a Python is missing, nox leaves out its tests. ``--envdir FOLDER`` takes the
environments and what is kept for the table, otherwise ``.ci/.nox`` does. It needs uv on the path.
Linux takes a torch with CUDA, 3 GB for each version of it; UV_TORCH_BACKEND=cpu brings small ones.
"""

import os
import shutil
from pathlib import Path
from xml.etree import ElementTree

import nox
from python_discovery import get_interpreter  # nox's own

ROOT = Path(__file__).resolve().parents[1]
FREE = 12e9  # bytes of disk that an environment with CUDA may need
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
VERSIONS = {"lowest": ["pyproject.toml", "--resolution=lowest-direct"],
            "newest": ["pyproject.toml", "--resolution=highest"],
            "Colab": [".ci/colab-versions.txt"]}
NAMED = ("torch", "numpy", "matplotlib", "ipywidgets", "ipykernel", "jupyterlab", "pytest",
         "transformers", "peft", "trl", "accelerate", "datasets", "nbgrader", "sphinx", "myst-nb",
         "sphinx-revealjs", "nbconvert", "voila")
SHORT = ["tests/repository/test_package.py", "tests/repository/test_extras.py",
         "tests/test_surrogates.py", "tests/course/exercises/test_exercises_running.py",
         "tests/course/explorers/test_explorers_clip.py", "--nbval", "notebooks/01_policy.ipynb"]
TESTS = {  # extra: (the extras to install, the short part, the whole)
    "none": (["test"], SHORT, ["--nbval"]),
    "llm": (["llm", "test"], ["tests/llm/test_huggingface.py", "tests/llm/test_export.py"],
            ["tests/llm", "--nbval", "notebooks/09_real_llm.ipynb"]),
    "parity": (["parity", "test"], ["tests/parity"], ["tests/parity"]),
    "grading": (["grading", "test"], ["tests/grading"], ["tests/grading"]),
    "site": (["site", "test"], ["tests/site"], ["tests/site"]),
    "slides": (["slides", "test", "dev"], ["tests/slides"], ["tests/slides"]),
    "projector": (["projector", "test", "dev"], ["tests/projector"], ["tests/projector"]),
    "Colab": ([], SHORT[-2:], ["--nbval", "notebooks"]),
}
ROWS = [f"{v} {e}" for e in list(TESTS)[:-1] for v in ("lowest", "newest")] + ["Colab"]
CELLS = [(p, row) for row in ROWS for p in (["3.13"] if row == "Colab" else PYTHONS)]
each_cell = nox.parametrize("python, row", CELLS, ids=map(" ".join, CELLS))

nox.needs_version = ">=2026.8.10"
nox.options.error_on_missing_interpreters = False  # nox's default, but for CI machines
nox.options.download_python = os.environ["UV_PYTHON_DOWNLOADS"] = "never"
if "PYENV_ROOT" in os.environ:  # all that pyenv has, not only those that are switched on
    versions = Path(os.environ["PYENV_ROOT"], "versions").glob("3.*")
    os.environ.setdefault("PYENV_VERSION", ":".join(path.name for path in versions))


def pinned(session, row):
    """A file with the versions that go together."""
    pins = session.cache_dir.resolve() / f"{session.name}.txt"
    session.chdir(ROOT)
    extras = [f"--extra={extra}" for extra in TESTS[row.split()[-1]][0]]
    said = session.run_install(
        "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--only-binary=:all:",
        f"--python-version={session.python}", "--upgrade", "--output-file", pins,
        *VERSIONS[row.split()[0]], *extras, silent=True, success_codes=range(3)) or ""
    if "No solution found" in said:
        pins.write_text("", encoding="utf-8")
        session.error(f"cannot be installed: {said}")
    if said:
        pins.unlink(missing_ok=True)
        session.skip(f"could not be looked up: {said}")
    return pins


@nox.session(venv_backend="none", allow_parallel=True)
@each_cell
def resolve(session, row):
    """Look which versions would be installed."""
    pinned(session, row)


@nox.session(venv_backend="uv")
@each_cell
def tests(session, row):
    """Install them and run the tests there."""
    report = session.cache_dir.resolve() / f"{session.name}.xml"
    report.unlink(missing_ok=True)
    if shutil.disk_usage(report.parent).free < FREE:
        session.skip(f"the disk has less than {FREE / 1e9:.0f} GB left")
    session.install("--only-binary=:all:", "-r", str(pinned(session, row)))
    whole = "whole" in session.posargs
    ran = session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junit-xml",
                      report, "-o", f"junit_suite_name={'whole' if whole else 'short'}",
                      *TESTS[row.split()[-1]][1 + whole], env={"PYTHONPATH": str(ROOT)},
                      success_codes=[0, 5])  # 5: no tests, since TRL is not there for Python 3.10
    if ran:  # and was not left out by --install-only
        shutil.rmtree(session.virtualenv.location)


@nox.session(venv_backend="none", default=False)
def oldest(session):
    """The lowest versions on the oldest Python that is here."""
    session.notify(f"tests({next(filter(get_interpreter, PYTHONS))} lowest none)")


def told(report):
    """A run's cell of the table, from pytest's report."""
    suite = ElementTree.parse(report).find("testsuite")
    counts = {"failed": "failures", "errors": "errors", "skipped": "skipped"}
    counts = {word: int(suite.get(name)) for word, name in counts.items()}
    counts = {"passed": int(suite.get("tests")) - sum(counts.values()), **counts}
    if counts["skipped"] == sum(counts.values()):
        return "nothing to run"
    whole = " (whole)" if suite.get("name") == "whole" else ""
    return ", ".join(f"{n} {word}" for word, n in counts.items() if n) + whole


@nox.session(venv_backend="none", default=False)
def table(session):
    """Write into docs/matrix.md what was found; cells of which nothing is kept stay as they are."""
    kept, page = session.cache_dir.resolve(), ROOT / "docs" / "matrix.md"
    words, *lines = page.read_text(encoding="utf-8").split("\n|")
    lines = [line.split("\n")[0].strip(" |").split(" | ") for line in lines]
    before = {first: entries for first, *entries in lines}
    results, with_these = {row: before.get(row, ["-"] * len(PYTHONS)) for row in ROWS}, []
    for python, row in CELLS:
        cell, entries, place = f"{python} {row}", results[row], PYTHONS.index(python)
        pins = {path.stem: path.read_text(encoding="utf-8") for path in kept.glob(f"*({cell}).txt")}
        report = kept / f"tests({cell}).xml"
        if report.exists():
            entries[place] = told(report)
            if entries[place] != "nothing to run":
                found = dict(pin.split("==") for pin in pins[report.stem].split())
                rest = ", ".join(f"{name} {found[name]}" for name in NAMED[7:] if name in found)
                before[cell] = [*(found.get(name, "-") for name in NAMED[:7]), rest or "-"]
        elif not all(pins.values()):
            entries[place] = "**cannot be installed**"
        elif report.stem in pins:
            entries[place] = "failed"
        elif pins and entries[place] in ("-", "**cannot be installed**"):
            entries[place] = "resolved, not run"
        if cell in before:
            with_these.append([cell, *before[cell]])
    tables = ([["Versions, extra", *PYTHONS], ["---"] * 7, *([r, *results[r]] for r in ROWS)],
              [["With", *NAMED[:7], "of the extra"], ["---"] * 9, *with_these])
    tables = ["\n".join(f"| {' | '.join(line)} |" for line in lines) for lines in tables]
    page.write_text("\n\n".join([words.rstrip("\n"), *tables]) + "\n", encoding="utf-8")
