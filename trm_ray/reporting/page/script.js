"use strict";

// ---- tables: a click on a heading sorts by its column, another one the other way round

const number = (text) => {
  const found = text.replaceAll(",", "").replaceAll("−", "-").match(/[-+]?\d+(\.\d+)?/);
  return found ? Number(found[0]) : NaN;
};

const byText = new Intl.Collator(undefined, { numeric: true }).compare;

function compare(one, other, isNumber, sign) {
  if (!isNumber) return sign * byText(one, other);
  const [a, b] = [number(one), number(other)];
  if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b); // what is unknown comes last, either way
  return sign * (a - b);
}

function sort(heading) {
  const table = heading.closest("table");
  const ascending = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const cell = (row) => row.cells[heading.cellIndex].textContent.trim();
  const isNumber = heading.classList.contains("number");
  const rows = [...table.tBodies[0].rows];
  rows.sort((one, other) => compare(cell(one), cell(other), isNumber, ascending ? 1 : -1));
  table.tBodies[0].append(...rows);
}

for (const heading of document.querySelectorAll("th[aria-sort]")) {
  heading.querySelector("button").addEventListener("click", () => sort(heading));
}

// ---- galleries: the slider chooses after how many H-cycles the answers are shown

function show(gallery, depth) {
  for (const stage of gallery.querySelectorAll(".stage")) {
    const { first, last } = stage.dataset;
    stage.classList.toggle("now", first <= depth && (depth <= last || stage.matches(":last-child")));
  }
  const cycles = Number(gallery.dataset.cycles);
  const segment = cycles ? `, segment ${Math.ceil(depth / cycles)}` : "";
  const text = `after ${depth} of ${gallery.dataset.depths} H-cycles${segment}`;
  gallery.querySelector("output").value = text;
  gallery.querySelector("input").setAttribute("aria-valuetext", text);
}

for (const gallery of document.querySelectorAll(".gallery[data-depths]")) {
  const [slider, play] = [gallery.querySelector("input"), gallery.querySelector(".play")];
  let timer = 0;
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  };
  const step = () => {
    slider.value = Number(slider.value) + 1;
    show(gallery, Number(slider.value));
    if (slider.value === slider.max) stop();
  };
  slider.addEventListener("input", () => {
    stop();
    show(gallery, Number(slider.value));
  });
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    play.textContent = "Stop";
    timer = setInterval(step, 500);
  });
  gallery.classList.add("live");
  show(gallery, Number(slider.value));
}
