"""Would the tests notice? Faults are put into a copy of the repository, one after the other.

    python tools/mutants.py                           # the faults by hand of tools/faults.py
    python tools/mutants.py loss-sign max-for-min     # some of them
    python tools/mutants.py --generate objective lab/exact            # every mutant of two modules
    python tools/mutants.py --generate --sample 300 --out FILE    # 300 of all, survivors to a file

A mutant is a small change that nobody thought of: another operator, another number, a condition
turned round, two arguments swapped, a statement left out. Error messages and annotations are left
alone. Each is judged by the tests of its module (``TESTS``), then by those of ``MORE``. Exit
status: 0 if every fault was noticed, 1 if one survived, 2 if an entry is out of date or a test is
red without the fault, too.
"""

from __future__ import annotations

import argparse
import ast
import copy
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("grpo_lib", "tests", "benchmarks", "recordings", "notebooks", "docs", "tools",
          "pyproject.toml", "README.md", "LICENSE", "requirements.txt", "CHANGELOG.md",
          "CITATION.cff", "CONTRIBUTING.md")
# The core and the laboratory, and the tests that should notice a mutant of each.
TESTS = {
    "advantages": "tests/test_advantages.py", "returns": "tests/test_advantages.py",
    "algorithms": "tests/test_algorithms.py",
    "config": "tests/test_config.py", "corrections": "tests/test_corrections.py",
    "critic": "tests/test_critic.py", "fast/decoding": "tests/fast/test_packing.py",
    "evaluation": "tests/test_evaluation.py",
    "lab/exact": "tests/lab/test_exact.py tests/lab/test_exact_sequences.py",
    "lab/length_bias": "tests/lab/test_length_bias.py",
    **{f"objective/{name}": "tests/test_objective.py tests/test_surrogates.py" for name in (
        "diagnostics", "kl", "loss", "ratio", "surrogates", "weights")},
    "fast/packing": "tests/fast/test_packing.py", "policy": "tests/test_policy.py",
    "pretraining": "tests/test_pretraining.py",
    **{f"rollout/{name}": "tests/test_rollout.py tests/test_joined_batches.py" for name in (
        "rollouts", "sampling", "shift")},
    "tasks/base": "tests/test_tasks.py", "tasks/chain": "tests/test_tasks.py",
    "support/rewards": "tests/test_tasks.py tests/support/test_rewards.py",
    "tasks/sorting": "tests/test_tasks.py", "tokenizer": "tests/test_tokenizer.py",
    "training": "tests/test_training.py", "update": "tests/test_training.py",
    "batches": "tests/test_joined_batches.py tests/test_training.py",
    "dynamic_sampling": "tests/test_training.py tests/test_joined_batches.py",
    "transformer": "tests/test_policy.py",
    "lab/statistics": "tests/test_evaluation.py tests/test_advantages.py",
    "lab/xray": "tests/lab/test_xray.py"}
MORE = ("tests/test_every_function.py", "tests/test_training.py", "tests/test_several_turns.py",
        "tests/test_joined_batches.py", "tests/test_critic.py", "tests/support/test_rewards.py")
# A fork of a process that has loaded what is slow to load, where there is such a thing.
PROCESSES = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
SLOW_TO_LOAD = ["pytest", "torch", "hypothesis", "matplotlib.figure", "ipywidgets"]
LONGEST = 300  # seconds; a fault that makes the tests hang has been noticed


class OutOfDate(Exception):
    """A fault does not fit the repository, or proves nothing about it."""


class Change(NamedTuple):
    """A file with a fault in it; ``tests`` are pytest's arguments."""

    name: str
    file: str
    text: str
    tests: tuple[str, ...]
    more: tuple[str, ...]


# --- by hand ------------------------------------------------------------------------------

def put_below(fault: Fault, root: Path) -> Change:
    """The module with the wrong function below the definition of the right one."""
    file = f"grpo_lib/{fault.module}.py"
    text = (root / file).read_text(encoding="utf-8")
    found, scope = None, ast.parse(text).body
    for part in fault.function.split("."):
        found = next((node for node in scope if getattr(node, "name", None) == part), None)
        scope = getattr(found, "body", [])
    if found is None:
        raise OutOfDate(f"{fault.name}: {fault.function} is not in {file}")
    indent = " " * found.col_offset
    own = fault.function.rpartition(".")[2]
    wrong = (f"{indent}{own} = (lambda right: __import__('functools').wraps(right)(\n"
             f"{indent}    {fault.wrong}))({own})\n")
    lines = text.splitlines(keepends=True)
    lines.insert(found.end_lineno, wrong)
    return Change(fault.name, file, "".join(lines), tuple(shlex.split(fault.tests)), MORE)


# --- generated ----------------------------------------------------------------------------

OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
         ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr,
         ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And, ast.Lt: ast.LtE, ast.LtE: ast.Lt,
         ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
         ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
TURNED = (ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Is, ast.IsNot)  # the same as a negation
LEFT_ALONE = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)


def changed(node: ast.AST, **fields: object) -> ast.AST:
    """A copy of the node with other fields."""
    other = copy.copy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def changes_of(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | None]]:
    """(part to replace, what by); None leaves a statement out."""
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in OTHER:
        yield node, changed(node, op=OTHER[type(node.op)]())
    elif isinstance(node, ast.Compare):
        for at, op in enumerate(node.ops):
            yield node, changed(node, ops=[*node.ops[:at], OTHER[type(op)](), *node.ops[at + 1:]])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        yield node, node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield node, ast.Constant(node.value + 1)
    elif isinstance(node, ast.Call) and len(node.args) > 1 and not any(
            isinstance(a, ast.Starred) for a in node.args[:2]):
        yield node, changed(node, args=[node.args[1], node.args[0], *node.args[2:]])
    elif (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)) or isinstance(
            node, ast.AugAssign) or (isinstance(node, ast.Assign) and isinstance(
                node.targets[0], (ast.Attribute, ast.Subscript))):
        yield node, None
    test = getattr(node, "test", None)
    if test is not None and not (isinstance(test, ast.Compare) and isinstance(
            test.ops[0], TURNED)) and not isinstance(test, ast.UnaryOp):
        yield test, ast.UnaryOp(ast.Not(), test)


def parts(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it, but for messages, annotations, imports and decorators."""
    yield node
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not isinstance(child, LEFT_ALONE):
                    yield from parts(child)


def mutants(text: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, old, new, the whole text with the change) for every change of a module's text."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    data = text.encode()
    for node in parts(ast.parse(text)):
        for part, by in changes_of(node):
            begin = starts[part.lineno - 1] + part.col_offset
            end = starts[part.end_lineno - 1] + part.end_col_offset
            new = "pass" if by is None else ast.unparse(by)
            if isinstance(by, (ast.BinOp, ast.BoolOp, ast.Compare, ast.UnaryOp)):
                new = f"({new})"
            wrong = (data[:begin] + new.encode() + data[end:]).decode()
            yield part.lineno, data[begin:end].decode(), new, wrong


def generated(modules: Sequence[str], root: Path = ROOT) -> list[Change]:
    """Every mutant of these modules."""
    found = []
    for module in modules:
        file = f"grpo_lib/{module}.py"
        for line, old, new, wrong in mutants((root / file).read_text(encoding="utf-8")):
            what = " ".join(f"{old} -> {new}".split())
            found.append(Change(f"{module}:{line} {what}", file, wrong,
                                tuple(TESTS[module].split()), MORE))
    return found


# --- running ------------------------------------------------------------------------------

def copy_repository(root: Path, place: Path) -> None:
    """What the tests need of the repository, without what running left in it."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, place / name, ignore=shutil.ignore_patterns(
                "__pycache__", ".*", "*.egg-info"))
        elif (root / name).exists():
            shutil.copy2(root / name, place / name)


def run_tests(place: Path, arguments: Sequence[str]) -> str | None:
    """The first test that goes red, or None if all are green.

    OutOfDate: no test ran, since pytest could not collect them.
    """
    with tempfile.TemporaryDirectory(prefix="grpo_mutants_") as folder:
        output = Path(folder) / "output"
        process = PROCESSES.Process(target=run_pytest, args=(place, arguments, output))
        process.start()
        try:
            process.join(LONGEST)
            if process.is_alive():
                return f"more than {LONGEST} s"
        finally:
            process.kill()
            process.join()
        text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    if process.exitcode == 0:
        return None
    red = re.search(r"^(?:FAILED|ERROR) (\S+?::.*?|\S+\.py)(?: - .*)?$", text, re.MULTILINE)
    if process.exitcode not in (1, 2, 4) or (red is None and process.exitcode == 1):
        raise OutOfDate(f"pytest {shlex.join(arguments)}: exit status {process.exitcode}, no test "
                        f"ran\n{text[-2000:]}")
    return red[1] if red else "the import"


def run_pytest(place: Path, arguments: Sequence[str], output: Path) -> None:
    """In a process of its own: pytest in the copy, its words to a file."""
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(place)
    sys.path[:] = [str(place), *(p for p in sys.path if Path(p).resolve() != ROOT and not any(
        Path(p).resolve().is_relative_to(ROOT / mine) for mine in ("tools", "tests")))]
    for name in [name for name in sys.modules if name.partition(".")[0] == "grpo_lib"]:
        del sys.modules[name]  # not the copy's
    os.environ["PYTHONPATH"] = str(place)  # for what tests start in processes of their own
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.pop("PYTEST_ADDOPTS", None)
    # Python knows a changed file by its second and size, which a wrong sign leaves alone.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *arguments]))


def noticed_by(change: Change, place: Path) -> str | None:
    """The test that notices it, those that should before all others; None: it survived."""
    path = place / change.file
    right = path.read_bytes()
    try:
        path.write_text(change.text, encoding="utf-8")
        return run_tests(place, change.tests) or run_tests(place, change.more)
    finally:
        path.write_bytes(right)


def survey(changes: Sequence[Change], root: Path = ROOT, jobs: int = 2,
           out: Path | None = None) -> int:
    """Put in every fault, print what notices it and a table; the exit status."""
    rows: list[tuple[Change, str | None, float]] = []
    with tempfile.TemporaryDirectory(prefix="grpo_mutants_") as folder:
        places = [Path(folder).resolve() / str(job) for job in range(jobs)]
        for place in places:
            copy_repository(root, place)
        green: set[str] = set()  # tests that have noticed, and are green without any fault
        wrong: list[str] = []

        def judge(change: Change) -> None:
            place, before = places.pop(), time.monotonic()
            try:
                test = noticed_by(change, place)
                if test and "::" in test and test not in green:
                    if run_tests(place, [test]):
                        wrong.append(test)
                        return
                    green.add(test)
            finally:
                places.append(place)
            rows.append((change, test, time.monotonic() - before))
            print(f"{len(rows):4} of {len(changes)}  {rows[-1][2]:5.1f} s  "
                  f"{change.name[:90]:90} {f'red  {test}' if test else 'GREEN survived'}",
                  flush=True)

        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(judge, change) for change in changes]:
                done.result()
    for test in dict.fromkeys(wrong):
        print(f"{test} is red without any fault")
    survived = sorted(change.name for change, test, _ in rows if test is None)
    print(table(rows), *(f"survived  {name}" for name in survived), sep="\n")
    if out is not None:
        out.write_text("\n".join([table(rows), "", *survived, ""]), encoding="utf-8")
    return 2 if wrong else int(bool(survived))


def table(rows: Sequence[tuple[Change, str | None, float]]) -> str:
    """Faults, how many were noticed, and seconds: a line for each file and one for all."""
    files = sorted({change.file for change, _, _ in rows})
    lines = [f"{'file':32}{'faults':>8}{'noticed':>9}{'share':>8}{'seconds':>9}"]
    for name, part in [*((f, [r for r in rows if r[0].file == f]) for f in files), ("all", rows)]:
        noticed = sum(test is not None for _, test, _ in part)
        lines.append(f"{name:32}{len(part):8}{noticed:9}{noticed / max(1, len(part)):8.1%}"
                     f"{sum(seconds for *_, seconds in part):9.0f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="faults by hand, or with --generate modules (none: all)")
    parser.add_argument("--generate", action="store_true", help="mutants in place of those by hand")
    parser.add_argument("--sample", type=int, help="as many of the mutants, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    parser.add_argument("--out", type=Path, help="a file for the table and the survivors")
    options = parser.parse_args(arguments)
    known = list(TESTS) if options.generate else [fault.name for fault in FAULTS]
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"got {', '.join(unknown)}, must be of {', '.join(known)}")
    names = options.names or known
    if options.generate:
        changes = generated(names)
        if options.sample is not None:
            changes = random.Random(options.seed).sample(changes, min(options.sample, len(changes)))
    else:
        changes = [put_below(fault, ROOT) for fault in FAULTS if fault.name in names]
    if options.list:
        print("\n".join(change.name for change in changes))
        return 0
    PROCESSES.set_forkserver_preload(SLOW_TO_LOAD)
    # Told to stop, leave in order: the copies go, and the tests with them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return survey(changes, jobs=options.jobs, out=options.out)


if __name__ == "__main__":
    sys.exit(main())
