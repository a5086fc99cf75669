"""Write the top of every notebook: Colab badge and note, set-up cell, device cell.

    python tools/front.py           after changing REPOSITORY or a text below

The repository's public address stands here and nowhere else.
"""

import re
import sys
from pathlib import Path

import nbformat

REPOSITORY = ""  # "owner/name" on GitHub, once it is settled; empty: no badges

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
README = ROOT / "README.md"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
COLAB = "https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}"

NOTE = """\
<details><summary>On Colab</summary>

No GPU is needed; leave the runtime on CPU. Run the next cell first{address}; do not install
`requirements.txt`, which would replace Colab's own Jupyter. Sliders answer between cells: one that
you move while a cell runs waits for it to end. To keep a training run, mount your Drive and
give the run a folder on it; after a disconnect, run the set-up again and resume it:

```python
from google.colab import drive
drive.mount("/content/drive")
!cd grpo && python -m grpo_lib train --out /content/drive/MyDrive/my_run
!cd grpo && python -m grpo_lib train --resume /content/drive/MyDrive/my_run
```
</details>"""

GPU_NOTE = """\
<details><summary>On Colab</summary>

Choose a runtime with a GPU (*Runtime*, *Change runtime type*, *T4*). Run the next cell
first{address}; do not install `requirements.txt`, which would replace Colab's own Jupyter. If
`peft` is missing there, `%pip install -q peft` brings it. After a disconnect everything starts
anew: to keep the record of your run, mount your Drive and write it there.

```python
from google.colab import drive
drive.mount("/content/drive")
```
</details>"""

SET_UP = '''\
import pathlib
import sys

REPOSITORY = "{url}"  # @param {{type:"string"}}
here = pathlib.Path.cwd()  # on Colab, the line above must hold the repository's address
if "google.colab" in sys.modules and REPOSITORY and not (here / "grpo").exists():
    import subprocess

    subprocess.run(["git", "clone", "-q", "--depth=1", REPOSITORY, "grpo"], check=True)
for folder in (here / "grpo", here, *here.parents):
    if (folder / "grpo_lib" / "__init__.py").is_file():
        sys.path.insert(0, str(folder))
        break
try:
    import grpo_lib  # before torch, so that its threads can be told to wait quietly
except ModuleNotFoundError:
    raise ImportError("grpo_lib was not found: open this notebook in a checkout of the "
                      "repository, or on Colab fill in REPOSITORY above") from None
import torch'''

REAL = '''\
from grpo_lib.huggingface import can_be_loaded, quiet

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


def badge(name: str, repository: str) -> str:
    link = COLAB.format(repository=repository, name=name)
    return f"[![Open in Colab]({BADGE})]({link})"


def put_front(notebook: nbformat.NotebookNode, name: str, repository: str = REPOSITORY):
    """The notebook with the top it should have; its own text and outputs are kept.

    Cell 0 is its own introduction (badge and note are put around it), 1 and 2 are written.
    """
    opening, set_up, device = notebook.cells[:3]
    own = re.sub(r"\A\[!\[Open in Colab\].*\n\n", "", opening.source)
    own = own.partition("<details><summary>On Colab</summary>")[0].rstrip()
    address = "" if repository else ", with the repository's address filled in"
    first = f"{badge(name, repository)}\n\n" if repository else ""
    real = name == "09_real_llm.ipynb"  # the one that wants a GPU
    note = (GPU_NOTE if real else NOTE).format(address=address)
    opening.source = f"{first}{own}\n\n{note}"
    url = f"https://github.com/{repository}" if repository else ""
    set_up.source, device.source = SET_UP.format(url=url), REAL if real else DEVICE
    device.metadata["tags"] = ["nbval-ignore-output"]
    return notebook


def readme_with_badges(text: str, repository: str = REPOSITORY) -> str:
    """README.md's table of notebooks, with a Colab link after each name."""
    text = re.sub(r" \[!\[Open in Colab\][^|]*\)(?= \|)", "", text)
    if not repository:
        return text
    return re.sub(r"(?<=\| )(\[`[^`]*`\]\(notebooks/([^)]*)\))",
                  lambda m: f"{m[1]} {badge(m[2], repository)}", text)


def notebooks() -> list[Path]:
    return [p for p in sorted(NOTEBOOKS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


def place(path: Path) -> str:
    """A notebook's path below notebooks/, as it stands in links."""
    return path.relative_to(NOTEBOOKS).as_posix()


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from grpo_lib.checkpoint import write_atomically

    for path in notebooks():
        notebook = put_front(nbformat.read(path, as_version=4), place(path))
        write_atomically(path, (nbformat.writes(notebook) + "\n").encode())
    write_atomically(README, readme_with_badges(README.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main()
