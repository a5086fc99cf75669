"""A run that is killed, whose disk is full or read-only, or that is not alone in its folder.

What is slow is in ``tools/killed.py``: thirty kills, and a full disk at every write in turn.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import killed
import pytest
import torch
from waiting import PATIENCE

from grpo_lib.__main__ import main
from grpo_lib.support import run_folder
from grpo_lib.support.checkpoint import CheckpointError
from grpo_lib.support.locks import LOCKS, lock, unlock
from grpo_lib.support.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and locks")


@pytest.fixture(autouse=True)
def keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing happened to."""
    threads = torch.get_num_threads()
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", "--out", str(out), *killed.SETTINGS]) == 0
    torch.set_num_threads(threads)
    return out


@pytest.fixture(scope="module")
def forks():
    with killed.Forks() as server:
        yield server


@pytest.fixture
def stopped(finished, tmp_path):
    """The same run as if it had been stopped after its fourth step."""
    out = tmp_path / "stopped"
    shutil.copytree(finished, out)
    for name in ("policy.safetensors", "curves.png"):
        (out / name).unlink()
    for step in (6, 8):
        (out / "checkpoints" / f"step-0000{step}.safetensors").unlink()
    about = json.loads((out / "run.json").read_text())
    del about["after"]
    (out / "run.json").write_text(json.dumps(about))
    return out


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def resume(folder):
    return main(["train", "--resume", str(folder), "--threads", "1"])


# --- killed, and full ---------------------------------------------------------------------

@pytest.mark.slow
@POSIX
def test_kill_9_with_half_a_checkpoint_or_half_a_line_written_loses_nothing(
        forks, finished, tmp_path):
    at = [("half of a checkpoint written", 3), ("half of metrics.jsonl written", 2)]
    where, lost = killed.try_out(forks, tmp_path, 2, random.Random(0), at, finished)
    assert where == [name for name, _ in at]
    assert lost == []


@POSIX
def test_a_comparison_of_runs_sees_every_difference(finished, tmp_path):
    wanted = killed.traces(finished)
    assert killed.differences(wanted, killed.traces(finished)) == []
    for number, (name, spoil, seen) in enumerate((
            ("metrics.jsonl", lambda data: data.replace(b'"step": 3', b'"step": 4'), "metrics"),
            ("policy.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "policy"),
            ("checkpoints/step-00008.safetensors",
             lambda data: data[:-1] + bytes([data[-1] ^ 1]), "last"),
            ("run.json", lambda data: data.replace(b'"length": ', b'"length": 1'), "scores"),
            (".x.part", lambda data: b"", "files"))):
        out = tmp_path / str(number)
        shutil.copytree(finished, out)
        path = out / name
        path.write_bytes(spoil(path.read_bytes() if path.exists() else b""))
        assert seen in killed.differences(wanted, killed.traces(out))


def test_what_a_killed_process_had_begun_to_write_is_cleared_away(stopped):
    for part in (".run.json.7.part", "checkpoints/.step-00006.safetensors.7.part"):
        (stopped / part).write_bytes(b"half")
    assert resume(stopped) == 0
    assert not list(stopped.rglob("*.part"))


def test_a_run_stopped_before_it_began_says_that_nothing_is_lost(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert resume(tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "nothing is lost; remove the folder and start again" in said and said.count("\n") == 1


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, of 1,600 KB: about ten checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],
                              capture_output=True, check=False) if shutil.which("mount") else None
        return done is not None and done.returncode == 0

    if not mount("size=1600k"):
        pytest.skip("mounting is not allowed here")
    yield folder, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_runs_full_stops_the_run_in_a_line_and_loses_nothing(
        small_disk, finished, capsys):
    folder, remount = small_disk
    room = sum(p.stat().st_size for p in (finished / "checkpoints").iterdir()) * 3 // 5
    assert remount(f"size={room}")
    assert main(["train", "--out", str(folder / "run"), *killed.SETTINGS]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("grpo_lib: error: ")
    assert "No space left on device" in said.err and "Traceback" not in said.err
    assert "this could not be saved" in said.out and "--resume" in said.out
    assert remount("size=50m")
    assert resume(folder / "run") == 0
    assert killed.differences(killed.traces(folder / "run"), killed.traces(finished)) == []


def test_a_read_only_folder_is_an_error_in_a_line_and_stays_as_it_is(small_disk, stopped, capsys):
    folder, remount = small_disk
    assert remount("size=50m")
    shutil.copytree(stopped, folder / "run")
    before = contents(folder)
    assert remount("ro")
    for arguments in (["train", "--resume", str(folder / "run")],
                      ["train", "--out", str(folder / "new"), *killed.SETTINGS],
                      ["pretrain", "--out", str(folder / "new" / "base.safetensors")]):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert "Read-only file system" in said and said.count("\n") == 1, said
    assert contents(folder) == before
    assert remount("rw")
    assert resume(folder / "run") == 0


# --- not alone ----------------------------------------------------------------------------

HOLDER = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); " \
         "print('held', flush=True); sys.stdin.read()"


@POSIX
def test_a_folder_into_which_another_process_writes_is_refused_until_that_ends(stopped, capsys):
    holder = subprocess.Popen([sys.executable, "-S", "-c", HOLDER, stopped / "lock"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        before = contents(stopped)
        assert resume(stopped) == 2
        said = capsys.readouterr().err
        assert "another process is writing into this folder" in said and said.count("\n") == 1
        assert contents(stopped) == before
    finally:
        holder.kill()  # -9: no lock may be left
        holder.communicate()
    assert resume(stopped) == 0


@pytest.mark.slow
@POSIX
@pytest.mark.parametrize("way", ["out", "resume"])
def test_of_two_runs_into_one_folder_at_once_one_is_refused(forks, finished, stopped, tmp_path,
                                                            way):
    folder = stopped if way == "resume" else tmp_path / "new"
    arguments = killed.command(folder)
    both = [forks.start(arguments, tmp_path / f"{number}.log") for number in (0, 1)]
    codes = [forks.wait(process) for process in both]
    assert sorted(codes) == [0, 2]
    said = (tmp_path / f"{codes.index(2)}.output").read_text()
    assert any(line in said for line in (
        ("another process is writing into this folder", "is complete at step")
        if way == "resume" else ("nothing was overwritten",))) and "Traceback" not in said
    assert killed.differences(killed.traces(folder), killed.traces(finished)) == []


def test_one_process_may_lock_a_folder_twice_and_lets_go_of_it(tmp_path):
    lock(tmp_path)
    lock(tmp_path)
    assert LOCKS.keys() >= {tmp_path.resolve()}
    unlock(tmp_path)
    unlock(tmp_path)
    assert tmp_path.resolve() not in LOCKS


@pytest.mark.slow
def test_a_process_that_ends_leaves_no_lock_open(tmp_path):
    code = "import sys; from pathlib import Path; from grpo_lib.support.locks import lock; " \
           "lock(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path], cwd=ROOT,
                          capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stderr == ""


@POSIX
def test_where_there_are_no_locks_a_run_goes_on_without(tmp_path, monkeypatch):
    import errno
    import fcntl

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    lock(tmp_path)
    assert tmp_path.resolve() not in LOCKS


def test_a_run_that_cannot_be_created_leaves_an_empty_folder_and_no_lock(tmp_path, monkeypatch,
                                                                         capsys):
    monkeypatch.setattr(run_folder, "write_json", lambda *_: (_ for _ in ()).throw(OSError("full")))
    assert main(["train", "--out", str(tmp_path / "run"), *killed.SETTINGS]) == 2
    assert "full" in capsys.readouterr().err
    assert list((tmp_path / "run").iterdir()) == []
    assert (tmp_path / "run").resolve() not in LOCKS


def test_a_run_json_gone_is_said(stopped):
    (stopped / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no run\.json"):
        RunFolder.open(stopped)
