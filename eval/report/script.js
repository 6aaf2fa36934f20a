"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Colours: what the system says, or what was chosen last
const theme = document.getElementById("theme");
const paint = () => { document.documentElement.style.colorScheme = theme.value; };
try { theme.value = localStorage.getItem("synth-theme") || theme.value; } catch { /* not allowed */ }
theme.addEventListener("change", () => {
  paint();
  try { localStorage.setItem("synth-theme", theme.value); } catch { /* not allowed */ }
});
paint();

// Sorting: numbers first from high to low, texts from a to z; absent values ("–") stay last
function sort(button) {
  const head = button.closest("th"), body = head.closest("table").tBodies[0];
  const column = head.cellIndex, rows = [...body.rows];
  const value = (row) => {
    const cell = row.cells[column], text = cell.textContent.trim();
    return cell.dataset.value ?? (text === "–" ? "" : text);
  };
  const numeric = rows.every((row) => value(row) === "" || !isNaN(value(row)));
  const order = head.getAttribute("aria-sort");
  const up = order === "none" ? !numeric : order === "descending";
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (!x || !y) return !x - !y;
    const before = numeric ? x - y : x.localeCompare(y, "en", { numeric: true });
    return up ? before : -before;
  });
  body.append(...rows);
  for (const other of all("th[aria-sort]", head.parentNode)) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
}

// Filtering: everything in a section that belongs to an entry
function filter(section) {
  const text = section.querySelector(".filter input").value.trim().toLowerCase();
  const kind = section.querySelector(".filter select").value;
  const shown = new Set();
  for (const item of all("[data-entry]", section)) {
    const out = !item.dataset.name.includes(text) || !(item.dataset.kind.includes(kind));
    item.classList.toggle("out", out);
    if (!out) shown.add(item.dataset.entry);
  }
  const total = all("dialog", section).length;
  section.querySelector(".filter output").value = `${shown.size} of ${total} entries`;
}

// Dialogs: the large pictures are put in when they are first seen
let pictures;
function open(dialog) {
  pictures ??= JSON.parse(document.getElementById("pictures").textContent);
  for (const image of all("img[data-picture]", dialog)) image.src = pictures[image.dataset.picture];
  dialog.showModal();
  dialog.scrollTop = 0;
}
function step(dialog, by) {
  const shown = all("dialog:not(.out)", dialog.parentNode);
  dialog.close();
  open(shown.at((shown.indexOf(dialog) + by) % shown.length));
}

document.addEventListener("click", (event) => {
  const found = (selector) => event.target.closest(selector);
  if (found("button.sort")) sort(found("button.sort"));
  else if (found("[data-open]")) open(document.getElementById(found("[data-open]").dataset.open));
  else if (found("[data-step]")) step(found("dialog"), Number(found("[data-step]").dataset.step));
  else if (event.target.matches("dialog")) event.target.close(); // beside its content
});

// The same entry in all charts
function light(event) {
  const item = event.target.closest("[data-entry]");
  for (const other of all(".lit")) other.classList.remove("lit");
  for (const same of item ? all(`[data-entry="${item.dataset.entry}"]`) : []) same.classList.add("lit");
}
document.addEventListener("pointerover", light);
document.addEventListener("focusin", light);

for (const section of all("section.table:has(.filter)")) {
  section.querySelector(".filter").addEventListener("input", () => filter(section));
  filter(section);
}
