"""The faults by hand fit the repository, and the command that tries faults tells the truth."""


import mutants
import pytest
from faults import FAULTS, Fault
from mutants import ROOT, TESTS, Change, OutOfDate

SUMS = """def add(a, b):
    '''The sum of 1 and 1 is 2.'''
    if a < 0:
        raise ValueError(f"a: got {a}, must be {0} or more")
    return a + b


TABLE = {"add": add}


class Double:
    def of(self, a: int = 3) -> int:
        return a * 2
"""
TOY = {"grpo_lib/__init__.py": "", "grpo_lib/sums.py": SUMS,
       "tests/test_sums.py": "from grpo_lib.sums import TABLE\n\n\n"
                             "def test_add():\n    assert TABLE['add'](2, 3) == 5\n",
       "tests/test_double.py": "import pytest\nfrom grpo_lib.sums import Double\n\n\n"
                               "@pytest.mark.parametrize('a', [0, 5])\n"
                               "def test_double(a):\n    assert Double().of(a) == a + a\n"}
MINUS = Fault("minus", "sums", "add", "lambda a, b: right(a, -b)", "tests/test_sums.py")
THREE = Fault("three-times", "sums", "Double.of", "lambda self, a=3: a * 3", "tests/test_sums.py")
SAME = Fault("same", "sums", "add", "lambda a, b: right(b, a)", "tests/test_sums.py")


@pytest.fixture
def toy(tmp_path):
    """A small repository in the place of ours."""
    mutants.PROCESSES.set_forkserver_preload(["pytest"])
    for name, text in TOY.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def changes(toy, *faults):
    return [mutants.put_below(fault, toy)._replace(more=("tests",)) for fault in faults]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_by_hand_fits_the_repository(fault):
    change = mutants.put_below(fault, ROOT)
    compile(change.text, change.file, "exec")
    assert all((ROOT / test).is_file() for test in change.tests)


def test_the_faults_are_different_and_every_module_of_the_core_has_its_tests():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 60
    assert {fault.module for fault in FAULTS} >= TESTS.keys() - {"config", "support/rewards"}
    assert all((ROOT / test).is_file() for tests in TESTS.values() for test in tests.split())
    assert all((ROOT / "grpo_lib" / f"{module}.py").is_file() for module in TESTS)


def test_a_wrong_function_stands_below_the_right_one(toy):
    """Above the table that takes it, and in a class among its methods."""
    for fault, wrong in (MINUS, -1), (THREE, 9):
        text, namespace = mutants.put_below(fault, toy).text, {}
        exec(text, namespace)
        answer = namespace["TABLE"]["add"](2, 3) if fault is MINUS else namespace["Double"]().of()
        assert answer == wrong
    with pytest.raises(OutOfDate, match=r"minus: gone is not in grpo_lib/sums\.py"):
        mutants.put_below(MINUS._replace(function="gone"), toy)


def test_the_mutants_of_a_text_are_all_small_changes_that_compile():
    found = list(mutants.mutants(SUMS))
    assert {(line, old, new) for line, old, new, _ in found} == {
        (3, "a < 0", "(a <= 0)"), (3, "a < 0", "(not a < 0)"), (3, "0", "1"),
        (5, "a + b", "(a - b)"), (12, "3", "4"), (13, "a * 2", "(a / 2)"), (13, "2", "3")}
    for line, old, new, text in found:
        compile(text, "sums.py", "exec")
        differ = [at for at, (one, other) in enumerate(zip(SUMS.splitlines(), text.splitlines()), 1)
                  if one != other]
        assert differ == [line] and old in SUMS and new in text


@pytest.mark.parametrize(("old", "new"), [
    ("f(a, b)", ["f(b, a)"]), ("x = not a", ["a"]), ("x = -a", ["a"]), ("x = True", ["False"]),
    ("x = a is b", ["(a is not b)"]), ("x = a and b", ["(a or b)"]), ("x[a] = b", ["pass"]),
    ("x += a", ["pass"]), ("f(a)", ["pass"]), ("x: int = 1", ["2"]), ("x = f'{a + 1}'", []),
    ("@f(1)\ndef g(): return", []), ("raise E(1)", []), ("ä = 'ä' if a else b", ["(not a)"])])
def test_each_kind_of_change(old, new):
    found = [by for _, _, by, _ in mutants.mutants(old)]
    assert found == new or set(found) == {*new, "pass"}
    for *_, text in mutants.mutants(old):
        compile(text, "text", "exec")


def test_a_copy_holds_what_the_tests_need_and_nothing_that_running_left(toy, tmp_path_factory):
    (toy / "grpo_lib" / "__pycache__").mkdir()
    (toy / "grpo_lib" / "__pycache__" / "sums.pyc").write_bytes(b"old")
    (toy / ".venv").mkdir()
    (toy / "README.md").write_text("text")
    place = tmp_path_factory.mktemp("copy")
    mutants.copy_repository(toy, place)
    assert contents(place).keys() == {*TOY, "README.md"}


def test_the_survey_says_what_was_noticed_by_what_and_what_survived(toy, tmp_path_factory, capsys):
    before, out = contents(toy), tmp_path_factory.mktemp("out") / "survivors"
    assert mutants.survey(changes(toy, MINUS, THREE, SAME), toy, out=out) == 1
    said = capsys.readouterr().out
    assert contents(toy) == before
    assert "red  tests/test_sums.py::test_add\n" in said
    assert "red  tests/test_double.py::test_double[5]\n" in said
    assert "survived  same\n" in said and out.read_text().endswith("\n\nsame\n")
    assert [line.split()[:4] for line in said.splitlines() if line.startswith(("grpo", "all"))
            ] == [["grpo_lib/sums.py", "3", "2", "66.7%"], ["all", "3", "2", "66.7%"]]


def test_a_module_that_can_no_longer_be_imported_has_noticed(toy, capsys):
    change = Change("broken", "grpo_lib/sums.py", "1 / 0", ("tests/test_sums.py",), ("tests",))
    assert mutants.survey([change], toy) == 0
    assert "broken" in capsys.readouterr().out


def test_a_test_that_is_red_without_a_fault_proves_nothing(toy, capsys):
    (toy / "tests" / "test_sums.py").write_text("def test_wrong():\n    assert False\n")
    assert mutants.survey(changes(toy, MINUS), toy) == 2
    assert "tests/test_sums.py::test_wrong is red without" in capsys.readouterr().out


def test_a_hanging_test_has_noticed(toy, monkeypatch):
    (toy / "tests" / "test_sums.py").write_text(
        "import time\n\n\ndef test_hangs():\n    time.sleep(60)\n")
    monkeypatch.setattr(mutants, "LONGEST", 0.5)
    assert mutants.run_tests(toy, ["tests"]) == "more than 0.5 s"


def test_the_command_lists_and_refuses_unknown_names(capsys):
    assert mutants.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [fault.name for fault in FAULTS]
    assert mutants.main(["--list", "--generate", "objective/loss", "--sample", "9"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9
    with pytest.raises(SystemExit) as stopped:
        mutants.main(["loss-sigh"])
    assert stopped.value.code == 2 and "got loss-sigh" in capsys.readouterr().err
