"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const COLOURS = 7;
  const DASHES = ["", "6 3", "2 3", "9 3 2 3"];
  const MOST_TOLD = 12; // lines of a tooltip

  // --- what is chosen, and where it is kept: the part of the address behind the #

  const slots = new Map(); // row -> its place among the colours, kept while it is chosen
  const views = {}; // chart -> [x0, x1, y0, y1] where it is zoomed

  function choose(row, wanted) {
    if (!wanted) slots.delete(row);
    else if (!slots.has(row)) {
      const taken = new Set(slots.values());
      let slot = 0;
      while (taken.has(slot)) slot++;
      slots.set(row, slot);
    }
  }
  const colour = (row) => (slots.has(row) ? `var(--c${slots.get(row) % COLOURS})` : "var(--other)");
  const dash = (row) => DASHES[Math.floor(slots.get(row) / COLOURS) % DASHES.length];

  function readAddress() {
    const kept = new URLSearchParams(location.hash.slice(1));
    const numbers = (text) => text.split(",").filter(Boolean).map(Number).filter(Number.isFinite);
    slots.clear();
    const rows = kept.has("rows") ? numbers(kept.get("rows")) : data.chosen;
    for (const row of rows) if (row in data.rows) choose(row, true);
    for (const name of ["curves", "time"]) {
      const view = numbers(kept.get(name) ?? "");
      if (view.length === 4 && view[0] < view[1] && view[2] < view[3]) views[name] = view;
      else delete views[name];
    }
  }
  function writeAddress() {
    const parts = [`rows=${[...slots.keys()].join(",")}`];
    for (const [name, view] of Object.entries(views)) parts.push(`${name}=${view.map((v) => +v.toPrecision(6)).join(",")}`);
    history.replaceState(null, "", `#${parts.join("&")}`);
  }
  function changed() {
    writeAddress();
    draw();
  }

  // --- small helpers

  function svg(parent, name, attributes = {}, text = "") {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "fill" || key === "stroke") node.style[key] = value; // so that a colour may be a variable
      else node.setAttribute(key, value);
    }
    if (text) node.textContent = text;
    return parent.appendChild(node);
  }
  function html(parent, name, text = "", kind = "") {
    const node = document.createElement(name);
    node.textContent = text;
    if (kind) node.className = kind;
    return parent.appendChild(node);
  }
  function dot(parent, fill) {
    html(parent, "i").style.background = fill;
  }
  function place(tip, drawing, x, y) {
    const [outer, inner] = [tip.parentNode, drawing].map((node) => node.getBoundingClientRect());
    const [beside, below] = [inner.left - outer.left + x, inner.top - outer.top + y];
    const right = beside > outer.width / 2;
    tip.style.left = right ? "auto" : `${beside + 14}px`;
    tip.style.right = right ? `${outer.width - beside + 14}px` : "auto";
    tip.style.top = `${Math.max(4, below - tip.offsetHeight / 2)}px`;
  }
  const plusMinus = (spread) => (spread === null ? "" : ` ± ${spread.toFixed(2)}`);
  const signed = (value) => (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(2);

  function whenResized(figure, draw) {
    let width = figure.clientWidth;
    new ResizeObserver(() => {
      if (figure.clientWidth === width) return; // drawing changes the height
      width = figure.clientWidth;
      requestAnimationFrame(draw);
    }).observe(figure);
  }
  function duration(seconds) {
    if (seconds < 100) return `${+seconds.toPrecision(3)} s`;
    return seconds < 6000 ? `${+(seconds / 60).toPrecision(3)} min` : `${+(seconds / 3600).toPrecision(3)} h`;
  }
  function ticks(low, high, wanted, units = [1, 2, 5, 10]) {
    const rough = (high - low) / wanted;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = units.map((unit) => unit * power).find((size) => size >= rough) ?? 10 * power;
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-12); i++) found.push(+(i * step).toPrecision(12));
    return found;
  }
  function timeTicks(low, high, wanted) {
    const unit = high < 100 ? 1 : high < 6000 ? 60 : 3600;
    return ticks(low / unit, high / unit, wanted).map((tick) => tick * unit);
  }
  function logTicks(low, high, wanted) {
    const found = [];
    for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10)
      for (const unit of [1, 2, 5]) if (power * unit >= low && power * unit <= high) found.push(power * unit);
    return found.length > 1 ? found.filter((_, i) => i % Math.ceil(found.length / wanted) === 0) : ticks(low, high, wanted);
  }
  function padded(values, share, floor = -Infinity) {
    const low = Math.min(...values), high = Math.max(...values);
    const room = (high - low) * share || Math.abs(high) * share || 1;
    return [Math.max(floor, low - room), high + room];
  }

  // --- a chart with two axes, a tooltip, and zoom by dragging

  class Chart {
    constructor(name, options) {
      this.figure = document.getElementById(name);
      if (!this.figure) return;
      Object.assign(this, { name, ...options });
      this.svg = svg(this.figure, "svg", { role: "img", "aria-label": this.figure.querySelector("strong").textContent });
      this.tip = html(this.figure, "div", "", "tip");
      this.tip.hidden = true;
      this.button = this.figure.querySelector(".reset");
      this.button.addEventListener("click", () => this.zoom(null));
      this.svg.addEventListener("dblclick", () => this.zoom(null));
      this.svg.addEventListener("pointerdown", (event) => this.press(event));
      this.svg.addEventListener("pointermove", (event) => this.move(event));
      this.svg.addEventListener("pointerup", (event) => this.release(event));
      for (const end of ["pointerleave", "pointercancel"]) this.svg.addEventListener(end, () => this.leave());
      whenResized(this.figure, () => this.draw());
    }
    draw() {
      if (!this.figure) return;
      this.width = Math.max(240, this.figure.clientWidth - 26);
      this.height = Math.round(Math.min(420, Math.max(260, this.width * 0.62)));
      this.box = { left: 52, right: this.width - 12, top: 10, bottom: this.height - 42 };
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
      this.svg.replaceChildren();
      this.button.hidden = !views[this.name];
      const extent = this.extent();
      if (!extent) {
        svg(this.svg, "text", { x: this.width / 2, y: this.height / 2, "text-anchor": "middle" }, "Nothing is chosen.");
        this.scale = null;
        return;
      }
      const [x0, x1, y0, y1] = views[this.name] ?? extent;
      const forward = this.log ? Math.log : (v) => v;
      const back = this.log ? Math.exp : (v) => v;
      const { left, right, top, bottom } = this.box;
      const [a, b] = [forward(x0), forward(x1)];
      this.scale = {
        x: (v) => left + ((forward(v) - a) / (b - a)) * (right - left),
        y: (v) => bottom - ((v - y0) / (y1 - y0)) * (bottom - top),
        xOf: (p) => back(a + ((p - left) / (right - left)) * (b - a)),
        yOf: (p) => y0 + ((bottom - p) / (bottom - top)) * (y1 - y0),
      };
      this.axes(x0, x1, y0, y1);
      const clip = svg(svg(this.svg, "clipPath", { id: `clip-${this.name}` }), "rect");
      for (const [key, value] of Object.entries({ x: left, y: top, width: right - left, height: bottom - top })) clip.setAttribute(key, value);
      this.plot = svg(this.svg, "g", { "clip-path": `url(#clip-${this.name})` });
      this.over = svg(this.svg, "g");
      this.marks(this.plot);
    }
    axes(x0, x1, y0, y1) {
      const { left, right, top, bottom } = this.box;
      for (const tick of ticks(y0, y1, this.height / 60)) {
        const y = this.scale.y(tick);
        svg(this.svg, "line", { class: "grid", x1: left, x2: right, y1: y, y2: y });
        svg(this.svg, "text", { x: left - 6, y: y + 4, "text-anchor": "end" }, `${tick} %`);
      }
      for (const tick of this.xTicks(x0, x1, this.width / 90)) {
        const x = this.scale.x(tick);
        svg(this.svg, "line", { class: "grid", x1: x, x2: x, y1: top, y2: bottom });
        svg(this.svg, "text", { x, y: bottom + 17, "text-anchor": "middle" }, this.xText(tick));
      }
      svg(this.svg, "line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom });
      svg(this.svg, "text", { class: "name", x: (left + right) / 2, y: this.height - 6, "text-anchor": "middle" }, this.xLabel);
    }
    zoom(view) {
      if (view) views[this.name] = view;
      else delete views[this.name];
      changed();
    }
    at(event) {
      const rect = this.svg.getBoundingClientRect();
      const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
      const { left, right, top, bottom } = this.box;
      return [clamp(event.clientX - rect.left, left, right), clamp(event.clientY - rect.top, top, bottom)];
    }
    press(event) {
      if (!this.scale || event.button !== 0) return;
      this.pressed = this.at(event);
      try { this.svg.setPointerCapture(event.pointerId); } catch { /* not a real pointer */ }
    }
    move(event) {
      if (!this.scale) return;
      const [x, y] = this.at(event);
      this.over.replaceChildren();
      if (this.pressed) {
        this.tip.hidden = true;
        const [px, py] = this.pressed;
        svg(this.over, "rect", { class: "brush", x: Math.min(x, px), y: Math.min(y, py), width: Math.abs(x - px), height: Math.abs(y - py) });
        return;
      }
      this.tip.replaceChildren();
      this.tip.hidden = !this.tell(x, y);
      if (!this.tip.hidden) place(this.tip, this.svg, x, y);
    }
    release(event) {
      if (!this.pressed) return;
      const [[px, py], [x, y]] = [this.pressed, this.at(event)];
      this.pressed = null;
      this.over.replaceChildren();
      if (Math.abs(x - px) > 6 && Math.abs(y - py) > 6) {
        const [xs, ys] = [[x, px].sort((a, b) => a - b), [y, py].sort((a, b) => b - a)];
        this.zoom([...xs.map(this.scale.xOf), ...ys.map(this.scale.yOf)]);
      } else if (this.click) this.click(x, y);
    }
    leave() {
      this.pressed = null;
      this.over?.replaceChildren();
      this.tip.hidden = true;
    }
  }

  const curves = new Chart("curves", {
    xLabel: "epoch",
    xTicks: (low, high, wanted) => ticks(low, high, wanted).filter(Number.isInteger),
    xText: String,
    rows: () => [...slots.keys()].filter((row) => row in data.curves),
    extent() {
      const shown = this.rows().map((row) => data.curves[row]);
      if (!shown.length) return null;
      const [y0, y1] = padded(shown.flatMap((curve) => [...curve.low, ...curve.high]), 0.04);
      const epochs = shown.flatMap((curve) => [curve.epochs[0], curve.epochs.at(-1)]);
      const x0 = Math.min(...epochs), x1 = Math.max(...epochs);
      return [x0, x1 > x0 ? x1 : x0 + 1, y0, y1];
    },
    marks(plot) {
      const { x, y } = this.scale;
      this.lines = new Map();
      const path = (xs, ys) => xs.map((value, i) => `${i ? "L" : "M"}${x(value).toFixed(1)} ${y(ys[i]).toFixed(1)}`).join("");
      for (const row of this.rows()) {
        const { epochs, mean, low, high, n } = data.curves[row];
        if (n > 1) {
          const under = path([...epochs].reverse(), [...low].reverse()).replace("M", "L");
          svg(plot, "path", { class: "band", d: `${path(epochs, high)}${under}Z`, fill: colour(row) });
        }
        const line = svg(plot, "path", { class: "line", d: path(epochs, mean), stroke: colour(row), "stroke-dasharray": dash(row) });
        if (epochs.length === 1) svg(plot, "circle", { class: "point", cx: x(epochs[0]), cy: y(mean[0]), r: 4, fill: colour(row) });
        this.lines.set(row, line);
      }
    },
    tell(px, py) {
      const wanted = this.scale.xOf(px);
      const all = this.rows().flatMap((row) => data.curves[row].epochs);
      if (!all.length) return false;
      const epoch = all.reduce((best, value) => (Math.abs(value - wanted) < Math.abs(best - wanted) ? value : best));
      const there = this.rows()
        .map((row) => ({ row, curve: data.curves[row], i: data.curves[row].epochs.indexOf(epoch) }))
        .filter(({ i }) => i >= 0)
        .sort((a, b) => b.curve.mean[b.i] - a.curve.mean[a.i]);
      const far = ({ curve, i }) => Math.abs(this.scale.y(curve.mean[i]) - py);
      const nearest = there.reduce((best, item) => (far(item) < far(best) ? item : best));
      const at = this.scale.x(epoch);
      svg(this.over, "line", { class: "rule", x1: at, x2: at, y1: this.box.top, y2: this.box.bottom });
      for (const [row, line] of this.lines) line.classList.toggle("near", row === nearest.row);
      html(this.tip, "p", `epoch ${epoch}`);
      const first = Math.max(0, Math.min(there.indexOf(nearest) - MOST_TOLD / 2, there.length - MOST_TOLD));
      for (const item of there.slice(first, first + MOST_TOLD)) {
        const { row, curve, i } = item;
        svg(this.over, "circle", { class: "point", cx: at, cy: this.scale.y(curve.mean[i]), r: 3.5, fill: colour(row) });
        const line = html(this.tip, "p", "", item === nearest ? "near" : "");
        dot(line, colour(row));
        const range = curve.n > 1 ? ` (${curve.low[i].toFixed(2)} to ${curve.high[i].toFixed(2)})` : "";
        line.append(`${curve.mean[i].toFixed(2)} %${range}  ${data.rows[row]}`);
      }
      if (there.length > MOST_TOLD) html(this.tip, "p", `and ${there.length - MOST_TOLD} more`);
      return true;
    },
  });

  const seconds = data.points.map(([, value]) => value);
  const spread = seconds.length > 1 && Math.min(...seconds) > 0 && Math.max(...seconds) > 20 * Math.min(...seconds);
  const time = new Chart("time", {
    xLabel: spread ? "training time (logarithmic)" : "training time",
    log: spread,
    xTicks: spread ? logTicks : timeTicks,
    xText: duration,
    extent() {
      const [x0, x1] = spread ? padded(seconds.map(Math.log), 0.06).map(Math.exp) : padded(seconds, 0.06, 0);
      const [y0, y1] = padded(data.points.flatMap(([, , mean, sd]) => [mean - (sd ?? 0), mean + (sd ?? 0)]), 0.06);
      return [x0, x1, y0, y1];
    },
    marks(plot) {
      const { x, y } = this.scale;
      const front = data.points.filter(([row]) => data.front.includes(row));
      const steps = front.map(([, at, mean], i) => (i ? `H${x(at).toFixed(1)}V${y(mean).toFixed(1)}` : `M${x(at).toFixed(1)} ${y(mean).toFixed(1)}`));
      svg(plot, "path", { class: "front", d: steps.join("") });
      // the chosen ones last, so that they lie on top
      for (const [row, at, mean, sd] of [...data.points].sort((a, b) => slots.has(a[0]) - slots.has(b[0]))) {
        const chosen = slots.has(row);
        if (sd !== null && chosen) svg(plot, "line", { x1: x(at), x2: x(at), y1: y(mean - sd), y2: y(mean + sd), stroke: colour(row), "stroke-width": 1.4 });
        svg(plot, "circle", { class: "point", cx: x(at), cy: y(mean), r: chosen ? 5.5 : 4, fill: colour(row) });
      }
    },
    nearest(px, py) {
      const { x, y } = this.scale;
      const far = ([, at, mean]) => Math.hypot(x(at) - px, y(mean) - py);
      const best = data.points.reduce((a, b) => (far(b) < far(a) ? b : a));
      return far(best) < 30 ? best : null;
    },
    tell(px, py) {
      const found = this.nearest(px, py);
      if (!found) return false;
      const [row, at, mean, sd, n] = found;
      svg(this.over, "circle", { class: "rule", cx: this.scale.x(at), cy: this.scale.y(mean), r: 8, fill: "none" });
      const line = html(this.tip, "p", "", "near");
      dot(line, colour(row));
      line.append(data.rows[row]);
      html(this.tip, "p", `${mean.toFixed(2)}${plusMinus(sd)} % ${data.metric}, ${duration(at)}, ${n} run${n > 1 ? "s" : ""}`);
      if (data.front.includes(row)) html(this.tip, "p", "on the Pareto front");
      return true;
    },
    click(px, py) {
      const found = this.nearest(px, py);
      if (!found) return;
      choose(found[0], !slots.has(found[0]));
      changed();
    },
  });

  // --- what each regularizer brings

  function drawFactors() {
    const figure = document.getElementById("factors");
    if (!figure) return;
    figure.querySelector("svg")?.remove();
    figure.querySelector(".tip")?.remove();
    const width = Math.max(240, figure.clientWidth - 26), rowHeight = 44;
    const left = Math.min(170, width * 0.35), right = width - 16, bottom = data.factors.length * rowHeight + 8;
    const root = svg(figure, "svg", { viewBox: `0 0 ${width} ${bottom + 26}`, role: "img", "aria-label": "Gains" });
    const tip = html(figure, "div", "", "tip");
    tip.hidden = true;
    const values = data.factors.flatMap((f) => [f.mean, ...f.interval, ...f.steps.map(([, gain]) => gain), 0]);
    const [x0, x1] = padded(values, 0.05);
    const x = (v) => left + ((v - x0) / (x1 - x0)) * (right - left);
    for (const tick of ticks(x0, x1, width / 110)) {
      svg(root, "line", { class: tick === 0 ? "zero" : "grid", x1: x(tick), x2: x(tick), y1: 0, y2: bottom });
      svg(root, "text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, `${tick > 0 ? "+" : ""}${tick}`);
    }
    const tell = (node, text, at, y) => {
      node.addEventListener("pointerenter", () => {
        tip.replaceChildren();
        html(tip, "p", text);
        tip.hidden = false;
        place(tip, root, at, y);
      });
      node.addEventListener("pointerleave", () => (tip.hidden = true));
    };
    data.factors.forEach((factor, index) => {
      const y = index * rowHeight + rowHeight / 2;
      svg(root, "text", { class: "name", x: left - 12, y: y + 4, "text-anchor": "end" }, factor.name);
      for (const [context, gain] of factor.steps) {
        const mark = svg(root, "circle", { class: "point", cx: x(gain), cy: y, r: 6, fill: "var(--c0)", opacity: 0.55 });
        tell(mark, `${context === "alone" ? "alone" : `added to ${context}`}: ${signed(gain)} points`, x(gain), y);
      }
      const [low, high] = factor.interval;
      if (low !== undefined) svg(root, "line", { x1: x(low), x2: x(high), y1: y, y2: y, stroke: "var(--c1)", "stroke-width": 2.5 });
      const at = x(factor.mean);
      const diamond = svg(root, "path", { d: `M${at - 8} ${y}L${at} ${y - 8}L${at + 8} ${y}L${at} ${y + 8}Z`, fill: "var(--c1)", class: "point" });
      const range = low === undefined ? "" : `, 95 % interval ${signed(low)} to ${signed(high)}`;
      tell(diamond, `${factor.name}: ${signed(factor.mean)} points in the mean (n = ${factor.n}${range})`, at, y);
    });
  }

  // --- the table and the legend

  const table = document.getElementById("rows");
  const lines = table ? [...table.tBodies[0].rows] : [];

  function drawTable() {
    for (const line of lines) {
      const row = Number(line.dataset.row);
      const [box, mark] = [line.querySelector("input"), line.querySelector("i")];
      box.checked = slots.has(row);
      mark.style.background = mark.style.borderColor = slots.has(row) ? colour(row) : "";
    }
  }
  function drawLegend() {
    const legend = document.getElementById("legend");
    if (!legend) return;
    legend.replaceChildren();
    for (const row of slots.keys()) {
      const button = html(legend, "button");
      button.type = "button";
      button.title = "Click to leave it out";
      dot(button, colour(row));
      button.append(data.rows[row]);
      button.addEventListener("click", () => {
        choose(row, false);
        changed();
      });
    }
  }
  function draw() {
    drawTable();
    drawLegend();
    curves.draw();
    time.draw();
  }
  function filter() {
    const words = document.getElementById("filter").value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const line of lines) {
      const name = data.rows[Number(line.dataset.row)].toLowerCase();
      line.hidden = !words.every((word) => name.includes(word));
      shown += !line.hidden;
    }
    document.getElementById("shown").textContent = shown === lines.length ? "" : `${shown} of ${lines.length}`;
  }
  function sortBy(heading) {
    const descending = heading.ariaSort === "ascending" || (heading.ariaSort !== "descending" && heading.cellIndex > 0);
    for (const other of heading.parentNode.cells) other.ariaSort = null;
    heading.ariaSort = descending ? "descending" : "ascending";
    const value = (line) => {
      const text = line.cells[heading.cellIndex].dataset.v;
      return text === undefined ? null : Number(text);
    };
    lines.sort((a, b) => {
      const [va, vb] = [value(a), value(b)];
      if (va === null || vb === null) return (va === null) - (vb === null); // what has no value stays last
      return descending ? vb - va : va - vb;
    });
    table.tBodies[0].append(...lines);
  }
  if (table) {
    table.tBodies[0].addEventListener("change", (event) => {
      choose(Number(event.target.closest("tr").dataset.row), event.target.checked);
      changed();
    });
    table.tBodies[0].addEventListener("click", (event) => {
      if (event.target.closest("label") || String(getSelection())) return;
      event.target.closest("tr").querySelector("input").click();
    });
    for (const heading of table.tHead.rows[0].cells) heading.addEventListener("click", () => sortBy(heading));
    document.getElementById("filter").addEventListener("input", filter);
    document.getElementById("choose-none").addEventListener("click", () => {
      slots.clear();
      changed();
    });
    document.getElementById("choose-shown").addEventListener("click", () => {
      for (const line of lines) if (!line.hidden) choose(Number(line.dataset.row), true);
      changed();
    });
  }
  window.addEventListener("hashchange", () => {
    readAddress();
    draw();
  });
  const factors = document.getElementById("factors");
  if (factors) whenResized(factors, drawFactors);
  readAddress();
  draw();
  drawFactors();
})();
