// Small helpers to build elements. Text is always set as text, never as markup.

export const $ = (id) => document.getElementById(id);

/** Make an element: make("p", { class: "soft", "aria-label": "…" }, "text", child, …). */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

/** Bars of values, the last ones that fit; those above `high` are marked. */
export function sparkBars(values, { width = 160, height = 22, high = Infinity, label }) {
  const shown = values.slice(-width / 2);
  const top = Math.max(...shown, 1e-9);
  const step = Math.max(2, Math.min(6, Math.floor(width / shown.length)));
  const bars = shown.map((value, i) => {
    const tall = Math.max(1, (value / top) * height);
    return draw("rect", {
      x: i * step, y: height - tall, width: step - 1, height: tall, class: value > high ? "high" : false,
    });
  });
  return draw("svg", { class: "spark", width: shown.length * step, height, role: "img", "aria-label": label }, ...bars);
}

/** A line with the area under it. */
export function sparkLine(values, { width = 270, height = 34, label }) {
  const top = Math.max(...values, 1e-9);
  const at = (i) => (values.length < 2 ? 0 : (i / (values.length - 1)) * width);
  const points = values.map((value, i) => `${at(i).toFixed(1)},${(height - 1 - (value / top) * (height - 4)).toFixed(1)}`);
  const line = `M${points.join("L")}`;
  return draw(
    "svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, width: "100%", height, role: "img", "aria-label": label, preserveAspectRatio: "none" },
    draw("path", { class: "area", d: `${line}L${width},${height}L0,${height}Z` }),
    draw("path", { d: line }),
  );
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.01) return `${(value * 1000).toFixed(2)} ms`;
  return value < 1 ? `${(value * 1000).toFixed(0)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${value.toFixed(unit && value < 100 ? 1 : 0)} ${units[unit]}`;
}

export function count(value) {
  return value >= 1e6 ? `${(value / 1e6).toFixed(1)} M` : value >= 1e4 ? `${(value / 1e3).toFixed(1)} k` : `${Math.round(value)}`;
}

/** Nearest-rank percentile. */
export function percentile(values, share) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)];
}
