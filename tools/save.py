"""Run notebooks from a fresh kernel and save them with their outputs.

    python tools/save.py            all of them
    python tools/save.py 00 07      those whose names start so

Nothing is saved of a notebook in which a cell fails. The answer to a **Predict** is hidden until
the reader runs the cell (JupyterLab) or opens it (the site). Each explorer's picture brings the
pictures of all its states, for pages without a kernel (grpo_lib's ``explorers/frames.py``).
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
FOLDED = "hide-output"  # the tag that the site folds by
sys.path.insert(0, str(ROOT))


def run(path: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs, and nothing in it that differs from run to run."""
    from grpo_lib.course.explorers import frames

    notebook = nbformat.read(path, as_version=4)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ[frames.WANTED] = "1"
    NotebookClient(notebook, timeout=600, store_widget_state=False, record_timing=False,
                   resources={"metadata": {"path": str(path.parent)}}).execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k != "execution"}
        if cell.cell_type == "code":
            cell.outputs = merge_streams(cell.outputs)
    asked = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            asked = "**Predict" in cell.source
        elif cell.outputs:
            # an explorer stays in view: what it shows at first is no answer
            if asked and not any("grpo_lib" in o.get("metadata", {}) for o in cell.outputs):
                fold(cell)
            asked = False
    return notebook


def fold(cell: nbformat.NotebookNode) -> None:
    """Hide a cell's output until the cell is run."""
    cell.metadata["collapsed"] = True  # for Colab and older notebooks; JupyterLab has its own
    cell.metadata["jupyter"] = {**cell.metadata.get("jupyter", {}), "outputs_hidden": True}
    tags = cell.metadata.get("tags", [])
    cell.metadata["tags"] = tags if FOLDED in tags else [*tags, FOLDED]


def merge_streams(outputs: list) -> list:
    """One output for what a cell prints, however many pieces it arrived in."""
    merged = []
    for output in outputs:
        if merged and output.output_type == "stream" == merged[-1].output_type and (
                output.name == merged[-1].name):
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def main(prefixes: list[str]) -> None:
    from grpo_lib.support.checkpoint import write_atomically

    paths = [p for p in sorted(NOTEBOOKS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts
             and (not prefixes or p.name.startswith(tuple(prefixes)))]
    if not paths:
        sys.exit(f"no notebook starts with {', '.join(prefixes)}")
    for path in paths:
        start = time.perf_counter()
        text = nbformat.writes(run(path)) + "\n"
        write_atomically(path, text.encode())
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {len(text) / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
