// SPDX-License-Identifier: MIT
// A line chart over time, drawn by hand as SVG: lines that differ by dash as well as by colour, a cursor by pointer,
// touch or arrow keys with the exact figures, and the same figures as a table for who cannot see lines.

import { clock } from "./format.js";
import { el, setText, svg } from "./dom.js";

const LEFT = 56, RIGHT = 10, TOP = 10, BOTTOM = 22, HEIGHT = 172;
const TABLE_ROWS = 20;

function niceTop(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 6, 8, 10].map((step) => step * unit).find((step) => step >= value);
}

function timeSteps(spanS, width) {
  const most = Math.max(2, Math.floor(width / 90));
  return [60, 120, 300, 600, 900, 1800, 3600, 7200].find((step) => spanS / step <= most);
}

export class Chart {
  // `lines`: [{ label, value: (point) => number | null }]; `format` makes a figure of a value, `tick` a short one.
  constructor({ title, unit, empty, lines, format, tick = format, least = 1 }) {
    Object.assign(this, { title, lines, format, tick, least, points: [], from: 0, to: 1, width: 0, cursor: null, onCursor: () => {} });
    this.values = lines.map(() => el("dd"));
    this.when = el("span", { class: "chart-when" });
    this.svg = svg("svg", { class: "plot", height: HEIGHT, "aria-hidden": "true" });
    this.tip = el("div", { class: "tip", hidden: true });
    this.empty = el("p", { class: "plot-empty", hidden: true }, el("span", { text: empty }));
    this.spoken = el("div", { class: "unseen", role: "status", "aria-live": "polite" });
    this.field = el("div", { class: "plot-field", tabindex: "0", role: "group", "aria-label": `${title}, ${unit}: chart. Left and right arrows read the figures.` }, this.svg, this.empty, this.tip, this.spoken);
    this.table = el("table");
    this.details = el("details", { class: "chart-table" }, el("summary", {}, "As a table"), this.table);
    this.node = el("figure", { class: "chart" },
      el("figcaption", {}, el("h3", {}, title, el("small", { text: unit })), this.when,
        el("dl", { class: "legend" }, ...lines.map((line, at) => el("div", { class: `line-${at}` }, el("dt", {}, svg("svg", { class: "swatch", width: 22, height: 8, "aria-hidden": "true" }, svg("line", { x1: 1, x2: 21, y1: 4, y2: 4 })), line.label), this.values[at])))),
      this.field, this.details);
    this.#listen();
  }

  #listen() {
    const pick = (event) => this.onCursor(this.#timeAt(event.clientX), this);
    this.field.addEventListener("pointermove", pick);
    this.field.addEventListener("pointerdown", pick);
    this.field.addEventListener("pointerleave", () => this.onCursor(null, this));
    this.field.addEventListener("blur", () => this.onCursor(null, this));
    this.field.addEventListener("keydown", (event) => this.#key(event));
    this.details.addEventListener("toggle", () => this.#fillTable());
    new ResizeObserver(() => this.draw()).observe(this.field);
  }

  #timeAt(clientX) {
    const x = clientX - this.svg.getBoundingClientRect().left;
    return this.from + ((x - LEFT) / Math.max(1, this.width - LEFT - RIGHT)) * (this.to - this.from);
  }

  #key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") this.onCursor(null, this);
    if (!(event.key in steps) || !this.points.length) return;
    event.preventDefault();
    const at = this.cursor === null ? this.points.length - 1 : this.#nearest(this.cursor);
    const next = Math.min(this.points.length - 1, Math.max(0, this.cursor === null ? at : at + steps[event.key]));
    this.onCursor(this.points[next].t, this);
    setText(this.spoken, this.#sentence(this.points[next]));
  }

  #sentence(point) {
    return `${clock(point.t * 1000)}: ${this.lines.map((line) => `${line.label} ${this.format(line.value(point))}`).join(", ")}`;
  }

  #nearest(time) {
    let best = 0;
    for (let at = 1; at < this.points.length; at += 1) if (Math.abs(this.points[at].t - time) <= Math.abs(this.points[best].t - time)) best = at;
    return best;
  }

  show(points, from, to, stepS) {
    Object.assign(this, { points: points.filter((point) => point.t >= from), from, to, stepS });
    this.draw();
    if (this.details.open) this.#fillTable();
  }

  // The point at a time; none where the nearest is farther away than a gap, as before the daemon's start.
  #at(time) {
    const point = this.points[this.#nearest(time)];
    return point && Math.abs(point.t - time) <= Math.max(this.stepS * 3, (this.to - this.from) / 50) ? point : null;
  }

  // Where all charts look: `time` in seconds or null; `own` is the chart under the pointer, which shows the box too.
  point(time, own) {
    this.cursor = time;
    this.isOwn = own === this;
    this.#drawCursor();
  }

  draw() {
    const width = Math.floor(this.field.clientWidth);
    if (!width) return;
    this.width = width;
    const top = niceTop(Math.max(this.least, ...this.points.flatMap((point) => this.lines.map((line) => line.value(point) ?? 0))));
    this.x = (time) => LEFT + ((time - this.from) / (this.to - this.from)) * (width - LEFT - RIGHT);
    this.y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.cursorLayer = svg("g");
    const isEmpty = !this.points.some((point) => this.lines.some((line) => line.value(point)));
    this.empty.hidden = !isEmpty;
    this.svg.replaceChildren(...this.#grid(top, isEmpty ? [0] : [0, 0.5, 1]), ...this.#times(), ...this.lines.flatMap((line, at) => this.#line(line, at)), this.cursorLayer);
    this.#drawCursor();
  }

  #grid(top, shares) {
    return shares.flatMap((share) => {
      const y = Math.round(this.y(top * share)) + 0.5;
      return [
        svg("line", { class: share ? "grid" : "axis", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }),
        svg("text", { class: "tick", x: LEFT - 8, y: y + 4, "text-anchor": "end", text: share ? this.tick(top * share) : "0" }),
      ];
    });
  }

  #times() {
    const step = timeSteps(this.to - this.from, this.width - LEFT);
    const ticks = [];
    for (let time = Math.ceil(this.from / step) * step; time <= this.to; time += step) {
      const x = this.x(time);
      if (x < LEFT + 14 || x > this.width - 18) continue;
      ticks.push(svg("text", { class: "tick", x, y: HEIGHT - 6, "text-anchor": "middle", text: clock(time * 1000, false).slice(-5) }));
    }
    return ticks;
  }

  #line(line, at) {
    const gap = this.stepS * 3;
    let path = "", area = "", started = null, last = null;
    const close = () => {
      if (started !== null) area += `L${last.x} ${this.y(0)}L${started} ${this.y(0)}Z`;
    };
    for (const point of this.points) {
      const value = line.value(point);
      const isGap = value === null || value === undefined || (last && point.t - last.t > gap);
      if (isGap) {
        close();
        started = null;
        last = null;
        if (value === null || value === undefined) continue;
      }
      const x = this.x(point.t).toFixed(1), y = this.y(value).toFixed(1);
      path += `${started === null ? "M" : "L"}${x} ${y}`;
      area += `${started === null ? "M" : "L"}${x} ${y}`;
      if (started === null) started = x;
      last = { x, t: point.t };
    }
    close();
    return [at === 0 ? svg("path", { class: "area", d: area }) : null, svg("path", { class: `line line-${at}`, d: path })].filter(Boolean);
  }

  #drawCursor() {
    const last = this.points.at(-1);
    const point = this.cursor === null ? last : this.#at(this.cursor);
    this.values.forEach((node, at) => setText(node, this.format(point ? this.lines[at].value(point) : null)));
    setText(this.when, this.cursor === null || !point ? "" : clock(point.t * 1000));
    this.tip.hidden = true;
    if (!this.cursorLayer) return;
    this.cursorLayer.replaceChildren();
    if (this.cursor === null || !point) return;
    const x = this.x(point.t);
    this.cursorLayer.append(svg("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
    this.lines.forEach((line, at) => {
      const value = line.value(point);
      if (value !== null && value !== undefined) this.cursorLayer.append(svg("circle", { class: `dot line-${at}`, cx: x, cy: this.y(value), r: 3.5 }));
    });
    if (this.isOwn) this.#showTip(point, x);
  }

  #showTip(point, x) {
    this.tip.replaceChildren(el("strong", { text: clock(point.t * 1000) }), ...this.lines.map((line) => el("span", {}, `${line.label} `, el("b", { text: this.format(line.value(point)) }))));
    this.tip.hidden = false;
    const room = this.width - this.tip.offsetWidth - 4;
    this.tip.style.left = `${Math.max(4, Math.min(room, x > this.width / 2 ? x - this.tip.offsetWidth - 12 : x + 12))}px`;
  }

  #fillTable() {
    if (!this.details.open) return;
    const every = Math.max(1, Math.ceil(this.points.length / TABLE_ROWS));
    const shown = this.points.filter((_, at) => (this.points.length - 1 - at) % every === 0).reverse();
    this.table.replaceChildren(
      el("caption", { class: "unseen", text: this.title }),
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "Time" }), ...this.lines.map((line) => el("th", { scope: "col", text: line.label })))),
      el("tbody", {}, ...shown.map((point) => el("tr", {}, el("th", { scope: "row", text: clock(point.t * 1000) }), ...this.lines.map((line) => el("td", { text: this.format(line.value(point)) }))))),
    );
  }
}
