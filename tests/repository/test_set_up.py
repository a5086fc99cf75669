"""The set-up cell of the notebooks on simulated hosts: nobody has to type anything.

A stand-in for the library and for torch, a repository on this disk that git takes for GitHub's, a
server for what Colab tells of its session. The real network is cut off by a proxy nobody answers.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest
from test_front import PATHS, ROOT, front, notebook
from waiting import PATIENCE

from grpo_lib.course import ADVICE

PLACE = front.Place("someone/grpo")
NOBODY = "http://127.0.0.1:9"  # no port of this machine answers there
COLAB = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')"
NOT_FOUND = ("ImportError: grpo_lib was not found. Install its wheel (pip install grpo_lib-*.whl) "
             "and run this again, or open this notebook in its whole repository.")
NOT_FETCHED = ("ImportError: grpo_lib could not be fetched from {}. Check the network (on Kaggle: "
               "Settings, Internet) and run this again, or open this notebook in its whole "
               "repository.")
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def library(folder, version="1"):
    """A folder with a stand-in for the library in it."""
    (folder / "grpo_lib").mkdir(parents=True)
    (folder / "grpo_lib" / "__init__.py").write_text(f"__version__ = {version!r}\n")
    (folder / "grpo_lib" / "course.py").write_text("ready = 0\ndef set_up():\n"
                                                   "    global ready\n    ready += 1\n")
    return folder


def git(folder, *arguments):
    done = subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
                          cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def repository(folder):
    """A repository of the library: its branch main is at 2, the branch try/it at 3, a commit
    before is 1. Returns the folder and that commit."""
    library(folder)
    git(folder, "init", "-q", "-b", "main")
    for version, branch in (("1", "main"), ("2", "main"), ("3", "try/it")):
        if branch != "main":
            git(folder, "checkout", "-q", "-b", branch)
        (folder / "grpo_lib" / "__init__.py").write_text(f"__version__ = {version!r}\n")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", version)
    git(folder, "checkout", "-q", "main")
    return folder, git(folder, "rev-parse", "main~1")


@pytest.fixture
def outside(tmp_path):
    """An empty folder with no library around it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def run_cell(folder, source=None, *, path=(), github=None, before="", after=None, **environment):
    """The set-up cell in a fresh Python that knows nothing but ``path`` and a stand-in for torch,
    which must not come before grpo_lib. ``github``: where git finds someone/grpo."""
    stand_in = folder.parent / "stand_in"
    stand_in.mkdir(exist_ok=True)
    (stand_in / "torch.py").write_text("import sys\nassert 'grpo_lib' in sys.modules\n")
    source = notebook().cells[1].source if source is None else source
    after = after or ("assert grpo_lib.course.ready == 1 and torch\n"
                      "print(grpo_lib.__version__, grpo_lib.__file__)")
    usual = {k: v for k, v in os.environ.items()
             if not k.startswith(("PYTHON", "COLAB", "GIT", "http", "HTTP", "no_proxy"))}
    usual |= {"PYTHONPATH": os.pathsep.join(map(str, [stand_in, *path])), "no_proxy": "127.0.0.1",
              "PYTHONDONTWRITEBYTECODE": "1",
              "http_proxy": NOBODY, "https_proxy": NOBODY, "GIT_CONFIG_NOSYSTEM": "1",
              "GIT_CONFIG_GLOBAL": os.devnull, "TMPDIR": str(stand_in), "TEMP": str(stand_in)}
    if github is not None:
        usual |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{github}.insteadOf",
                  "GIT_CONFIG_VALUE_0": PLACE.url}
    return subprocess.run(
        [sys.executable, "-S", "-c", "\n".join([before, source, after])], cwd=folder,
        env=usual | environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


def taken(done):
    """(version, folder) of the library that a cell took."""
    assert done.returncode == 0, done.stderr
    version, file = done.stdout.split(maxsplit=1)
    return version, Path(file.strip()).parent.parent


def said(done):
    """The last line of a cell that failed, which is all that a notebook shows of it."""
    assert done.returncode == 1 and done.stdout == "", done.stdout
    assert "CalledProcessError" not in done.stderr and "During handling" not in done.stderr
    return done.stderr.splitlines()[-1]


@contextmanager
def server(answer):
    """A server whose pages ``answer(handler)`` writes; yields its host and port."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()


def page(text, status=200, **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(text.encode())
    return answer


def session(path):
    """What Colab's server answers of its sessions (as public code reads it)."""
    return json.dumps([{"id": "1", "kernel": {"id": "2", "name": "python3"}, "name": "x.ipynb",
                        "notebook": {"name": "x.ipynb", "path": path}, "path": path,
                        "type": "notebook"}])


@contextmanager
def colab(text):
    """The environment of a Colab whose session server answers with a text. Its port is 9000;
    here another one stands in the host, before a question mark."""
    with server(page(text)) as host:
        yield {"before": COLAB, "COLAB_JUPYTER_IP": f"{host}/?"}


# --- what all notebooks have ----------------------------------------------------------------

@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_every_notebook_has_the_same_cell_hidden_on_opening(path):
    cell = nbformat.read(path, as_version=4).cells[1]
    assert cell.source == notebook().cells[1].source
    assert cell.source.startswith("# @title ") and "@param" not in cell.source
    assert cell.metadata == {"cellView": "form", "jupyter": {"source_hidden": True},
                             "tags": ["hide-input"]}
    assert cell.outputs == []


def test_the_cell_makes_no_names_but_those_that_lessons_use(tmp_path):
    after = "print(sorted(n for n in globals() if n[:2] != '__'))"
    done = run_cell(library(tmp_path / "ours"), after=after)
    assert done.stdout.strip() == "['get_grpo_lib', 'grpo_lib', 'torch']", done.stderr


# --- the library is here already --------------------------------------------------------------

def test_in_a_checkout_the_checkouts_library_is_taken(tmp_path):
    ours, other = library(tmp_path / "ours"), library(tmp_path / "other")
    (ours / "notebooks" / "deeper").mkdir(parents=True)
    for folder in (ours, ours / "notebooks", ours / "notebooks" / "deeper"):
        assert taken(run_cell(folder, path=[other])) == ("1", ours)


@pytest.mark.parametrize("name", ["grpo", "grpo_lib", "grpo-main"])
def test_a_checkout_beside_the_notebook_is_taken(outside, name):
    library(outside / name)
    assert taken(run_cell(outside)) == ("1", outside / name)


@pytest.mark.slow
def test_in_the_folder_of_our_notebooks_our_library_is_taken():
    done = subprocess.run(
        [sys.executable, "-c", f"{notebook().cells[1].source}\nimport os\n"
         "print(grpo_lib.__file__, os.environ['OMP_WAIT_POLICY'], torch.__version__)"],
        cwd=ROOT / "notebooks", capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    file, policy, _ = done.stdout.split()
    assert Path(file) == ROOT / "grpo_lib" / "__init__.py" and policy


def test_in_an_empty_folder_the_installed_wheel_is_taken(tmp_path, outside):
    installed = library(tmp_path / "installed")
    (installed / "grpo_lib-1.dist-info").mkdir()
    (installed / "grpo_lib-1.dist-info" / "METADATA").write_text("Name: grpo_lib\nVersion: 1\n")
    assert taken(run_cell(outside, path=[installed])) == ("1", installed)
    source = front.set_up_cell(PLACE)  # and nothing is fetched, although there is an address
    assert taken(run_cell(outside, source, path=[installed])) == ("1", installed)
    assert not list(outside.iterdir())


# --- it is fetched ----------------------------------------------------------------------------

@pytest.mark.slow
@needs_git
@pytest.mark.parametrize(("ref", "version"), [("main", "2"), ("try/it", "3"), ("commit", "1")])
@pytest.mark.parametrize("escaped", [True, False])
def test_colab_fetches_what_the_notebook_was_opened_from(tmp_path, outside, ref, version, escaped):
    origin, commit = repository(tmp_path / "origin")
    ref = commit if ref == "commit" else ref
    path = f"{PLACE.url}/blob/{ref}/notebooks/04_clipping.ipynb"
    with colab(session(f"fileId={quote(path) if escaped else path}")) as host:
        done = run_cell(outside, github=origin, **host)
    assert taken(done) == (version, outside / "grpo")


@needs_git
def test_colab_fetches_for_a_solution_too_and_only_once(tmp_path, outside):
    origin, _ = repository(tmp_path / "origin")
    path = f"{PLACE.url}/blob/main/notebooks/solutions/04_clipping_solutions.ipynb"
    with colab(session(f"fileId={quote(path)}")) as host:
        assert taken(run_cell(outside, github=origin, **host)) == ("2", outside / "grpo")
        shutil.rmtree(origin)
        assert taken(run_cell(outside, github=origin, **host)) == ("2", outside / "grpo")


@needs_git
@pytest.mark.parametrize("host", ["kaggle/working", "home/jovyan/work", "Downloads/my course"])
def test_anywhere_the_written_address_is_fetched_without_typing(tmp_path, host):
    origin, _ = repository(tmp_path / "origin")
    folder = tmp_path / host
    folder.mkdir(parents=True)
    done = run_cell(folder, front.set_up_cell(PLACE), github=origin)
    assert taken(done) == ("2", folder / "grpo")


@needs_git
def test_a_written_tag_is_fetched(tmp_path, outside):
    origin, commit = repository(tmp_path / "origin")
    git(origin, "tag", "v1", commit)
    source = front.set_up_cell(PLACE._replace(ref="v1"))
    assert taken(run_cell(outside, source, github=origin))[0] == "1"


@needs_git
def test_where_the_address_fails_what_colab_says_is_tried(tmp_path, outside):
    origin, _ = repository(tmp_path / "origin")
    path = f"fileId={PLACE.url}/blob/main/notebooks/04_clipping.ipynb"
    with colab(session(path)) as host:
        done = run_cell(outside, front.set_up_cell(front.Place("someone/moved")), github=origin,
                        **host)
    assert taken(done) == ("2", outside / "grpo")


@needs_git
@pytest.mark.parametrize("content", ["README", "grpo_lib/__init__.py"])
def test_a_wrong_repository_first_and_the_right_one_after(tmp_path, outside, content):
    wrong, (right, _) = tmp_path / "wrong", repository(tmp_path / "right")
    (wrong / content).parent.mkdir(parents=True)
    (wrong / content).write_text("another = 'project'")
    git(wrong, "init", "-q")
    git(wrong, "add", "-A")
    git(wrong, "commit", "-qm", "1")
    source = front.set_up_cell(PLACE)
    assert said(run_cell(outside, source, github=wrong)) == NOT_FETCHED.format(PLACE.url)
    assert not list(outside.iterdir()), "the wrong clone is still there"
    assert taken(run_cell(outside, source, github=right)) == ("2", outside / "grpo")


@needs_git
@pytest.mark.parametrize("content", [".git/HEAD", "thesis.txt", "grpo_lib/__init__.py"])
def test_a_folder_of_the_same_name_is_left_alone_and_does_not_stop_it(tmp_path, outside, content):
    """A clone that broke off, somebody's own work, an older library."""
    origin, _ = repository(tmp_path / "origin")
    file = outside / "grpo" / content
    file.parent.mkdir(parents=True)
    file.write_text("")
    version, _ = taken(run_cell(outside, front.set_up_cell(PLACE), github=origin))
    assert version == "2"
    assert [p for p in (outside / "grpo").rglob("*") if p.is_file()] == [file]


@needs_git
def test_in_a_folder_that_may_only_be_read_it_is_fetched_elsewhere(tmp_path, outside):
    origin, _ = repository(tmp_path / "origin")
    outside.chmod(0o555)  # which does not stop root: access says so
    before = ("import os\nallowed = os.access\n"
              "os.access = lambda path, mode: mode != os.W_OK and allowed(path, mode)")
    done = run_cell(outside, front.set_up_cell(PLACE), github=origin, before=before)
    outside.chmod(0o755)
    assert taken(done)[0] == "2" and not list(outside.iterdir())


def stub_pip(folder, home):
    """A pip that notes its arguments and puts the library into a folder of the path."""
    (folder / "pip").mkdir(parents=True)
    (folder / "pip" / "__init__.py").touch()
    (folder / "pip" / "__main__.py").write_text(
        f"import pathlib, shutil, sys\npathlib.Path({str(folder / 'said')!r}).write_text("
        f"' '.join(sys.argv[1:]))\n"
        f"shutil.copytree({str(home)!r}, {str(folder / 'grpo_lib')!r})\n")
    return folder


def test_without_git_the_archive_is_installed(tmp_path, outside):
    pip = stub_pip(tmp_path / "site", library(tmp_path / "archive", "7") / "grpo_lib")
    done = run_cell(outside, front.set_up_cell(PLACE), path=[pip], PATH=str(tmp_path))
    assert taken(done) == ("7", pip)
    assert (pip / "said").read_text() == f"install -q {PLACE.url}/archive/HEAD.zip"


def test_the_index_is_asked_only_once_the_package_is_ours(tmp_path, outside, monkeypatch):
    pip = stub_pip(tmp_path / "site", library(tmp_path / "package", "7") / "grpo_lib")
    assert front.PACKAGE == "" and said(run_cell(outside, path=[pip])) == NOT_FOUND
    assert not (pip / "said").exists(), "a stranger may have a package of that name"
    monkeypatch.setattr(front, "PACKAGE", "grpo_lib")
    source = front.set_up_cell(front.Place())
    assert taken(run_cell(outside, source, path=[pip])) == ("7", pip)
    assert (pip / "said").read_text() == f"install -q grpo_lib=={front.version()}"


# --- it is nowhere ----------------------------------------------------------------------------

@pytest.mark.parametrize("namesake", [False, True])
def test_where_the_library_is_nowhere_one_line_says_what_to_do(tmp_path, outside, namesake):
    if namesake:  # a checkout that is called grpo_lib, seen from beside it
        library(tmp_path / "grpo_lib")
    assert said(run_cell(outside)) == NOT_FOUND


@pytest.mark.slow
@pytest.mark.parametrize("answer", [
    session("fileId=1a2B3c"), session("Untitled.ipynb"), "[]", "{}", "", "<html>", "\udcff",
    session("fileId=https://gist.github.com/someone/1"),
    session("fileId=https://github.com/someone/grpo/blob/--upload-pack=x/notebooks/a.ipynb")])
def test_a_colab_that_knows_no_repository_is_as_good_as_none(outside, answer):
    with server(lambda handler: handler.wfile.write(
            b"HTTP/1.0 200 OK\r\n\r\n" + answer.encode(errors="surrogateescape"))) as host:
        done = run_cell(outside, before=COLAB, COLAB_JUPYTER_IP=f"{host}/?")
    assert said(done) == NOT_FOUND


@pytest.mark.slow
@pytest.mark.parametrize("silent", [True, False])
def test_a_colab_that_does_not_answer_is_waited_for_no_longer_than_a_moment(outside, silent):
    over = threading.Event()

    def answer(handler):
        if silent:
            over.wait()
        else:
            handler.send_error(500)

    with server(answer) as host:
        done = run_cell(outside, before=COLAB, COLAB_JUPYTER_IP=f"{host}/?")
        over.set()
    assert said(done) == NOT_FOUND


def test_a_colab_without_a_session_server_is_as_good_as_none(outside):
    assert said(run_cell(outside, before=COLAB, COLAB_JUPYTER_IP="127.0.0.1:9/?")) == NOT_FOUND


@needs_git
@pytest.mark.parametrize("github", [None, "/no/such/place", "http://127.0.0.1:9/nobody"],
                         ids=["no network", "wrong address", "unreachable port"])
def test_an_address_that_fails_gives_one_line(outside, github):
    done = run_cell(outside, front.set_up_cell(PLACE), github=github)
    assert said(done) == NOT_FETCHED.format(PLACE.url)
    assert not list(outside.iterdir())


@needs_git
def test_git_asks_nobody_for_a_password(tmp_path, outside):
    window = tmp_path / "window"  # what git calls to ask, if it has no terminal
    window.write_text(f"#!/bin/sh\necho \"$@\" >> '{tmp_path / 'asked'}'\n")
    window.chmod(0o755)
    with server(page("", 401, WWW_Authenticate='Basic realm="a"')) as host:
        done = run_cell(outside, front.set_up_cell(PLACE), github=f"http://{host}/private",
                        SSH_ASKPASS=str(window))
    assert said(done) == NOT_FETCHED.format(PLACE.url)
    assert not (tmp_path / "asked").exists()


def test_a_tag_that_is_not_there_gives_one_line(tmp_path, outside):
    origin, _ = repository(tmp_path / "origin")
    source = front.set_up_cell(PLACE._replace(ref="v9"))
    assert said(run_cell(outside, source, github=origin)) == NOT_FETCHED.format(PLACE.url)


SHELL = f"""
import sys
sys.path = [place for place in sys.path if place != {str(ROOT)!r}]  # of an editable install
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
"""
COLABS_HANDLER = """
def handle(shell, kind, error, traceback, tb_offset=None):  # what Colab adds to import errors
    lines = shell.InteractiveTB.structured_traceback(kind, error, traceback, tb_offset=tb_offset)
    shell._showtraceback(kind, error, [*lines, "NOTE: If your import is failing ..."])
shell.set_custom_exc((ImportError,), handle)
"""


def run_shell(folder, code, *cells):
    code += f"for cell in {list(cells)!r}:\n    shell.run_cell(cell)\n"
    done = subprocess.run([sys.executable, "-c", SHELL + code], cwd=folder, capture_output=True,
                          text=True, timeout=PATIENCE, check=False,
                          env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("handler", ["", COLABS_HANDLER], ids=["IPython", "Colab"])
def test_a_notebook_shows_one_line_and_no_traceback(outside, handler):
    assert run_shell(outside, handler, notebook().cells[1].source).strip() == NOT_FOUND


@pytest.mark.slow
@pytest.mark.parametrize("handler", ["", COLABS_HANDLER], ids=["IPython", "Colab"])
def test_after_it_a_name_that_is_not_there_comes_with_advice(handler):
    shown = run_shell(ROOT / "notebooks", handler, notebook().cells[1].source, "tusk")
    assert f"name 'tusk' is not defined; {ADVICE}" in shown.replace("\n", "")
