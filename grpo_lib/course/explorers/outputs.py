"""How an explorer stands in a notebook: alive where a kernel runs, as a picture everywhere else.

A front end shows one kind of data of each output. In a file that it trusts, JupyterLab takes the
widget whether it lives or not, and says "Error displaying widget: model not found" in place of
the picture beside it. So an explorer is three outputs in a row: its picture, a ``MARK`` that is
not seen, and its live view. The mark's style hides the picture while the view lives, and the view
while it does not. Where no style counts (GitHub, a file that is not trusted) the view is dropped
anyway: the empty HTML in its place is what such a front end shows. Nothing needs a set-up or a
setting, and no widget's state is saved.
"""

from __future__ import annotations

import sys

VIEW = "application/vnd.jupyter.widget-view+json"
LIVE = "grpo-live"  # the class of the box of a live view

# JupyterLab, Notebook and Voilà; the classic notebook; and VS Code (which was not run). The script
# takes away what JupyterLab writes into a dead view, for browsers that do not know :has() either.
# All is the same each time, since saved HTML is compared.
MARK = """<style>
:is(.jp-OutputArea-child, .output_area):has(+ * > * > .grpo-mark):has(+ * + * > * > .grpo-live),
:is(.jp-OutputArea-child, .output_area):has(> * > .grpo-mark),
:is(.jp-OutputArea-child, .output_area):has(> * > .grpo-mark) + :not(:has(> * > .grpo-live)),
.output_container:has(+ * .grpo-mark):has(+ * + * .grpo-live),
.output_container:has(.grpo-mark) + :not(:has(.grpo-live)) { display: none; }
</style><span class="grpo-mark"></span><script>{
const mark = document.currentScript?.closest(".jp-OutputArea-child");
const clear = () => {
  const view = mark.nextElementSibling?.querySelector(":scope > .jp-OutputArea-output");
  if (view?.textContent && !view.children.length) view.textContent = "";
};
if (mark) {
  clear();
  new MutationObserver(clear).observe(mark.parentNode, {childList: true, subtree: true});
}
}</script>"""


def in_a_notebook() -> bool:
    """Whether what is displayed goes to a notebook's cell. Colab is left out: each output has a
    frame of its own there, and the state of widgets is saved."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel") and (
        "google.colab" not in sys.modules)


def display_outputs(data: dict, metadata: dict, display_id: str | None = None) -> None:
    """Display a bundle that has a live view as three outputs. The first has the ``metadata``, and
    the ``display_id`` by which ``update_picture`` finds it."""
    from IPython.display import display

    still = {kind: content for kind, content in data.items() if kind != VIEW}
    display(still, metadata=metadata, display_id=display_id, raw=True)
    display({"text/html": MARK}, raw=True)
    display({VIEW: data[VIEW], "text/html": ""}, raw=True)


def update_picture(data: dict, metadata: dict, display_id: str) -> None:
    """Put another picture in the place of one that was displayed."""
    from IPython.display import update_display

    update_display({kind: content for kind, content in data.items() if kind != VIEW},
                   metadata=metadata, display_id=display_id, raw=True)


def when_this_cell_ends(call) -> None:
    """Call this once at the end of the cell that is running, be it interrupted."""
    events = sys.modules["IPython"].get_ipython().events

    def ended():
        events.unregister("post_execute", ended)
        call()

    events.register("post_execute", ended)


def running_cell() -> tuple[str | None, str]:
    """The cell that is running (its code, where the front end gives no id) and this execution of
    it; (None, "") outside a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or not hasattr(shell, "get_parent"):
        return None, ""
    parent = shell.get_parent() or {}
    cell = parent.get("metadata", {}).get("cellId") or parent.get("content", {}).get("code")
    return cell, parent.get("header", {}).get("msg_id", "")


def what_waits() -> str:
    """Which widget events wait until the running cell has ended: all of them before ipykernel 7;
    since then those of buttons, and a slider's first move."""
    kernel = sys.modules.get("ipykernel")
    if kernel is None:
        return ""
    what = ("buttons and sliders wait" if kernel.version_info[0] < 7
            else "buttons, and a slider's first move, wait")
    return f"(While a cell is running, {what} for its end; the kernel's stop button does not.)"
