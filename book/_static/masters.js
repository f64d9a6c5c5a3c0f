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

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("[data-filters]").forEach(filters);
});
