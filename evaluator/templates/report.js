"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#1f77b4", "#d95f02", "#2ca02c", "#c2448c", "#8c6bb1", "#8c564b", "#17a2b8", "#a6891d", "#6b7785", "#e0526a"];
// Shorter tables need no filter.
const FILTERED = 12;
const tip = document.getElementById("tip");
const byId = id => document.getElementById(id);
const shown = value => value === null || value === undefined ? "–" : String(value);
const known = values => values.filter(value => value !== null && value !== undefined);
const rowName = i => DATA.rows[i].filter(Boolean).join("/");

// ---- small builders ----
function html(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function svg(tag, attributes = {}, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
function select(id, label, options, chosen) {
  const box = html("select", {id});
  for (const [value, text] of options) box.append(html("option", {value}, text));
  if (chosen !== undefined && chosen !== null) box.value = chosen;
  return [html("label", {}, label + " ", box), box];
}

// ---- hover and focus values ----
function place(x, y) {
  tip.hidden = false;
  const width = tip.offsetWidth, height = tip.offsetHeight;
  tip.style.left = Math.max(4, Math.min(x + 12, innerWidth - width - 4)) + "px";
  tip.style.top = (y + 14 + height > innerHeight ? Math.max(4, y - height - 10) : y + 14) + "px";
}
function tell(event) {
  const node = event.target.closest && event.target.closest("[data-tip]");
  if (!node) {
    // Scrolling under a resting pointer must not hide what the keyboard shows.
    tip.hidden = !(document.activeElement && document.activeElement.hasAttribute("data-tip"));
    return;
  }
  tip.textContent = node.getAttribute("data-tip");
  const box = node.getBoundingClientRect();
  if (event.type === "focusin") place(box.left + box.width / 2, box.top + box.height / 2);
  else place(event.clientX, event.clientY);
}
for (const name of ["pointerover", "pointermove", "focusin"]) document.addEventListener(name, tell);
document.addEventListener("focusout", () => { tip.hidden = true; });
document.addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });

// ---- tables ----
function cellValue(row, column) {
  const cell = row.cells[column], given = cell.dataset.value;
  if (given !== undefined) return given === "" ? null : Number(given);
  const text = cell.textContent.trim();
  return text === "–" || text === "" ? null : text;
}
function sortTable(table, column, header) {
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row, at) => ({row, at, value: cellValue(row, column)}));
  rows.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.at - b.at;
    const order = typeof a.value === "number" && typeof b.value === "number"
      ? a.value - b.value : String(a.value).localeCompare(String(b.value), undefined, {numeric: true});
    return (ascending ? order : -order) || a.at - b.at;
  });
  table.tBodies[0].append(...rows.map(item => item.row));
}
function enhance(table) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = html("button", {type: "button"});
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sortTable(table, column, header));
  });
  if (table.tBodies[0].rows.length < FILTERED) return;
  const input = html("input", {type: "search", placeholder: "filter rows", "aria-label": "filter rows"});
  const count = html("small", {"aria-live": "polite"});
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
      left += !row.hidden;
    }
    count.textContent = words.length ? `${left} of ${table.tBodies[0].rows.length} rows` : "";
  });
  table.closest(".scroll").before(html("div", {class: "controls"}, input, count));
}
function tableOf(titles, rows) {
  const head = html("tr"), body = html("tbody");
  titles.forEach((title, i) => head.append(html("th", i ? {} : {class: "text"}, title)));
  for (const row of rows) {
    const line = html("tr");
    row.forEach((value, i) => line.append(html("td", i ? {"data-value": value === null ? "" : value} : {class: "text"}, shown(value))));
    body.append(line);
  }
  const table = html("table", {class: "data"}, html("thead", {}, head), body);
  return [html("div", {class: "scroll"}, table), table];
}

// ---- scales and axes ----
function ticks(low, high, n) {
  const span = high - low || Math.abs(high) || 1, raw = span / n, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(k => k * power).find(k => span / k <= n) || 10 * power;
  const out = [];
  for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++) out.push(Number((k * step).toPrecision(12)));
  return out;
}
function scale(values, from, to, pad = 0.05) {
  const found = known(values);
  let low = found.length ? Math.min(...found) : 0, high = found.length ? Math.max(...found) : 1;
  if (low === high) { const by = Math.abs(low) * 0.1 || 1; low -= by; high += by; }
  const room = (high - low) * pad;
  low -= room; high += room;
  const at = value => from + (value - low) / (high - low) * (to - from);
  return Object.assign(at, {low, high});
}
function frame(width, height, label) {
  return svg("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label});
}
function axes(picture, x, y, box, names) {
  const {left, right, top, bottom} = box;
  picture.append(svg("line", {class: "axis", x1: left, x2: right, y1: bottom, y2: bottom}));
  if (y) picture.append(svg("line", {class: "axis", x1: left, x2: left, y1: top, y2: bottom}));
  for (const value of ticks(x.low, x.high, Math.max(2, (right - left) / 90))) {
    picture.append(svg("line", {class: "axis", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 4}));
    picture.append(svg("text", {x: x(value), y: bottom + 17, "text-anchor": "middle"}, value));
  }
  for (const value of y ? ticks(y.low, y.high, Math.max(2, (bottom - top) / 50)) : []) {
    picture.append(svg("line", {class: "axis", x1: left - 4, x2: left, y1: y(value), y2: y(value)}));
    picture.append(svg("text", {x: left - 7, y: y(value) + 4, "text-anchor": "end"}, value));
  }
  picture.append(svg("text", {x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle"}, names[0]));
  if (names[1]) picture.append(svg("text", {x: 12, y: top - 8}, names[1]));
}
function short(text, n) { return text.length > n ? text.slice(0, n - 1) + "…" : text; }
const widthOf = holder => Math.max(280, Math.min(holder.clientWidth || 640, 960));

// ---- kinds of charts ----
function dots(holder, rows, name, perfect) {
  const width = widthOf(holder), left = Math.min(190, width * 0.36), letters = Math.floor(left / 7.6);
  const height = rows.length * 24 + 62, box = {left, right: width - 14, top: 8, bottom: height - 48};
  const values = rows.flatMap(row => [row.value, row.low, row.high]);
  const x = scale(values, box.left, box.right), picture = frame(width, height, `${name} of every entry`);
  axes(picture, x, null, box, [name, ""]);
  if (perfect !== null && perfect >= x.low && perfect <= x.high)
    picture.append(svg("line", {class: "guide", x1: x(perfect), x2: x(perfect), y1: box.top, y2: box.bottom}));
  rows.forEach((row, i) => {
    const y = box.top + 14 + i * 24;
    const partial = row.n < row.total, label = partial ? `${row.name} (${row.n}/${row.total})` : row.name;
    picture.append(svg("text", {x: left - 8, y: y + 4, "text-anchor": "end"}, short(label, letters)));
    if (row.low !== null && row.high !== null)
      picture.append(svg("line", {class: "bar", x1: x(row.low), x2: x(row.high), y1: y, y2: y}));
    if (row.value === null) return;
    const interval = row.low !== null && row.high !== null ? `\n95% interval ${row.low} to ${row.high}` : "";
    const text = `${row.name}\n${name} ${row.value}${interval}\n${row.n} of ${row.total} perturbations`;
    picture.append(svg("circle", {class: partial ? "mark partial" : "mark", cx: x(row.value), cy: y, r: 5, tabindex: 0, "data-tip": text}));
  });
  holder.replaceChildren(picture);
}
function scatter(holder, points, names, diagonal) {
  const width = widthOf(holder), height = Math.min(460, Math.max(300, width * 0.7));
  const box = {left: 58, right: width - 14, top: 26, bottom: height - 46};
  const x = scale(points.map(point => point.x), box.left, box.right);
  const y = scale(points.map(point => point.y), box.bottom, box.top);
  const picture = frame(width, height, `${names[1]} against ${names[0]}`);
  axes(picture, x, y, box, names);
  if (diagonal) {
    const low = Math.max(x.low, y.low), high = Math.min(x.high, y.high);
    if (low < high) picture.append(svg("line", {class: "guide", x1: x(low), y1: y(low), x2: x(high), y2: y(high)}));
  }
  for (const point of points) {
    if (point.x === null || point.y === null) continue;
    const mark = svg("circle", {class: "mark", cx: x(point.x).toFixed(1), cy: y(point.y).toFixed(1), r: 4, "data-tip": point.text});
    if (points.length <= 60) mark.setAttribute("tabindex", 0);
    picture.append(mark);
  }
  holder.replaceChildren(picture);
}
function lines(holder, series, names) {
  const width = widthOf(holder), height = 320, box = {left: 62, right: width - 14, top: 26, bottom: height - 46};
  const x = scale(series.flatMap(one => one.x), box.left, box.right, 0.02);
  const y = scale(series.flatMap(one => one.y), box.bottom, box.top);
  const picture = frame(width, height, `${names[1]} against ${names[0]}`);
  axes(picture, x, y, box, names);
  const legend = html("div", {class: "legend"});
  series.forEach((one, k) => {
    const colour = COLOURS[k % COLOURS.length];
    const at = one.x.map((value, i) => [value, one.y[i]]).filter(([a, b]) => a !== null && b !== null);
    const path = at.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
    picture.append(svg("path", {d: path, fill: "none", stroke: colour, "stroke-width": 2}));
    for (const [a, b] of at)
      picture.append(svg("circle", {cx: x(a), cy: y(b), r: at.length > 80 ? 2 : 4, fill: colour, "data-tip": `${one.name}\n${names[0]} ${a}: ${b}`}));
    const key = html("i");
    key.style.background = colour;
    legend.append(html("span", {}, key, one.name));
  });
  holder.replaceChildren(picture, legend);
}
function heat(holder, table) {
  const width = Math.max(widthOf(holder), 720), left = 214, cell = (width - left - 8) / table.genes.length;
  const height = table.rows.length * 22 + 96, top = Math.max(...known(table.values.flat()).map(Math.abs), 1e-12);
  const picture = frame(width, height, "changes of the most changed genes");
  picture.style.minWidth = "720px";
  table.values.forEach((row, i) => {
    picture.append(svg("text", {x: left - 8, y: i * 22 + 16, "text-anchor": "end"}, short(table.rows[i], 29)));
    row.forEach((value, j) => {
      const share = value === null ? 0 : value / top, hue = share < 0 ? "33,102,172" : "178,24,43";
      picture.append(svg("rect", {x: left + j * cell, y: i * 22 + 2, width: cell, height: 20,
        fill: `rgba(${hue},${Math.abs(share).toFixed(3)})`, "data-tip": `${table.rows[i]}\n${table.genes[j]}: ${shown(value)}`}));
    });
  });
  table.genes.forEach((gene, j) => {
    const x = left + (j + 0.5) * cell + 4, y = table.rows.length * 22 + 10;
    picture.append(svg("text", {x, y, "text-anchor": "end", transform: `rotate(-60 ${x} ${y})`}, short(gene, 12)));
  });
  holder.replaceChildren(picture);
}

// ---- views: each draws itself anew when a choice or the width changes ----
const views = [];
function view(id, make) {
  const section = byId(id);
  if (!section) return;
  const draw = make(section.querySelector(".controls"), section.querySelector(".chart"), section);
  views.push(draw);
  draw();
}
const metricOptions = Object.entries(DATA.metrics).map(([name, m]) => [name, m.mark ? `${name} *` : name]);
const rowMetrics = metricOptions.filter(([name]) => DATA.entries.some(entry => entry.rows[name]));
const entryOptions = DATA.entries.map(entry => [entry.name, entry.name]);
const entryOf = name => DATA.entries.find(entry => entry.name === name);
const better = name => ({higher: " (higher is better)", lower: " (lower is better)"})[DATA.metrics[name].better] || "";
const fiveOf = (name, five) => ({name, value: five[0], low: five[1], high: five[2], n: five[3], total: five[4]});
function ordered(rows, metric) {
  const sign = DATA.metrics[metric].better === "higher" ? -1 : 1;
  return rows.sort((a, b) => (a.value === null) - (b.value === null) || sign * (a.value - b.value));
}

view("metrics", (controls, chart) => {
  const [label, box] = select("metric", "metric", metricOptions, DATA.by), note = html("p", {class: "faint"});
  controls.append(label);
  chart.after(note);
  const draw = () => {
    const rows = DATA.entries.filter(entry => entry.values[box.value]).map(entry => fiveOf(entry.name, entry.values[box.value]));
    dots(chart, ordered(rows, box.value), box.value + better(box.value), DATA.metrics[box.value].perfect);
    const mark = DATA.metrics[box.value].mark;
    note.textContent = mark ? `* cannot tell a replicate from the mean on this truth: ${mark}` : "";
  };
  box.addEventListener("change", draw);
  return draw;
});
function mostLevels(axes) {
  const levels = name => new Set(DATA.entries.flatMap(entry => Object.keys(entry.strata[name] || {}))).size;
  return axes.reduce((best, name) => levels(name) > levels(best) ? name : best, axes[0]);
}
view("strata", (controls, chart) => {
  const found = [...new Set(DATA.entries.flatMap(entry => Object.keys(entry.strata)))].sort();
  const [axisLabel, axis] = select("axis", "strata by", found.map(name => [name, name.replaceAll("_", " ")]), mostLevels(found));
  const [label, box] = select("strata-metric", "metric", metricOptions, DATA.by);
  controls.append(axisLabel, label);
  const draw = () => {
    const levels = [...new Set(DATA.entries.flatMap(entry => Object.keys(entry.strata[axis.value] || {})))].sort();
    const rows = levels.flatMap(level => ordered(DATA.entries.flatMap(entry => {
      const five = entry.strata[axis.value] && entry.strata[axis.value][level] && entry.strata[axis.value][level][box.value];
      return five ? [fiveOf(`${level}: ${entry.name}`, five)] : [];
    }), box.value));
    dots(chart, rows, box.value + better(box.value), DATA.metrics[box.value].perfect);
  };
  axis.addEventListener("change", draw);
  box.addEventListener("change", draw);
  return draw;
});
view("rows", (controls, chart, section) => {
  const [xLabel, x] = select("row-x", "entry across", entryOptions, DATA.focus);
  const other = DATA.entries.find(entry => entry.name !== DATA.focus) || DATA.entries[0];
  const [yLabel, y] = select("row-y", "entry up", entryOptions, other.name);
  const [label, box] = select("row-metric", "metric", rowMetrics, DATA.by);
  controls.append(xLabel, yLabel, label);
  const ends = section.querySelector(".ends");
  const draw = () => {
    const a = entryOf(x.value).rows[box.value] || [], b = entryOf(y.value).rows[box.value] || [];
    const points = DATA.rows.map((_, i) => ({x: shownOrNull(a[i]), y: shownOrNull(b[i]),
      text: `${rowName(i)}\n${x.value}: ${shown(a[i])}\n${y.value}: ${shown(b[i])}`}));
    scatter(chart, points, [x.value, `${y.value} (${box.value})`], true);
    const sign = DATA.metrics[box.value].better === "higher" ? 1 : -1;
    const order = DATA.rows.map((_, i) => i).filter(i => shownOrNull(a[i]) !== null).sort((i, j) => sign * (a[i] - a[j]));
    ends.replaceChildren();
    for (const [title, chosen] of [["Worst", order.slice(0, 10)], ["Best", order.slice(-10).reverse()]]) {
      const [holder, table] = tableOf(["perturbation", x.value, y.value], chosen.map(i => [rowName(i), a[i], shownOrNull(b[i])]));
      ends.append(html("div", {}, html("h3", {}, `${title} rows of ${x.value}`), holder));
      enhance(table);
    }
  };
  for (const one of [x, y, box]) one.addEventListener("change", draw);
  return draw;
});
function shownOrNull(value) { return value === undefined ? null : value; }
view("effects", (controls, chart, section) => {
  const [label, box] = select("effect", "perturbation", DATA.effects.map((e, i) => [i, `${[e.context, e.perturbation].filter(Boolean).join("/")} (${e.which})`]), 0);
  const names = [...new Set(DATA.effects.flatMap(e => Object.keys(e.predicted)))];
  const [entryLabel, entry] = select("effect-entry", "entry", names.map(name => [name, name]), DATA.focus);
  controls.append(label, entryLabel);
  const volcano = section.querySelector(".volcano"), picture = section.querySelector(".heat");
  const draw = () => {
    const e = DATA.effects[box.value], predicted = e.predicted[entry.value] || [];
    scatter(chart, e.genes.map((gene, i) => ({x: e.observed[i], y: shownOrNull(predicted[i]),
      text: `${gene}\nobserved ${shown(e.observed[i])}\n${entry.value} ${shown(predicted[i])}`})),
      ["observed change, log1p", `${entry.value}, log1p`], true);
    scatter(volcano, e.genes.map((gene, i) => ({x: e.observed[i], y: e.p[i] === null ? null : e.p[i] > 0 ? -Math.log10(e.p[i]) : 320,
      text: `${gene}\nobserved ${shown(e.observed[i])}\np ${shown(e.p[i])}`})), ["observed change, log1p", "-log10 p (Welch)"], false);
    heat(picture, DATA.heat);
  };
  box.addEventListener("change", draw);
  entry.addEventListener("change", draw);
  return draw;
});
view("curves", (controls, chart) => {
  const columns = [...new Set(DATA.curves.flatMap(curve => Object.keys(curve.columns)))].filter(name => !["epoch", "step"].includes(name));
  const [label, box] = select("curve", "value", columns.map(name => [name, name]), columns.includes("loss") ? "loss" : columns[0]);
  controls.append(label);
  const draw = () => lines(chart, DATA.curves.filter(curve => curve.columns[box.value])
    .map(curve => ({name: curve.name, x: curve.columns.epoch, y: curve.columns[box.value]})), ["epoch", box.value]);
  box.addEventListener("change", draw);
  return draw;
});

for (const table of document.querySelectorAll("table.data")) if (!table.querySelector("th button")) enhance(table);
let waiting = 0, lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === lastWidth) return;
  lastWidth = innerWidth;
  clearTimeout(waiting);
  waiting = setTimeout(() => views.forEach(draw => draw()), 120);
});
byId("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
