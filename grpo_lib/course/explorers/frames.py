"""Every state of an explorer in one small table, which a page without a kernel plays.

The pictures are those that ``draw`` makes, so nothing is computed or drawn a second way. They are
slimmed, cut into elements, and each distinct element is kept once; of each state only its
difference from the one before is kept. ``tools/alive`` makes controls and a player of the table.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import ipywidgets
from matplotlib.figure import Figure

from grpo_lib.course.explorers.controls import PLAYED, Again
from grpo_lib.course.picture import keep_layout, to_svg

if TYPE_CHECKING:
    from grpo_lib.course.explorers.base import Explorer

WANTED = "GRPO_LIB_FRAMES"  # set while notebooks are saved, so that their pictures bring the table
MOST = 1300  # states of one explorer: a page stays small, and saving it stays bearable
GEOMETRY = ("d", "x", "y", "points", "width", "height", "viewBox")  # rounded to a tenth of a point
FONTS = re.compile(r" '[^;]*sans-serif")
HREF = "{http://www.w3.org/1999/xlink}href"


def wanted() -> bool:
    return bool(os.environ.get(WANTED))


def metadata_of(explorer: Explorer) -> dict:
    """What an explorer's saved picture carries beside it: the table, where it is wanted."""
    return {"grpo_lib": {"frames": packed(table_of(explorer))}} if wanted() else {}


def stops_of(control: ipywidgets.Widget) -> list[tuple[str, object]]:
    """(what stands beside it, value) for each place of a control; of a line of text only what it
    holds now."""
    if isinstance(control, ipywidgets.IntSlider):
        return [(str(v), v) for v in range(control.min, control.max + 1, control.step)]
    if isinstance(control, ipywidgets.FloatSlider):
        count = round((control.max - control.min) / control.step)
        values = (round(control.min + i * control.step, 10) for i in range(count + 1))
        return [(format(v, control.readout_format), v) for v in values]
    if hasattr(control, "options"):
        return [o if isinstance(o, tuple) else (str(o), o) for o in control.options]
    if isinstance(control, ipywidgets.Checkbox):
        return [("off", False), ("on", True)]
    if isinstance(control, Again):
        return [(str(i + 1), i) for i in range(control.count)]
    return [(control.value, control.value)]


def kind_of(control: ipywidgets.Widget) -> str:
    """How a page offers a control: as a "range" with an order, one to "play", a "choice", a
    "switch", or a button for the next ("again")."""
    if isinstance(control, Again):
        return "again"
    if isinstance(control, ipywidgets.Checkbox):
        return "switch"
    if PLAYED in control._dom_classes:
        return "play"
    ordered = (ipywidgets.IntSlider, ipywidgets.FloatSlider, ipywidgets.SelectionSlider)
    return "range" if isinstance(control, ordered) else "choice"


def stops_shown(explorer: Explorer) -> dict[str, list[tuple[str, object]]]:
    """The places of every control of which a page has the pictures. ValueError: too many states,
    or a place that the control does not have."""
    shown = {}
    for name, control in explorer.controls.items():
        stops = stops_of(control)
        wanted = explorer.page.get(name, stops)
        if wanted is None:
            wanted = [s for s in stops if s[1] == control.value]
        named = {value: (text, value) for text, value in stops}
        shown[name] = [w if isinstance(w, tuple) else named.get(w) for w in wanted]
        if None in shown[name]:
            raise ValueError(f"page: got {list(wanted)} for {name}, allowed are "
                             f"{', '.join(text for text, _ in stops)}")
    count = math.prod(map(len, shown.values()))
    if count > MOST:
        raise ValueError(f"page: leaves {count} states, allowed are {MOST}; name fewer stops")
    return shown


def table_of(explorer: Explorer) -> dict:
    """The table: ``controls``, the labels of those that have ``more`` places, the ``cuts`` between
    the panels of a figure, and ``pieces`` (texts). For each state of the controls, the last of
    them changing first, ``rows`` says how its row of pieces differs from the row before: [from, to,
    numbers of the pieces there instead]. The first piece of a row is the caption.
    """
    shown = stops_shown(explorer)
    rows = [(text, *pieces_of(view)) for view, text in drawn(explorer, shown)]
    first_place: dict[str, int] = {}
    for row in rows:
        for place, piece in enumerate(row):
            first_place.setdefault(piece, place)
    pieces = sorted(first_place, key=first_place.__getitem__)  # like beside like packs best
    number = {piece: i for i, piece in enumerate(pieces)}
    coded = [[number[piece] for piece in row] for row in rows]
    controls = []
    for name, stops in shown.items():
        values, control = [value for _, value in stops], explorer.controls[name]
        start = values.index(control.value) if control.value in values else 0
        if len(values) > 1:
            controls.append({"label": control.description, "kind": kind_of(control),
                             "names": [text for text, _ in stops], "start": start})
    more = [control.description for name, control in explorer.controls.items()
            if explorer.page.get(name, stops_of(control)) is not None
            and (len(shown[name]) < len(stops_of(control)) or isinstance(control, ipywidgets.Text))]
    return {"controls": controls, "more": more, "cuts": cuts_of(explorer.figure), "pieces": pieces,
            "rows": [difference(*pair) for pair in itertools.pairwise([[], *coded])]}


def cuts_of(figure: Figure) -> list[float]:
    """Where a figure's panels, one beside the other, can be cut apart, as shares of its width: a
    little to the right of each, since the space between is for the labels of the next."""
    cuts, end = [], None
    for box in sorted((axis.get_position() for axis in figure.axes), key=lambda box: box.x0):
        if end is not None and box.x0 > end:
            cuts.append(round(end + 0.1 * (box.x0 - end), 4))
        end = max(end or 0.0, box.x1)
    return [] if figure.get_suptitle() else cuts


def drawn(explorer: Explorer, shown: Mapping[str, Sequence[tuple[str, object]]],
          ) -> Iterator[tuple[str, str]]:
    """(what is seen, the line of text) in every state, as the live explorer has it."""
    for values in itertools.product(*([value for _, value in stops] for stops in shown.values())):
        figure, text, *view = explorer.draw(**dict(zip(shown, values)))
        if not view:
            keep_layout(explorer.figure, figure)
        yield (view[0] if view else to_svg(figure, "")), text


def difference(old: list[int], new: list[int]) -> list[list]:
    """[[from, to, what stands there instead], ...], to be applied from the last to the first."""
    changes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [[a, b, new[c:d]] for what, a, b, c, d in changes if what != "equal"]


def rows_of(table: dict) -> Iterator[list[str]]:
    """The pieces of every state of a table, the caption first: what the player shows."""
    row: list[int] = []
    for changes in table["rows"]:
        for start, stop, numbers in reversed(changes):
            row[start:stop] = numbers
        yield [table["pieces"][number] for number in row]


def packed(table: dict) -> str:
    """A table as base64 of raw deflate, which browsers unpack by themselves."""
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    press = zlib.compressobj(9, wbits=-15)
    return base64.b64encode(press.compress(text) + press.flush()).decode()


def unpacked(text: str) -> dict:
    return json.loads(zlib.decompress(base64.b64decode(text), wbits=-15))


def pieces_of(view: str) -> list[str]:
    """A picture cut before each tag: SVGs in it slimmed first, other HTML as it is."""
    pieces: list[str] = []
    for number, part in enumerate(re.split(r"(<svg.*?</svg>)", view, flags=re.DOTALL)):
        pieces += slim(part, 100 * number) if part.startswith("<svg") else re.findall(
            r"<[^>]*>[^<]*", part)
    return pieces


def slim(svg: str, first_id: int = 0) -> Iterator[str]:
    """The tags of matplotlib's SVG that are seen, each with the text after it: a third of the
    bytes. Left out: the white paper, groups and ids that nothing refers to, six decimals, fonts.
    Ids are F and a number from ``first_id`` on, so that two pictures of one view have their own.
    """
    root = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/'
                                              'xlink" ', 1) if "xmlns:xlink" not in svg else svg)
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    short: dict[str, str] = {}

    def name_of(ident: str) -> str:
        return short.setdefault(ident, f"F{first_id + len(short)}")

    def tags(element: ElementTree.Element) -> Iterator[str]:
        kind = element.tag.partition("}")[2]
        if kind in ("metadata", "style"):
            return
        attributes = []
        for key, value in element.attrib.items():
            if key == "id":
                if value not in referred:
                    continue
                value = name_of(value)
            elif key == HREF:
                key, value = "href", "#" + name_of(value[1:])
            elif key in ("aria-label", "version"):
                continue
            elif key in GEOMETRY:
                value = shorter(value)
            elif key == "clip-path":
                value = f"url(#{name_of(value[5:-1])})"
            elif key == "transform" and value.startswith("rotate(0 "):
                continue
            elif key == "transform" and "scale" not in value:
                value = shorter(value)
            elif key == "style":
                value = re.sub(r"([:;,]) +", r"\1", FONTS.sub(" sans-serif", value))
            attributes.append(f' {key}="{escaped(value)}"')
        children = list(element)[is_on_paper(element):]
        inside = [tag for child in children for tag in tags(child)]
        if kind in ("g", "defs") and not (inside and (attributes or kind == "defs")):
            yield from inside
            return
        text = escaped(element.text.strip()) if element.text else ""
        start = f'<{kind}{"".join(attributes)}'
        if kind == "svg":
            start += ' xmlns="http://www.w3.org/2000/svg"'
        if not inside:
            yield f"{start}>{text}</{kind}>" if text else f"{start}/>"
            return
        yield f"{start}>{text}"
        yield from inside
        yield f"</{kind}>"

    yield from tags(root)


def is_on_paper(group: ElementTree.Element) -> bool:
    """Whether the first child of a figure or an axis is its white ground."""
    if not group.get("id", "").startswith(("figure_", "axes_")) or not len(group):
        return False
    ground = group[0]
    return (ground.get("id", "").startswith("patch_") and len(ground) == 1
            and "fill: #ffffff" in ground[0].get("style", ""))


def shorter(numbers: str) -> str:
    """Numbers rounded to a tenth, and no blanks that nobody needs."""
    rounded = re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda m: f"{float(m[0]):.1f}".removesuffix(".0"),
                     " ".join(numbers.split()))
    return re.sub(r"(?<![\d.])-0(?![\d.])", "0", re.sub(r" ?([MLQCz]) ?", r"\1", rounded))


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
