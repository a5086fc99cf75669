"""The explorers of the built site in Chromium, opened from a file with no network: every state by
the page's own controls is, element by element, what ``draw`` gave when the notebook was saved."""

import nbformat
import pytest
from test_site import ROOT, maker, pytestmark

from benchmarks.browser import browser, why_not
from grpo_lib.course.explorers import frames

pytestmark = [*pytestmark, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
MOVED = """async ([ident, expected, numbers]) => {
  const box = document.getElementById(ident), view = box.querySelector(".grpo-view");
  const frame = () => new Promise(resolve => requestAnimationFrame(() => resolve()));
  box.scrollIntoView();
  while (!box.classList.contains("grpo-ready")) await frame();
  const controls = [...box.querySelectorAll("input, select, button:not(.grpo-play)")];
  const wrong = [];
  for (const [state, [said, ...pieces]] of expected.entries()) {
    let rest = state;
    numbers.map((n, i) => [n, i]).reverse().forEach(([n, i]) => {
      const control = controls[i], place = rest % n;
      rest = Math.floor(rest / n);
      if (control.type === "checkbox") control.checked = !!place; else control.value = place;
      if (control.type !== "button") control.dispatchEvent(new Event("input", {bubbles: true}));
    });
    if (controls.every(c => c.type === "button")) controls[0].dispatchEvent(new Event("input"));
    while (box.dataset.state !== String(state)) await frame();
    const wanted = document.createElement("div");
    wanted.innerHTML = pieces.join("")
      .replace(/(id="|href="#|url\\(#)F(?=\\d)/g, `$1${ident}-`);
    for (const svg of view.querySelectorAll(":scope > svg")) svg.removeAttribute("aria-label");
    if (wanted.innerHTML !== view.innerHTML
        || box.querySelector("figcaption").textContent !== said) wrong.push(state);
  }
  return wrong;
}"""


@pytest.fixture(scope="module")
def chromium():
    with browser() as chromium:
        yield chromium


def opened(chromium, path, **options):
    """A page from a file, with no network; its errors are kept."""
    page = chromium.new_context(offline=True, **options).new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda said: said.type == "error" and page.errors.append(said.text))
    page.goto(path.as_uri())
    return page


def tables(path):
    """The tables of a notebook, in order."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        found += [frames.unpacked(packed) for output in cell.get("outputs", [])
                  if (packed := maker.alive.table_of(output))]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_state_is_what_was_drawn(site, chromium, path):
    page = opened(chromium, site / "notebooks" / f"{path.stem}.html")
    there = tables(path)
    assert page.locator(".grpo-alive").count() == len(there) > 0
    for number, table in enumerate(there, 1):
        expected = list(frames.rows_of(table))
        sizes = [len(control["names"]) for control in table["controls"]]
        ident = f"explorer-{path.stem[:2]}-{number}"
        assert page.evaluate(MOVED, [ident, expected, sizes]) == [], ident
    assert page.errors == []
    page.context.close()


def test_by_keys_by_touch_and_by_the_buttons(site, chromium):
    page = opened(chromium, site / "notebooks" / "00_start_here.html", **PHONE)
    run, group, epsilon = (page.locator(".grpo-alive").nth(i) for i in (0, 1, 2))
    for box in (run, group, epsilon):
        box.scroll_into_view_if_needed()
        box.locator("fieldset:not([disabled])").wait_for()
    slider = epsilon.locator("input")
    slider.focus()
    page.keyboard.press("End")
    page.wait_for_function("box => box.innerText.includes('epsilon = 0.90 blocks')",
                           arg=epsilon.element_handle())
    assert slider.get_attribute("aria-valuetext") == "0.90"
    area = slider.bounding_box()
    assert area["height"] >= 44
    page.touchscreen.tap(area["x"] + 2, area["y"] + area["height"] / 2)
    page.wait_for_function("box => box.innerText.includes('epsilon = 0.00 blocks')",
                           arg=epsilon.element_handle())
    before = group.locator("figcaption").inner_text()
    group.get_by_role("button", name="Draw another group").click()
    page.wait_for_function("([box, before]) => box.querySelector('figcaption').innerText != before",
                           arg=[group.element_handle(), before])
    run.get_by_role("button", name="Play").click()
    page.wait_for_function("box => box.innerText.includes('step 3 of 40')",
                           arg=run.element_handle())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.errors == []
    page.context.close()


@pytest.mark.parametrize("name", ["index", *(f"notebooks/{p.stem}" for p in NOTEBOOKS)])
def test_a_page_is_light_and_as_wide_as_a_phone(site, chromium, name):
    """Less than 500 kB of HTML, no sideways scroll at 390 px, and with JavaScript off a picture at
    every place."""
    path = site / f"{name}.html"
    assert path.stat().st_size < 500_000
    page = opened(chromium, path, java_script_enabled=False, **PHONE)
    boxes = page.locator(".grpo-alive")
    assert boxes.count() > 0
    for i in range(boxes.count()):
        assert boxes.nth(i).locator(".grpo-view svg, .grpo-view .grpo-tokens").count() > 0
        assert boxes.nth(i).locator("figcaption").inner_text()
    page.context.close()
    page = opened(chromium, path, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.context.close()


def test_the_home_page_leads_to_every_lesson(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    assert all(f'href="notebooks/{path.stem}.html"' in text for path in NOTEBOOKS)
    assert 'id="explorer-home"' in text and "og:image" in text
