"""The list of faults fits the repository, and the command that tries them tells the truth."""

import shlex
from collections import Counter

import faults
import pytest
from faults import FAULTS, ROOT, Fault, OutOfDate

TOY = {"grpo_lib/__init__.py": "",
       "grpo_lib/sums.py": "def add(a, b):\n    return a + b\n\n\n"
                            "def twice(a):\n    return a * 2\n",
       "tests/test_sums.py": "from grpo_lib.sums import add\n\n\n"
                             "def test_add():\n    assert add(2, 3) == 5\n",
       "tests/test_slow.py": "import pytest\nfrom grpo_lib.sums import twice\n\n\n"
                             "@pytest.mark.parametrize('a', [0, 'x y'])\n"
                             "def test_twice(a):\n    assert twice(a) == a + a if a else True\n"}
MINUS = Fault("minus", "grpo_lib/sums.py", "a + b", "a - b", ("tests/test_sums.py",))


@pytest.fixture
def toy(tmp_path):
    """A small repository in the place of ours."""
    faults.PROCESSES.set_forkserver_preload(["pytest"])
    for name, text in TOY.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- the list -----------------------------------------------------------------------------

@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_an_entry_fits_the_repository(fault):
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1, "the line has changed: bring the entry up to date"
    wrong = text.replace(fault.old, fault.new)
    assert wrong != text
    if fault.file.endswith(".py"):
        compile(wrong, fault.file, "exec")
    assert fault.tests
    assert all((ROOT / part.split("::")[0]).is_file() for part in fault.tests
               if part.startswith("tests"))


def test_names_are_unique_and_the_faults_are_many_and_different():
    assert Counter(fault.name for fault in FAULTS).most_common(1)[0][1] == 1
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS) >= 60
    assert all(name == shlex.quote(name) for name in (fault.name for fault in FAULTS))


def test_every_room_with_maths_has_faults():
    rooms = {fault.file.removeprefix("grpo_lib/").split("/")[0] for fault in FAULTS}
    assert {"advantages.py", "objective.py", "evaluation.py", "rollout.py", "policy.py", "tasks",
            "training.py", "pretraining.py", "tokenizer.py"} <= rooms


# --- the machinery, on a toy --------------------------------------------------------------

def test_a_copy_holds_what_the_tests_need_and_nothing_that_running_left(toy, tmp_path_factory):
    (toy / "grpo_lib" / "__pycache__").mkdir()
    (toy / "grpo_lib" / "__pycache__" / "sums.pyc").write_bytes(b"old")
    (toy / ".venv").mkdir()
    (toy / "README.md").write_text("text")
    copy = tmp_path_factory.mktemp("copy")
    faults.copy_repository(toy, copy)
    assert contents(copy).keys() == {*TOY, "README.md"}


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, SystemExit])
def test_a_fault_is_put_in_and_taken_out_again(toy, error):
    before = contents(toy)
    try:
        with faults.put_in(MINUS, toy):
            during = contents(toy)
            if error:
                raise error
    except (KeyboardInterrupt, SystemExit):
        pass
    assert during.pop(MINUS.file) == before[MINUS.file].replace(b"a + b", b"a - b")
    assert during.items() <= before.items()
    assert contents(toy) == before


@pytest.mark.parametrize(("change", "times"), [({"old": "a / b"}, 0), ({"old": "return"}, 2),
                                               ({"file": "grpo_lib/gone.py"}, 0)])
def test_a_text_that_is_not_there_once_is_an_error(toy, change, times):
    before = contents(toy)
    with pytest.raises(OutOfDate, match=f"minus: .* is {times} times in"), \
            faults.put_in(MINUS._replace(**change), toy):
        raise AssertionError("nothing may be put in")
    assert contents(toy) == before


def test_the_survey_says_what_was_noticed_by_what_and_what_survived(toy, capsys):
    entries = [MINUS,
               Fault("by-the-others", "grpo_lib/sums.py", "a * 2", "a * 3",
                     ("tests/test_sums.py",)),
               Fault("same-thing", "grpo_lib/sums.py", "a * 2", "2 * a", ("tests/test_sums.py",))]
    before = contents(toy)
    assert faults.survey(entries, toy) == 1
    output = capsys.readouterr().out
    assert contents(toy) == before
    assert "minus" in output and "red    tests/test_sums.py::test_add\n" in output
    assert "red    tests/test_slow.py::test_twice[x y]\n" in output
    assert "Survived: same-thing\n" in output
    assert [line.split()[:3] for line in output.splitlines() if line.startswith(("grpo", "all"))
            ] == [["grpo_lib/sums.py", "3", "2"], ["all", "3", "2"]]


def test_an_entry_that_is_out_of_date_or_breaks_the_import_is_no_success(toy, capsys):
    entries = [MINUS._replace(name="gone", old="a / b"),
               MINUS._replace(name="no-python", new="a +")]
    assert faults.survey(entries, toy) == 2
    output = capsys.readouterr().out
    assert "OUT OF DATE gone: 'a / b' is 0 times" in output
    assert "no test ran" in output and "Out of date: gone, no-python" in output


def test_a_test_that_is_red_without_a_fault_proves_nothing(toy, capsys):
    (toy / "tests" / "test_sums.py").write_text("def test_wrong():\n    assert False\n")
    assert faults.survey([MINUS], toy) == 2
    assert "minus: tests/test_sums.py::test_wrong is red without" in capsys.readouterr().out


def test_a_hanging_test_has_noticed(toy, monkeypatch):
    (toy / "tests" / "test_sums.py").write_text(
        "import time\n\n\ndef test_hangs():\n    time.sleep(60)\n")
    monkeypatch.setattr(faults, "LONGEST", 0.5)
    assert faults.run_tests(toy, ["tests"]) == "more than 0.5 s"


def test_the_command_lists_and_refuses_unknown_names(capsys):
    assert faults.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()
            ] == [fault.name for fault in FAULTS]
    assert faults.main(["--list", "loss-sign"]) == 0
    assert capsys.readouterr().out.split() == ["loss-sign", "grpo_lib/objective.py"]
    with pytest.raises(SystemExit) as stopped:
        faults.main(["loss-sigh"])
    assert stopped.value.code == 2 and "got loss-sigh" in capsys.readouterr().err
