/* Plain JavaScript of the book: the filters of the responses, sortable tables, folds that open for printing.
   Every page is complete without it. */
"use strict";

function filters(form) {
  const count = document.querySelector("[data-count]");
  const groups = [...document.querySelectorAll(".answered")];
  const columns = { source: 0, register: 2, verdict: 3 };

  function show() {
    const wanted = Object.fromEntries(new FormData(form));
    let questions = 0, responses = 0, all = 0;
    for (const group of groups) {
      const asked = ["task", "spread"].every((name) => !wanted[name] || group.dataset[name] === wanted[name]);
      let here = 0;
      for (const row of group.querySelectorAll("tbody tr")) {
        const fits = asked && Object.entries(columns).every(
          ([name, column]) => !wanted[name] || row.cells[column].textContent === wanted[name]);
        row.hidden = !fits;
        here += fits;
        all += 1;
      }
      group.hidden = here === 0;
      questions += here > 0;
      responses += here;
    }
    count.textContent = `${responses} of ${all} responses to ${questions} of ${groups.length} questions shown.`;
  }

  form.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(show));
  form.hidden = false;
  show();
}

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const word = (row, column) => row.cells[column].innerText.trim();
  const number = (text) => (/^[C+\-\u2212]?\d/.test(text) ? parseFloat(text.replace(/^C/, "").replace("\u2212", "-")) : NaN);

  function sort(column) {
    const falls = heads[column].getAttribute("aria-sort") === "ascending";
    const rows = [...body.rows];
    const words = rows.map((row) => word(row, column)).filter(Boolean);
    const numbers = words.every((text) => !Number.isNaN(number(text)));
    const order = (a, b) => {
      const [first, second] = [word(a, column), word(b, column)];
      if (!first || !second) return !first - !second; // empty cells stay last
      const sign = numbers ? number(first) - number(second) : first.localeCompare(second, "en", { numeric: true });
      return falls ? -sign : sign;
    };
    body.append(...rows.sort(order));
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", falls ? "descending" : "ascending");
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(column));
    head.append(button);
  });
}

// A box that scrolls can be reached by keyboard and has a name; one that does not scroll is no stop.
const BOXES = ".wide, .cell_output .output.text_html, .pst-scrollable-table-container, figure.fixed, .cell_output, mjx-container[display=true]";

function scrolling() {
  for (const box of document.querySelectorAll(BOXES)) {
    const scrolls = box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX !== "visible";
    box.classList.toggle("scrolls", scrolls);
    if (!scrolls) {
      for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
      continue;
    }
    const about = box.querySelector("caption, figcaption");
    const table = box.querySelector("table");
    const kind = box.closest(".math") ? "Formula" : "Figure";
    const words = about?.innerText || table?.getAttribute("aria-label") || kind;
    box.setAttribute("tabindex", "0");
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", `${words} (scrolls sideways)`);
  }
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("[data-filters]").forEach(filters);
  document.querySelectorAll("table.sortable").forEach(sortable);
  scrolling();
  addEventListener("resize", scrolling);
  addEventListener("load", () => {
    scrolling();
    window.MathJax?.startup?.promise?.then(scrolling);
  });
  for (const event of ["toggle", "load"]) document.addEventListener(event, scrolling, true); // folds, figures
  // Printing opens the folds and uses the light scheme; afterwards all is as before.
  const root = document.documentElement;
  let closed = [], theme;
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("article details:not([open]):not(.keys)")];
    closed.forEach((fold) => { fold.open = true; });
    theme = root.dataset.theme;
    root.dataset.theme = "light";
  });
  addEventListener("afterprint", () => {
    closed.forEach((fold) => { fold.open = false; });
    root.dataset.theme = theme;
  });
});
