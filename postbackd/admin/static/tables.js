// SPDX-License-Identifier: MIT
// Tables that are updated in place: sortable heads, rows that open, cards on a phone. The roles are said in the markup,
// since a table shown as cards loses them otherwise.

import { el, keyed, setAttribute, setText } from "./dom.js";

export class Table {
  // `columns`: [{ name, label, cell: (item) => text or { text, level, sign }, sort: (item) => number | string, text: bool }]
  // `detail`: (item) => nodes of the row that opens below, or null for rows that do not open.
  constructor(node, { columns, keyOf, levelOf = () => null, detail = null, sort = null, empty, name }) {
    Object.assign(this, { node, columns, keyOf, levelOf, detail, sort, empty, name, items: [], open: new Set() });
    node.setAttribute("role", "table");
    this.heads = columns.map((column) => this.#head(column));
    this.none = el("p", { class: "none", hidden: true });
    node.append(el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...this.heads)));
    node.after(this.none);
    this.#markSort();
  }

  #head(column) {
    const content = column.sort ? el("button", { type: "button", class: "sort", onclick: () => this.#sortBy(column) }, column.label, el("span", { class: "sort-sign", "aria-hidden": "true" })) : column.label;
    return el("th", { scope: "col", role: "columnheader", class: column.text ? null : "number" }, content);
  }

  #sortBy(column) {
    const isSame = this.sort?.name === column.name;
    this.sort = { name: column.name, down: isSame ? !this.sort.down : !column.text };
    this.#markSort();
    this.show(this.items);
  }

  #markSort() {
    this.columns.forEach((column, at) => {
      const isSorted = this.sort?.name === column.name;
      setAttribute(this.heads[at], "aria-sort", isSorted ? (this.sort.down ? "descending" : "ascending") : null);
    });
  }

  #sorted(items) {
    const column = this.columns.find((one) => one.name === this.sort?.name);
    if (!column) return items;
    const sign = this.sort.down ? -1 : 1;
    return [...items].sort((a, b) => {
      if ((a.host === "other") !== (b.host === "other")) return a.host === "other" ? 1 : -1;
      const left = column.sort(a), right = column.sort(b);
      return sign * (left < right ? -1 : left > right ? 1 : 0);
    });
  }

  show(items, empty = this.empty) {
    this.items = items;
    keyed(this.node, this.#sorted(items), this.keyOf, (item) => this.#make(item), (node, item) => this.#update(node, item));
    this.none.hidden = items.length > 0;
    this.node.classList.toggle("is-empty", !items.length);
    setText(this.none, empty);
  }

  #make(item) {
    const key = String(this.keyOf(item));
    const cells = this.columns.map((column, at) => {
      const isFirst = at === 0;
      const inner = isFirst && this.detail
        ? el("button", { type: "button", class: "opener", "aria-expanded": "false", onclick: () => this.#toggle(key) }, el("span", { class: "opener-sign", "aria-hidden": "true" }), el("span", { class: "value" }))
        : el("span", { class: "value" });
      return el(isFirst ? "th" : "td", { role: isFirst ? "rowheader" : "cell", scope: isFirst ? "row" : null, class: column.text ? null : "number", "data-label": column.label }, inner);
    });
    return el("tbody", { role: "rowgroup" }, el("tr", { role: "row" }, ...cells));
  }

  #update(node, item) {
    const row = node.firstElementChild;
    setAttribute(row, "data-level", this.levelOf(item));
    this.columns.forEach((column, at) => {
      const cell = column.cell(item);
      const { text, level = null, sign = "" } = typeof cell === "object" ? cell : { text: cell };
      const value = row.children[at].querySelector(".value");
      setText(value, sign ? `${sign} ${text}` : text);
      setAttribute(value, "data-level", level);
      setAttribute(value, "title", column.isLong ? text : null);
    });
    if (this.detail) this.#updateDetail(node, item);
  }

  #updateDetail(node, item) {
    const isOpen = this.open.has(String(this.keyOf(item)));
    setAttribute(node.querySelector(".opener"), "aria-expanded", String(isOpen));
    let below = node.children[1];
    if (!isOpen) {
      below?.remove();
      return;
    }
    if (!below) {
      below = el("tr", { role: "row", class: "detail" }, el("td", { role: "cell", colspan: this.columns.length }));
      node.append(below);
      below.firstElementChild.replaceChildren(...this.detail(item));
      return;
    }
    // What is selected in it, for a copy, is not taken away under the hand.
    const selection = document.getSelection();
    const isBusy = below.contains(document.activeElement) || (selection && !selection.isCollapsed && below.contains(selection.anchorNode));
    if (!isBusy) below.firstElementChild.replaceChildren(...this.detail(item));
  }

  #toggle(key) {
    if (!this.open.delete(key)) this.open.add(key);
    this.show(this.items);
  }
}

// A list of names with their counts as bars: [[name, count], …].
export function showBars(parent, pairs, { empty, label, format }) {
  const top = Math.max(1, ...pairs.map(([, value]) => value));
  const list = parent.firstElementChild ?? parent.appendChild(el("ul", { class: "bars" }));
  keyed(list, pairs, ([name]) => name,
    () => el("li", {}, el("span", { class: "bar-name" }), el("span", { class: "bar-count" }), el("span", { class: "bar-line", "aria-hidden": "true" }, el("span"))),
    (node, [name, value]) => {
      setText(node.children[0], label(name));
      setText(node.children[1], format(value));
      node.children[2].firstElementChild.style.width = `${Math.max(1, (value / top) * 100)}%`;
    });
  const none = parent.querySelector(".none") ?? parent.appendChild(el("p", { class: "none" }));
  none.hidden = pairs.length > 0;
  setText(none, empty);
}
