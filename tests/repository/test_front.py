"""The top of every notebook is the one that tools/front.py writes, and one command writes the
public address everywhere."""

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path

import front
import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PATHS = front.notebooks()
PLACE, TAGGED = front.Place("someone/grpo"), front.Place("someone/grpo", "v1.2")
NOWHERE = front.Place()
CITATION = "cff-version: 1.2.0\ntitle: grpo_lib\n"


def notebook(path=PATHS[0]):
    return nbformat.read(path, as_version=4)


def put(notebook, path, place=None):
    return front.put_front(notebook, front.path_in_links(path), place)


def written():
    """The place that the first notebook names; all others must name it too."""
    return front.written_in(notebook())


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
class TestNotebook:
    def test_has_the_top_that_front_writes(self, path):
        text = nbformat.writes(put(notebook(path), path, written())) + "\n"
        assert text == path.read_text(encoding="utf-8"), "run python tools/front.py"

    def test_without_a_place_the_written_one_stays(self, path):
        placed = put(notebook(path), path, TAGGED)
        assert front.written_in(placed) == TAGGED
        assert put(copy.deepcopy(placed), path) == placed

    @pytest.mark.parametrize("place", [PLACE, TAGGED])
    def test_with_an_address_has_badges_below_its_title_and_fetches_from_there(self, path, place):
        name, ref = front.path_in_links(path), place.ref or "main"
        changed = put(notebook(path), path, place)
        title, gap, badges, rest, *_ = changed.cells[0].source.split("\n")
        assert title.startswith("# ") and gap == rest == ""
        assert f"/github/someone/grpo/blob/{ref}/notebooks/{name})" in badges
        assert f"?src=https://github.com/someone/grpo/blob/{ref}/notebooks/{name})" in badges
        assert (f"/gh/someone/grpo/{ref}?urlpath=lab/tree/notebooks/{name})" in badges) is not (
            name.split("/")[-1].startswith("09"))
        assert (f'get_grpo_lib(address="https://github.com/someone/grpo", ref="{place.ref}", '
                in changed.cells[1].source)

    def test_writing_twice_changes_nothing_more_and_the_address_can_be_taken_away(self, path):
        once = put(notebook(path), path, TAGGED)
        assert put(copy.deepcopy(once), path, TAGGED) == once
        moved = put(copy.deepcopy(once), path, front.Place("another/place"))
        assert "someone/grpo" not in nbformat.writes(moved) and "v1.2" not in nbformat.writes(moved)
        assert put(once, path, NOWHERE) == put(notebook(path), path, NOWHERE)

    def test_keeps_its_own_text_and_outputs(self, path):
        before, after = notebook(path), put(notebook(path), path, PLACE)
        assert after.cells[3:] == before.cells[3:]
        own = front.without_badges(before.cells[0].source).partition("<details>")[0]
        assert own.split("\n\n", 1)[1] in after.cells[0].source
        assert after.cells[0].source.startswith(own.split("\n", 1)[0] + "\n")
        assert [c.get("outputs") for c in after.cells] == [c.get("outputs") for c in before.cells]

    def test_is_in_the_readmes_table_once(self, path):
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        if path.parent == front.NOTEBOOKS:
            assert readme.count(f"](notebooks/{path.name})") == 1
        else:  # solutions are linked from their lessons, and as a folder
            assert path.parent.name == "solutions" and "](notebooks/solutions)" in readme


def test_nobody_is_asked_to_type_an_address():
    for text in (front.NOTE, front.GPU_NOTE, (ROOT / "README.md").read_text(encoding="utf-8")):
        assert not re.search(r"fill(ed)? in\b.*(address|repository)|address.*fill", text)


# --- the other files --------------------------------------------------------------------------

def text_of(name):
    path = ROOT / name
    return path.read_text(encoding="utf-8") if path.exists() else CITATION


@pytest.mark.parametrize("name", front.FILES)
class TestFile:
    def test_is_the_one_that_front_writes(self, name):
        if (ROOT / name).exists():
            assert front.FILES[name](text_of(name), written()) == text_of(name)

    def test_takes_an_address_keeps_it_moves_and_loses_it_again(self, name):
        change, before = front.FILES[name], text_of(name)
        bare = change(before, NOWHERE)
        placed = change(bare, TAGGED)
        assert "someone" in placed and change(placed, TAGGED) == placed
        assert change(change(placed, front.Place("another/place")), TAGGED) == placed
        assert change(placed, NOWHERE) == bare and "someone" not in bare


def test_the_readme_opens_the_first_notebook_and_each_lesson_has_its_badge():
    readme = front.readme_with(text_of("README.md"), PLACE)
    assert readme.split("\n")[2] == front.badges("00_start_here.ipynb", PLACE)
    lessons = [path.name for path in PATHS if path.parent == front.NOTEBOOKS]
    for name in lessons:
        [line] = [x for x in readme.splitlines() if f"](notebooks/{name})" in x]
        assert f"](notebooks/{name}) {front.badge(name, PLACE)} |" in line
    assert readme.count("Open in Colab") == len(lessons) + 1


def test_the_projects_urls_stand_in_a_table_of_their_own():
    text = front.pyproject_with(text_of("pyproject.toml"), TAGGED)
    assert ('\n\n[project.urls]\nRepository = "https://github.com/someone/grpo"\n'
            'Issues = "https://github.com/someone/grpo/issues"\n') in text
    assert '/blob/v1.2/CHANGELOG.md"\n\n[project.scripts]\n' in text


def test_the_link_for_hubs_opens_the_first_lesson():
    assert ("https://HUB/hub/user-redirect/git-pull?repo=https%3A%2F%2Fgithub.com%2Fsomeone%2Fgrpo"
            "&branch=main&urlpath=lab%2Ftree%2Fgrpo%2Fnotebooks%2F00_start_here.ipynb"
            ) in front.classroom_with(text_of("docs/teaching/classroom.md"), PLACE)


# --- where the address comes from -------------------------------------------------------------

@pytest.mark.parametrize("address", [
    "someone/grpo", "https://github.com/someone/grpo", "https://github.com/someone/grpo.git",
    "http://github.com/someone/grpo/", "https://www.github.com/someone/grpo",
    "https://user:secret@github.com/someone/grpo.git", "git@github.com:someone/grpo.git",
    "ssh://git@github.com/someone/grpo.git", "ssh://git@ssh.github.com:443/someone/grpo.git",
    "git://github.com/someone/grpo.git", "github.com/someone/grpo", " someone/grpo\n",
    "https://GitHub.com/someone/grpo", "git@GITHUB.com:someone/grpo.git"])
def test_an_address_on_github_is_understood(address):
    assert front.repository_of(address) == "someone/grpo"


@pytest.mark.parametrize("address", [
    "https://gitlab.com/someone/grpo", "git@gitlab.com:someone/grpo.git", "/srv/git/grpo",
    "../grpo", "./grpo", "file:///srv/grpo.git", "C:\\grpo", "C:/some/grpo", "someone", "someone/",
    "https://github.com/someone", "https://notgithub.com/someone/grpo", "a/b/c",
    "https://example.com/github.com/someone/grpo", "some one/grpo", "someone/grpo\"); bad("])
def test_another_address_is_refused_in_one_line(address, capsys):
    assert front.main(["--address", address]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 + address.count("\n")
    assert f"address: got {address}, must be owner/name on GitHub" in said.err


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with two notebooks and the other files, which the command changes."""
    for path in (PATHS[0], PATHS[-1]):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(put(notebook(path), path, NOWHERE), target)
    for name in front.FILES:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(front.FILES[name](text_of(name), NOWHERE), encoding="utf-8")
    monkeypatch.setattr(front, "ROOT", tmp_path)
    monkeypatch.setattr(front, "NOTEBOOKS", tmp_path / "notebooks")
    (tmp_path / "grpo_lib").mkdir()
    shutil.copy(ROOT / "grpo_lib" / "__init__.py", tmp_path / "grpo_lib")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "1")
    return tmp_path


def git(folder, *arguments):
    done = subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
                          cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@needs_git
def test_the_command_takes_the_remotes_address_and_without_a_remote_takes_it_away(checkout, capsys):
    assert front.main([]) == 0 and git(checkout, "status", "--short") == ""
    git(checkout, "remote", "add", "origin", "git@github.com:someone/grpo.git")
    assert front.main([]) == 0
    changed = {line.split()[-1] for line in git(checkout, "status", "--short").splitlines()}
    assert len(changed) == 2 + len(front.FILES)
    for name in changed:
        assert "someone" in (checkout / name).read_text(encoding="utf-8"), name
    assert "the address is https://github.com/someone/grpo\n" in capsys.readouterr().out
    git(checkout, "remote", "set-url", "origin", "https://github.com/fork/er.git")
    assert front.main([]) == 0
    for name in changed:
        text = (checkout / name).read_text(encoding="utf-8")
        assert "someone" not in text and "fork" in text, name
    git(checkout, "remote", "remove", "origin")
    assert front.main([]) == 0 and git(checkout, "status", "--short") == ""


@needs_git
def test_a_tag_of_this_commit_is_what_notebooks_fetch(checkout):
    git(checkout, "tag", "v3")
    assert front.main(["--address", "someone/grpo"]) == 0
    for path in front.notebooks():
        assert front.written_in(notebook(path)) == front.Place("someone/grpo", "v3")
        assert "/blob/v3/" in notebook(path).cells[0].source


@needs_git
def test_the_tag_of_the_next_commit_can_be_given(checkout, capsys):
    git(checkout, "tag", "v3")
    assert front.main(["--address", "someone/grpo", "--ref", "v4"]) == 0
    assert front.written_in(notebook(front.notebooks()[0])).ref == "v4"
    assert front.main(["--address", "someone/grpo", "--ref=-x"]) == 2
    assert "ref: got -x, must be a tag, branch or commit" in capsys.readouterr().err


@needs_git
def test_a_remote_elsewhere_is_told_and_nothing_is_written(checkout, capsys):
    git(checkout, "remote", "add", "origin", "https://gitlab.com/someone/grpo.git")
    assert front.main([]) == 2 and git(checkout, "status", "--short") == ""
    assert "must be owner/name on GitHub" in capsys.readouterr().err


def test_without_git_and_without_some_files_it_writes_what_there_is(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (checkout / "CITATION.cff").unlink()
    assert front.main([]) == 0
    assert front.main(["--address", "someone/grpo"]) == 0
    assert "someone" in (checkout / "README.md").read_text(encoding="utf-8")
    assert not (checkout / "CITATION.cff").exists()


# --- files that hosts read --------------------------------------------------------------------

def tracked(*patterns):
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


@pytest.mark.parametrize("path", tracked(".github/workflows/*.yml"), ids=lambda path: path.name)
def test_a_workflow_names_its_steps_and_what_starts_it(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["name"] and content.get("on", content.get(True))  # YAML 1.1 reads on as true
    for job in content["jobs"].values():
        assert job["runs-on"] and all("uses" in s or "run" in s for s in job["steps"])


def test_the_workflow_of_the_address_runs_the_command_and_may_push():
    content = yaml.safe_load((ROOT / ".github/workflows/address.yml").read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "write"}
    commands = "\n".join(s.get("run", "") for s in content["jobs"]["write"]["steps"])
    assert 'python tools/front.py --address "$GITHUB_REPOSITORY"' in commands
    assert "git diff --quiet" in commands and "git push" in commands


def test_the_workflow_of_the_tests_runs_what_stands_in_ci_run():
    content = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    assert any(s.get("run") == ".ci/run" for s in content["jobs"]["tests"]["steps"])


def test_the_container_installs_what_the_readme_says():
    content = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert "--torch-backend=cpu -r requirements.txt" in content["postCreateCommand"]
    assert content["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"] == (
        "${containerWorkspaceFolder}/.venv/bin/python")


def test_binder_installs_the_requirements_with_the_cpu_build():
    script = ROOT / ".binder" / "postBuild"
    assert script.stat().st_mode & 0o100, "Binder runs it"
    assert "--torch-backend=cpu -r requirements.txt" in script.read_text(encoding="utf-8")
    assert script.read_text(encoding="utf-8").startswith("#!/bin/bash\n")


@pytest.mark.parametrize("path", tracked(".github/ISSUE_TEMPLATE/*.md"), ids=lambda p: p.name)
def test_an_issue_template_has_a_name_and_is_short(path):
    head, _, body = path.read_text(encoding="utf-8").removeprefix("---\n").partition("\n---\n")
    assert {"name", "about"} <= yaml.safe_load(head).keys()
    assert 0 < len(body.splitlines()) < 15


def test_no_file_of_a_host_names_a_package_index():
    for path in tracked(".github/**/*.*", ".devcontainer/*", ".binder/*", "tools/*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"index-url|find-links", text), path
