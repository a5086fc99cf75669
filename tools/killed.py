"""Kill -9 at random moments of a run, and the resumed run compared with one never stopped.

    python tools/killed.py                 30 kills, about three minutes
    python tools/killed.py 100 --seed 1    more of them, at other moments
    python tools/killed.py --full          a disk that is full from each write of a run on, in turn

Half of the kills come from outside after a random time, half from the process itself at a random
one of the points that ``watch`` puts between the things it does: before and after a file is
synced or renamed, with half of a file or of a line written, before each gradient step. After each
the run is resumed, and killed again, up to ``A_RUN`` times. A loss is any difference in the end:
a byte of the policy or of the last checkpoint, a number of metrics.jsonl but for the seconds, a
score, a file that was left over.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # grpo_lib, installed or not

SETTINGS = ["--steps", "8", "--prompts-per-step", "4", "--group-size", "4", "--eval-every", "3",
            "--eval-problems", "10", "--held-out", "20", "--save-every", "2", "--threads", "1"]
A_RUN = 5  # kills of one run
WRITES = ("half of", "before syncing", "before renaming")  # points that a full disk stops


class Halves:
    """A file whose writes stop in the middle for a moment."""

    def __init__(self, file, name: str, point):
        self.file, self.name, self.point = file, name, point

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        half = len(data) // 2
        self.file.write(data[:half])
        self.file.flush()
        self.point(f"half of {self.name} written")
        self.file.write(data[half:])


def kind_of(path) -> str:
    """What a file is, whatever step or process it is of."""
    name = Path(path).name
    return next((kind for sign, kind in (("step-", "a checkpoint"), ("run.json", "run.json"),
                                         ("metrics", "metrics.jsonl"), ("policy", "the policy"),
                                         ("curves", "the curves")) if sign in name), "a file")


def watch(log: Path, stop_at: int | tuple[str, int], full: bool = False) -> None:
    """Write down each point that this process reaches, and kill it at one of them: at the so
    many-th, or the so many-th of a name. ``full``: from there on, the disk is full instead."""
    from grpo_lib.cli import runs
    from grpo_lib.support import checkpoint, run_folder
    from grpo_lib.training import GRPOTrainer

    lines, count = open(log, "a", encoding="utf-8"), 0  # noqa: SIM115

    def point(name: str) -> None:
        nonlocal count
        count += isinstance(stop_at, int) or name == stop_at[0]
        lines.write(name + "\n")
        lines.flush()
        least = stop_at if isinstance(stop_at, int) else stop_at[1]
        if full and 0 < least <= count and name.startswith(WRITES):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if count == least and not full:
            os.kill(os.getpid(), signal.SIGKILL)

    def opened(path, mode="r", encoding=None, **options):
        file = open(path, mode, encoding=encoding, **options)  # noqa: SIM115  its caller closes it
        return Halves(file, kind_of(path), point) if mode in ("wb", "a") else file

    def around(module, name: str, before: str, after: str | None = None):
        call = getattr(module, name)

        def watched(*arguments, **options):
            what = kind_of(arguments[1]) if name == "replace" else ""
            point(f"{before} {what}".strip())
            result = call(*arguments, **options)
            if after:
                point(f"{after} {what}".strip())
            return result

        setattr(module, name, watched)

    checkpoint.open = run_folder.open = opened
    around(os, "replace", "before renaming", "after renaming")
    around(os, "fsync", "before syncing a file")
    around(GRPOTrainer, "sample", "before sampling")
    around(GRPOTrainer, "gradient_step", "before a gradient step")
    around(runs, "evaluate", "before measuring")
    point("at the start")


def child(arguments: list[str], log: Path, stop_at: int | tuple[str, int], full: bool) -> None:
    """A process of the command line."""
    from grpo_lib.__main__ import main

    with open(log.with_suffix(".output"), "a", encoding="utf-8") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        watch(log, stop_at, full)
        os._exit(main(arguments))


class Forks:
    """A process that has loaded what is slow to load, and forks the others."""

    def __enter__(self):
        self.server = subprocess.Popen([sys.executable, __file__, "--serve"], text=True,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       encoding="utf-8")
        return self

    def __exit__(self, *_):
        self.server.kill()
        self.server.communicate()

    def ask(self, *words) -> int:
        self.server.stdin.write(json.dumps(words, default=str) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, arguments: list[str], log: Path, stop_at: int | tuple[str, int] = 0,
              full: bool = False) -> int:
        """Start a process that ``watch``es itself; its id."""
        return self.ask("start", arguments, log, stop_at, full)

    def wait(self, process: int) -> int:
        """The exit code of a process, -9 if that killed it."""
        return self.ask("wait", process)

    def run(self, arguments: list[str], log: Path, stop_at: int | tuple[str, int] = 0,
            seconds: float | None = None, full: bool = False) -> int:
        """Start a process, kill it after ``seconds`` if they are given, and wait for it."""
        process = self.start(arguments, log, stop_at, full)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(process, signal.SIGKILL)
        return self.wait(process)


def serve() -> None:
    """The other end of ``Forks``."""
    import matplotlib.figure  # noqa: F401
    import torch._dynamo  # noqa: F401
    import tqdm  # noqa: F401

    import grpo_lib.cli.runs  # noqa: F401

    for line in sys.stdin:
        what, *words = json.loads(line)
        if what == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(words[0], 0)[1]), flush=True)
            continue
        arguments, log, stop_at, full = words
        process = os.fork()
        if process == 0:
            os.close(0)
            child(arguments, Path(log), stop_at if isinstance(stop_at, int) else tuple(stop_at),
                  full)
        print(process, flush=True)


def command(folder: Path) -> list[str]:
    """How a run in this folder is begun, or gone on with."""
    if (folder / "run.json").exists():
        return ["train", "--resume", str(folder), "--threads", "1"]
    shutil.rmtree(folder, ignore_errors=True)  # stopped before its first step
    return ["train", "--out", str(folder), *SETTINGS]


def traces(folder: Path) -> dict:
    """What must be the same in the end."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    last = max((folder / "checkpoints").iterdir())
    return {"metrics": [{k: v for k, v in row.items() if not k.startswith("seconds")}
                        for row in map(json.loads, lines)],
            "policy": (folder / "policy.safetensors").read_bytes(), "last": last.read_bytes(),
            "scores": (about["before"], about["after"]),
            "files": sorted(p.name for p in folder.rglob("*"))}


def points_of(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def differences(one: dict, other: dict) -> list[str]:
    return [name for name in one if one[name] != other[name]]


def try_out(forks: Forks, folder: Path, kills: int, rng: random.Random,
            at: list[tuple[str, int]] | None = None, straight: Path | None = None,
            ) -> tuple[list[str], list[str]]:
    """Kill runs so many times in all: (where each was killed, what was lost).

    ``at``: the points to be killed at, instead of random moments; ``straight``: a run that was
    never stopped, if there is one.
    """
    killed, lost = [], []
    number = count = whole = 0
    if straight is None:
        straight = folder / "straight"
        for _ in range(2):  # the second one takes its usual time
            shutil.rmtree(straight, ignore_errors=True)
            start = time.perf_counter()
            assert forks.run(command(straight), folder / "straight.log") == 0
            whole = time.perf_counter() - start
        count = len(points_of(folder / "straight.log")) // 2
    wanted = traces(straight)
    while len(killed) < kills:
        number += 1
        out, left = folder / f"run-{number}", min(A_RUN, kills - len(killed))
        while True:
            log = folder / f"run-{number}-{len(killed)}.log"
            if left == 0:
                code = forks.run(command(out), log)
                break
            from_outside = at is None and len(killed) % 2 == 0
            moment = at[len(killed)] if at else rng.randint(1, count // 2)
            code = forks.run(command(out), log, 0 if from_outside else moment,
                       rng.uniform(0, whole) if from_outside else None)
            if code != -signal.SIGKILL:
                break  # it came to its end first
            points = points_of(log)
            killed.append(f"after {points[-1]!r}" if from_outside and points else
                          points[-1] if points else "before the start")
            left -= 1
        output = log.with_suffix(".output")
        said = output.read_text(encoding="utf-8") if code else ""
        # killed when all was done, but before the process had ended: nothing is left to resume
        if code and "is complete at step" not in said:
            lost.append(f"run {number}: ended with {code}, {said[-600:]!r}")
        else:
            lost += [f"run {number}: {name} differs"
                     for name in differences(traces(out), wanted)]
    return killed, lost


def fill(forks: Forks, folder: Path) -> tuple[list[str], list[str]]:
    """A run whose disk is full from a write on, for each write in turn, and that goes on when
    there is room again: (the writes, what was lost)."""
    stopped, lost = [], []
    assert forks.run(command(folder / "straight"), folder / "straight.log") == 0
    wanted, points = traces(folder / "straight"), points_of(folder / "straight.log")
    for number, name in enumerate(points, start=1):
        if not name.startswith(WRITES):
            continue
        out, log = folder / f"run-{number}", folder / f"run-{number}.log"
        code = forks.run(command(out), log, number, full=True)
        stopped.append(name)
        said = log.with_suffix(".output").read_text(encoding="utf-8")
        if code != 2 or "No space left on device" not in said or "Traceback" in said:
            lost.append(f"write {number}, {name}: ended with {code}, see {said!r}")
        again = forks.run(command(out), log)
        lost += [f"write {number}, {name}: ended with {again}"] if again else [
            f"write {number}, {name}: {what} differs" for what in differences(traces(out), wanted)]
        shutil.rmtree(out)
    return stopped, lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kills", type=int, nargs="?", default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="full disks in place of kills")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    with tempfile.TemporaryDirectory() as name, Forks() as forks:
        stopped, lost = fill(forks, Path(name)) if options.full else try_out(
            forks, Path(name), options.kills, random.Random(options.seed))
    for where, count in sorted(Counter(stopped).items()):
        print(f"{count:4} {where}")
    print(f"{len(stopped)} {'full disks' if options.full else 'kills'}, {len(lost)} losses", *lost,
          sep="\n")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
