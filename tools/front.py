"""Write the repository's public address everywhere, and the top of every notebook.

    python tools/front.py                        the address that git remote has; none: take it away
    python tools/front.py --address owner/name   another one (or its URL)
    python tools/front.py --ref v1.0             before the commit that will carry this tag

It goes into the badges and set-up cells of all notebooks, the README, pyproject.toml, CITATION.cff
and the link for hubs in docs/teaching. If HEAD carries a tag, notebooks fetch that tag; else what
the repository holds on the day. Nothing else has to be edited, in a fork neither.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import nbformat

# Once the package is on the index: its name there. Before that a stranger's package could have it.
PACKAGE = ""

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
GPU_LESSON = "09_real_llm.ipynb"


class Place(NamedTuple):
    """Where the project is public: "owner/name" on GitHub, and the tag to fetch. Empty: unknown."""

    repository: str = ""
    ref: str = ""

    @property
    def url(self) -> str:
        return f"https://github.com/{self.repository}" if self.repository else ""


NOTE = """\
<details><summary>On Colab, Kaggle or a hub</summary>

Run the next cell first: it fetches what this notebook needs. On Kaggle, first switch *Internet* on
in the notebook's settings. You need no GPU. Do not install `requirements.txt` there: it would
replace the host's own Jupyter. A slider that you move while a cell is running answers when the cell
has ended. To keep a training run on Colab, mount your Drive and write the run into a folder on it.
After a disconnect, run the set-up again and resume the run:

```python
from google.colab import drive
drive.mount("/content/drive")
!cd grpo && python -m grpo_lib train --out /content/drive/MyDrive/my_run
!cd grpo && python -m grpo_lib train --resume /content/drive/MyDrive/my_run
```
</details>"""

GPU_NOTE = """\
<details><summary>On Colab, Kaggle or a hub</summary>

Choose a machine with a GPU (on Colab *Runtime*, *Change runtime type*, *T4*). Run the next cell
first: it fetches what this notebook needs. On Kaggle, also switch *Internet* on in the notebook's
settings. Do not install `requirements.txt` there: it would replace the host's own Jupyter. If
`peft` is missing, run `%pip install -q peft`. A disconnect loses everything: to keep the record of
a run on Colab, mount your Drive and write it there.

```python
from google.colab import drive
drive.mount("/content/drive")
```
</details>"""

CALL = 'get_grpo_lib(address="{}", ref="{}", package="{}")'
SET_UP = r"""# @title Set-up: run this cell first. There is nothing to fill in.
def get_grpo_lib(address, ref, package):
    # It lies around this notebook, or is installed, or is fetched.
    import os
    import re
    import shutil
    import subprocess
    import sys
    import tempfile
    from pathlib import Path
    from urllib.parse import unquote
    from urllib.request import urlopen

    def found(*folders):
        homes = [f for f in folders if (f / "grpo_lib" / "__init__.py").is_file()]
        sys.path[:0] = map(str, homes[:1])
        try:
            return __import__("grpo_lib.course")
        except ModuleNotFoundError:
            sys.modules.pop("grpo_lib", None)

    here, tried = Path.cwd(), []
    if found(here, *here.parents, *here.glob("*")):
        return
    sources = [(address, ref or "HEAD")] if address else []
    if "google.colab" in sys.modules:  # which knows where it opened this notebook from
        host = os.environ.get("COLAB_JUPYTER_IP", "172.28.0.12")
        github = r"(https://github\.com/[\w.-]+/[\w.-]+)/blob/(\w[\w./-]*?)/notebook"
        try:
            said = urlopen(f"http://{host}:9000/api/sessions", timeout=2).read()
            sources += re.findall(github, unquote(said.decode()))[:1]
        except Exception:
            pass
    pip = f'"{sys.executable}" -m pip install -q'
    for address, ref in sources:
        folder = Path(tempfile.mkdtemp()) / "grpo"
        git = f'git -C "{folder}" -c core.askPass=true'  # it never asks for a password
        command = (f'git init -q "{folder}" && {git} fetch -q --depth=1 {address} '
                   f'{ref} && {git} checkout -q FETCH_HEAD')
        if shutil.which("git") is None:
            command = f"{pip} {address}/archive/{ref}.zip"
        subprocess.getoutput(command)
        free = os.access(here, os.W_OK) and not (here / "grpo").exists()
        if free and (folder / "grpo_lib").exists():
            folder = Path(shutil.move(folder, here))
        if found(folder):
            return
        shutil.rmtree(folder, ignore_errors=True)  # it is a wrong repository
        tried.append(address)
    if package:
        subprocess.getoutput(f"{pip} {package}")
        tried.append(package)
    if not found():
        said = "grpo_lib was not found. Install its wheel (pip install grpo_lib-*.whl)"
        if tried:
            said = (f"grpo_lib could not be fetched from {' or '.join(tried)}. Check "
                    "the network (on Kaggle: Settings, Internet)")
        said += " and run this again, or open this notebook in its whole repository."
        short = {"_render_traceback_": lambda error: [f"ImportError: {error}"]}
        raise type("ImportError", (Exception,), short)(said)  # Colab adds to Python's


get_grpo_lib(address="", ref="", package="")  # tools/front.py writes this line
import grpo_lib.course

grpo_lib.course.set_up()
import torch"""

REAL = '''\
from grpo_lib.bridges.huggingface import can_be_loaded, quiet

quiet()  # no progress bars: they would stand in the notebook
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REAL = DEVICE == "cuda" and can_be_loaded(MODEL)
print(f"This is {MODEL}." if REAL else
      "NOT the real model: no GPU or no network here, so a tiny one stands in for it.")
print(f"grpo_lib {grpo_lib.__version__}, torch {torch.__version__}, {DEVICE}, "
      f"{torch.get_num_threads()} threads")'''

DEVICE = '''\
DEVICE = "cpu"  # "cuda" works too; the numbers in the text are from a CPU
print(f"grpo_lib {grpo_lib.__version__}, torch {torch.__version__}, {DEVICE}, "
      f"{torch.get_num_threads()} threads")'''

HOSTS = {  # name: (its badge, where it opens a notebook of the repository)
    "Colab": ("https://colab.research.google.com/assets/colab-badge.svg",
              "https://colab.research.google.com/github/{repository}/blob/{ref}/notebooks/{name}"),
    "Kaggle": ("https://kaggle.com/static/images/open-in-kaggle.svg",
               "https://kaggle.com/kernels/welcome?src="
               "https://github.com/{repository}/blob/{ref}/notebooks/{name}"),
    "Binder": ("https://mybinder.org/badge_logo.svg",
               "https://mybinder.org/v2/gh/{repository}/{ref}?urlpath=lab/tree/notebooks/{name}"),
}


# --- badges, and the top of a notebook ------------------------------------------------------

def badge(name: str, place: Place, host: str = "Colab") -> str:
    """A badge that opens a notebook (its path below notebooks/) on a host."""
    picture, link = HOSTS[host]
    link = link.format(repository=place.repository, ref=place.ref or "main", name=name)
    return f"[![Open in {host}]({picture})]({link})"


def badges(name: str, place: Place) -> str:
    """All badges of a notebook in one line. Binder has neither a GPU nor what 09 needs."""
    hosts = [h for h in HOSTS if h != "Binder" or not Path(name).name.startswith("09")]
    return " ".join(badge(name, place, host) for host in hosts)


def without_badges(text: str) -> str:
    return re.sub(r"^\[!\[Open in \w+\]\(.*\n\n", "", text, flags=re.MULTILINE)


def below_the_title(text: str, line: str) -> str:
    """A text with a line of its own after its first heading."""
    return re.sub(r"\A(# .*)\n", lambda m: f"{m[1]}\n\n{line}\n", text) if line else text


def set_up_cell(place: Place) -> str:
    package = f"{PACKAGE}=={version()}" if PACKAGE else ""
    return SET_UP.replace(CALL.format("", "", ""), CALL.format(place.url, place.ref, package))


def version() -> str:
    text = (ROOT / "grpo_lib" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'__version__ = "(.*)"', text)[1]


def written_in(notebook: nbformat.NotebookNode) -> Place:
    """The place that a notebook's set-up cell has now."""
    found = re.search(r'get_grpo_lib\(address="(?:https://github\.com/)?(.*?)", ref="(.*?)"',
                      notebook.cells[1].source)
    return Place(*found.groups()) if found else Place()


def put_front(notebook: nbformat.NotebookNode, name: str, place: Place | None = None):
    """The notebook with the top it should have; its own text and outputs are kept.

    Cell 0 is its own introduction (badges and note are put into it), 1 and 2 are written. Without
    a place, the one that stands in it stays.
    """
    place = written_in(notebook) if place is None else place
    opening, set_up, device = notebook.cells[:3]
    own = re.split(r"<details><summary>On Colab", without_badges(opening.source))[0].rstrip()
    real = name == GPU_LESSON
    line = badges(name, place) if place.repository else ""
    opening.source = f"{below_the_title(own, line)}\n\n{GPU_NOTE if real else NOTE}"
    set_up.source, device.source = set_up_cell(place), REAL if real else DEVICE
    set_up.metadata = {"cellView": "form", "jupyter": {"source_hidden": True},  # Colab, JupyterLab
                       "tags": ["hide-input"]}  # the site
    device.metadata["tags"] = ["nbval-ignore-output"]
    return notebook


# --- the other files that name the address --------------------------------------------------

def readme_with(text: str, place: Place) -> str:
    """README.md with badges for the first notebook, and for Colab in the table of notebooks."""
    text = without_badges(re.sub(r" \[!\[Open in Colab\][^|]*\)(?= \|)", "", text))
    if not place.repository:
        return text
    text = below_the_title(text, badges("00_start_here.ipynb", place))
    return re.sub(r"(?<=\| )(\[`[^`]*`\]\(notebooks/([^)]*)\))",
                  lambda m: f"{m[1]} {badge(m[2], place)}", text)


def pyproject_with(text: str, place: Place) -> str:
    """pyproject.toml with the project's URLs, and links of the README that work on an index."""
    from metadata import address_written

    return address_written(text, place.url, place.ref or "main")


def citation_with(text: str, place: Place) -> str:
    """CITATION.cff with the address of the code as its last line."""
    text = re.sub(r"^repository-code:.*\n", "", text, flags=re.MULTILINE)
    return text + (f'repository-code: "{place.url}"\n' if place.repository else "")


def classroom_with(text: str, place: Place) -> str:
    """The link by which nbgitpuller brings the repository to a hub."""
    repository = place.repository or "OWNER/NAME"
    link = (f"https://HUB/hub/user-redirect/git-pull?repo={quote('https://github.com/', safe='')}"
            f"{quote(repository, safe='')}&branch={place.ref or 'main'}&urlpath="
            f"{quote('lab/tree/' + repository.split('/')[1] + '/notebooks/', safe='')}"
            f"00_start_here.ipynb")
    return re.sub(r"https://HUB/\S+", lambda _: link, text)


FILES: dict[str, Callable[[str, Place], str]] = {
    "README.md": readme_with, "pyproject.toml": pyproject_with, "CITATION.cff": citation_with,
    "docs/teaching/classroom.md": classroom_with}


# --- the address ----------------------------------------------------------------------------

def repository_of(address: str) -> str:
    """"owner/name" of an address on GitHub (https, ssh or short). ValueError: another address."""
    host = r"(?:(?:https?|ssh|git)://)?(?:[^@/\s]+@)?(?:www\.|ssh\.)?github\.com(?::\d+/|:|/)/*"
    name = r"([A-Za-z0-9][\w-]*/[\w.-]+?)(?:\.git)?/*"
    found = re.fullmatch(rf"(?:(?i:{host}))?{name}", address.strip())
    if found is None:
        raise ValueError(f"address: got {address}, must be owner/name on GitHub, or its URL; "
                         f"hosts such as Colab open notebooks from there only")
    return found[1]


def git(*arguments: str) -> str:
    """What git prints; nothing if it fails or is not there."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True,
                              encoding="utf-8", errors="replace", check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def place_of(address: str | None, ref: str | None) -> Place:
    """The place of an address (None: of the remote "origin") and a tag (None: that of HEAD)."""
    address = git("config", "--get", "remote.origin.url") if address is None else address
    if not address:
        return Place()
    tag = git("describe", "--tags", "--exact-match", "HEAD") if ref is None else ref
    if tag and not re.fullmatch(r"\w[\w./-]*", tag):
        raise ValueError(f"ref: got {tag}, must be a tag, branch or commit")
    return Place(repository_of(address), tag)


def notebooks() -> list[Path]:
    return [p for p in sorted(NOTEBOOKS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


def path_in_links(path: Path) -> str:
    """A notebook's path below notebooks/."""
    return path.relative_to(NOTEBOOKS).as_posix()


def write(path: Path, text: str) -> None:
    if text != path.read_text(encoding="utf-8"):
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {path.relative_to(ROOT)}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the repository's address everywhere.")
    parser.add_argument("--address", help="owner/name on GitHub, or its URL; \"\" takes it away "
                                          "(if not given: what git remote has)")
    parser.add_argument("--ref", help="tag that notebooks fetch (if not given: HEAD's, if any)")
    options = parser.parse_args(arguments)
    try:
        place = place_of(options.address, options.ref)
    except ValueError as error:
        print(f"front.py: error: {error}", file=sys.stderr)
        return 2
    for path in notebooks():
        notebook = put_front(nbformat.read(path, as_version=4), path_in_links(path), place)
        write(path, nbformat.writes(notebook) + "\n")
    for name, change in FILES.items():
        path = ROOT / name
        if path.exists():
            write(path, change(path.read_text(encoding="utf-8"), place))
    print(f"the address is {place.url} {place.ref}".rstrip() if place.repository
          else "no address: notebooks carry no badges")
    return 0


if __name__ == "__main__":
    sys.exit(main())
