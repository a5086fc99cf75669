// Plays the tables that explorers saved (grpo_lib/course/explorers/frames.py): every state of the
// controls has its picture there, so nothing is computed or drawn here.
(() => {
  "use strict";
  const narrow = window.matchMedia("(max-width: 640px)");
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return JSON.parse(await new Response(stream).text());
  }

  function rowsOf(table) { // each row is the one before with some of its pieces exchanged
    let row = [];
    return table.rows.map((changes) => {
      row = row.slice();
      for (const [start, stop, pieces] of changes.slice().reverse()) {
        row.splice(start, stop - start, ...pieces);
      }
      return row;
    });
  }

  // A figure of several panels is too wide for a phone: there each panel stands below the last.
  function cut(svg, cuts) {
    const [, left, top, width, height] = svg.match(/viewBox="(\S+) (\S+) (\S+) (\S+)"/);
    const edges = [0, ...cuts, 1];
    return cuts.concat(1).map((end, i) => svg
      .replace(/ width="\S+" height="\S+"/, "")
      .replace(/viewBox="[^"]*"/, `viewBox="${+left + edges[i] * width} ${top} `
        + `${(end - edges[i]) * width} ${height}"`)).join("");
  }

  async function start(box) {
    const table = await unpack(box.querySelector("script.grpo-table").textContent);
    const own = (piece) => piece.replace(/(id="|href="#|url\(#)F(?=\d)/g, `$1${box.id}-`);
    const pieces = table.pieces.map(own), rows = rowsOf(table);
    const controls = [...box.querySelectorAll("input, select, button:not(.grpo-play)")];
    const view = box.querySelector(".grpo-view"), caption = box.querySelector("figcaption");
    const place = (control) => control.type === "checkbox" ? +control.checked
      : +(control.value ?? control.selectedIndex);
    let waiting = false;

    function show() {
      waiting = false;
      let number = 0;
      controls.forEach((control, i) => {
        const {names} = table.controls[i];
        number = number * names.length + place(control);
        if (control.type === "range") {
          control.setAttribute("aria-valuetext", names[place(control)]);
          control.nextElementSibling.textContent = names[place(control)];
        }
      });
      const [said, ...picture] = rows[number].map((piece) => pieces[piece]);
      const whole = picture.join("");
      view.innerHTML = narrow.matches && table.cuts.length && whole.startsWith("<svg") ? cut(whole, table.cuts) : whole;
      for (const svg of view.querySelectorAll(":scope > svg")) svg.setAttribute("aria-label", said);
      caption.textContent = said;
      box.dataset.state = number;
    }

    function follow() { // of many moves within a frame only the newest is drawn
      if (!waiting) requestAnimationFrame(show);
      waiting = true;
    }

    controls.forEach((control, i) => {
      control.addEventListener("click", () => {
        if (control.type !== "button") return;
        control.value = (+control.value + 1) % table.controls[i].names.length;
        follow();
      });
      control.addEventListener("input", follow);
      control.addEventListener("keydown", (event) => event.stopPropagation()); // slides turn by keys
    });
    for (const play of box.querySelectorAll(".grpo-play")) {
      const slider = play.parentElement.querySelector("input");
      let clock = null;
      const stop = () => { clearInterval(clock); clock = null; play.textContent = "▶"; };
      const step = () => {
        if (+slider.value >= +slider.max) return stop();
        slider.value = +slider.value + 1;
        follow();
      };
      play.addEventListener("click", () => {
        if (clock !== null) return stop();
        if (+slider.value >= +slider.max) slider.value = slider.min;
        follow();
        play.textContent = "❚❚";
        clock = setInterval(step, 350);
      });
      slider.addEventListener("input", stop);
    }
    narrow.addEventListener("change", follow);
    box.querySelector("fieldset").disabled = false;
    if (box.classList.contains("grpo-autoplay") && !still.matches) {
      box.querySelector(".grpo-play").click();
    }
    if (narrow.matches) show();
    box.classList.add("grpo-ready");
  }

  function wake() {
    if (!window.DecompressionStream) return; // the first picture stays
    const near = new IntersectionObserver((seen) => {
      for (const {isIntersecting, target} of seen) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        start(target).catch((error) => console.error(target.id, error));
      }
    }, {rootMargin: "800px"});
    for (const box of document.querySelectorAll(".grpo-alive")) near.observe(box);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", wake);
  else wake();
})();
