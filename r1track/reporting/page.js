// Sorting, filtering, reading values off plots, stepping through frames. The page can be read without this script, which
// therefore makes all controls itself.
"use strict";
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// Tables: a button in every header sorts downwards first, then upwards; rows without a value stay last.
function sortable(table) {
  const heads = all("thead th", table), body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column], text = cell.dataset.value ?? cell.textContent.trim();
    return text === "–" || text === "" ? null : isNaN(text) ? text : Number(text);
  };
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.ariaSort === "descending" ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = up > 0 ? "ascending" : "descending";
      const order = (a, b) => {
        const [left, right] = [value(a, column), value(b, column)];
        if (left === null || right === null) return (left === null) - (right === null);
        return up * (isNaN(left - right) ? String(left).localeCompare(right, "en", { numeric: true }) : left - right);
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}

// A search box: it hides the rows of the table below that do not contain all its words.
function filter(place) {
  const rows = all("tbody tr", place.parentElement);
  const input = make("input", { type: "search" }), count = make("output", {});
  const apply = () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  place.append(make("label", {}, "Filter ", input), " ", count);
  input.addEventListener("input", apply);
  apply();
}

// A plot: its values at one position on the x axis, chosen by the pointer or by the slider below it.
function readable(figure) {
  const { x, box, limits, lines } = JSON.parse(figure.querySelector("script").textContent);
  const places = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const svg = figure.querySelector("svg"), { width, height } = svg.viewBox.baseVal;
  const put = (element, attributes) => {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const draw = (tag, attributes) => svg.appendChild(put(document.createElementNS(svg.namespaceURI, tag), attributes));
  const rule = draw("line", { class: "rule", y1: height * box[2], y2: height * box[3] });
  const dots = lines.map((line) => draw("circle", { r: 3, fill: line.colour }));
  const slider = make("input", { type: "range", min: 0, max: places.length - 1 });
  const values = make("p", { className: "values" });
  slider.ariaLabel = `${x} in the plot: ${svg.getAttribute("aria-label").split(".")[0]}`;
  slider.style.marginLeft = `calc(${100 * box[0]}% - 0.5rem)`;
  slider.style.width = `calc(${100 * (box[1] - box[0])}% + 1rem)`;
  const show = () => {
    const at = places[slider.value];
    const left = width * (box[0] + ((box[1] - box[0]) * (at - limits[0])) / (limits[1] - limits[0]));
    put(rule, { x1: left, x2: left });
    const keys = lines.map((line, k) => {
      const index = line.x.indexOf(at), key = make("span", {}, `${line.name} ${line.y[index] ?? "–"}`);
      put(dots[k], { cx: left, cy: height * (line.at[index] ?? 0), visibility: index < 0 ? "hidden" : "visible" });
      key.style.borderColor = line.colour;
      return key;
    });
    slider.ariaValueText = `${at}: ${keys.map((key) => key.textContent).join(", ")}`;
    values.replaceChildren(`${x} ${at}`, ...keys);
  };
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect(), share = (event.clientX - frame.left) / frame.width;
    const at = limits[0] + ((share - box[0]) / (box[1] - box[0])) * (limits[1] - limits[0]);
    slider.value = places.reduce((best, place, k) => (Math.abs(place - at) < Math.abs(places[best] - at) ? k : best), 0);
    show();
  });
  slider.addEventListener("input", show);
  svg.after(slider, values);
  slider.value = limits[1] === 1 ? places.length >> 1 : places.length - 1;
  show();
}

// A film strip: one frame at a time, by buttons, slider or arrow keys.
function film(strip) {
  const frames = all("figure", strip);
  const slider = make("input", { type: "range", min: 0, max: frames.length - 1 });
  slider.ariaLabel = `Frame of ${strip.dataset.name}`;
  let timer = null;
  const show = (k) => {
    slider.value = k; // the browser keeps it within the slider's ends
    frames.forEach((frame, number) => (frame.hidden = number !== Number(slider.value)));
    slider.ariaValueText = frames[slider.value].querySelector("figcaption").textContent.trim();
  };
  const step = (by) => show(Number(slider.value) + by);
  const button = (text, label, act) => {
    const element = make("button", { type: "button", onclick: act }, text);
    element.ariaLabel = `${label}, ${strip.dataset.name}`;
    return element;
  };
  const play = button("Play", "Play or pause", () => {
    clearInterval(timer);
    timer = timer ? null : setInterval(() => show((Number(slider.value) + 1) % frames.length), 350);
    play.textContent = timer ? "Pause" : "Play";
  });
  const controls = make("div", { className: "controls" },
    button("◀", "Previous frame", () => step(-1)), slider, button("▶", "Next frame", () => step(1)), play);
  slider.addEventListener("input", () => show(Number(slider.value)));
  strip.addEventListener("keydown", ({ key, target }) => {
    if (target !== slider) step({ ArrowLeft: -1, ArrowRight: 1 }[key] ?? 0); // the slider knows these keys itself
  });
  strip.classList.add("film");
  strip.append(controls);
  show(strip.dataset.first);
}

all(".sortable table").forEach(sortable);
all(".filter").forEach(filter);
all(".plot").forEach(readable);
all(".strip").forEach(film);
