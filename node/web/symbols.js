// The list of markets: last price and change of each, one of them selected.

import { byId, make, setData, setText } from "./dom.js";
import { changePercent, direction, pair, price } from "./format.js";

class Row {
  /** @param {string} symbol */
  constructor(symbol) {
    const { base, quote } = pair(symbol);
    this.symbol = symbol;
    this.text = `${base}/${quote} ${symbol}`.toLowerCase();
    this.last = make("span", "market-last");
    this.change = make("span", "market-change");
    this.last.textContent = this.change.textContent = "–";
    const name = make("span", "market-name", {}, make("b", "", {}, base), quote ? `/${quote}` : "");
    this.node = make("li", "market", { role: "option", id: `market-${symbol}`, "aria-selected": "false" });
    this.node.append(name, this.last, this.change);
    this.ticker = null;
    this.painted = null;
  }

  paint() {
    if (!this.ticker || this.ticker === this.painted) return;
    const moved = this.painted ? Math.sign(Number(this.ticker.price) - Number(this.painted.price)) : 0;
    this.painted = this.ticker;
    setText(this.last, price(this.ticker.price));
    setText(this.change, changePercent(this.ticker.price, this.ticker.open));
    setData(this.change, "direction", direction(this.ticker.price, this.ticker.open));
    if (moved) setData(this.last, "moved", moved);
  }
}

export class SymbolList {
  #list = byId("markets-list");
  #search = /** @type {HTMLInputElement} */ (byId("search"));
  #empty = byId("markets-empty");
  /** @type {Map<string, Row>} */
  #rows = new Map();
  #onSelect;
  #dirty = false;

  selected = null;

  /** @param {(symbol: string) => void} onSelect a person chose another market */
  constructor(onSelect) {
    this.#onSelect = onSelect;
    this.#list.addEventListener("click", (event) => {
      const node = event.target.closest?.(".market");
      const row = [...this.#rows.values()].find((candidate) => candidate.node === node);
      if (row) this.select(row.symbol);
    });
    this.#search.addEventListener("input", () => this.#filter());
    this.#search.addEventListener("keydown", (event) => this.#searchKey(event));
  }

  /** Adds markets that are not in the list yet. @param {Iterable<string>} symbols */
  add(symbols) {
    for (const symbol of symbols) {
      if (this.#rows.has(symbol)) continue;
      const row = new Row(symbol);
      this.#rows.set(symbol, row);
      this.#list.append(row.node);
    }
    this.#filter();
  }

  /** @returns {string[]} */
  get symbols() {
    return [...this.#rows.keys()];
  }

  /** Prices of many markets. @param {Record<string, any>} tickers */
  update(tickers) {
    const names = Object.keys(tickers);
    if (names.some((symbol) => !this.#rows.has(symbol))) this.add(names);
    for (const symbol of names) this.#rows.get(symbol).ticker = tickers[symbol];
    this.#dirty = true;
  }

  /** @param {string} symbol */
  ticker(symbol) {
    return this.#rows.get(symbol)?.ticker ?? null;
  }

  /** @param {string} symbol */
  select(symbol) {
    const row = this.#rows.get(symbol);
    if (!row || symbol === this.selected) return;
    this.#rows.get(this.selected)?.node.setAttribute("aria-selected", "false");
    this.selected = symbol;
    row.node.setAttribute("aria-selected", "true");
    this.#list.setAttribute("aria-activedescendant", row.node.id);
    this.#reveal(row.node);
    this.#onSelect(symbol);
  }

  /** The next (1) or previous (-1) market of those shown. @param {number} step */
  move(step) {
    const shown = this.#shown();
    if (shown.length === 0) return;
    const at = shown.findIndex(({ symbol }) => symbol === this.selected);
    const next = at < 0 ? 0 : Math.min(Math.max(at + step, 0), shown.length - 1);
    this.select(shown[next].symbol);
  }

  focusSearch() {
    this.#search.focus();
    this.#search.select();
  }

  paint() {
    if (!this.#dirty) return;
    this.#dirty = false;
    for (const row of this.#rows.values()) row.paint();
  }

  #shown() {
    return [...this.#rows.values()].filter(({ node }) => !node.hidden);
  }

  #filter() {
    const words = this.#search.value.trim().toLowerCase();
    for (const row of this.#rows.values()) row.node.hidden = !row.text.includes(words);
    const nothing = this.#shown().length === 0;
    this.#empty.hidden = !nothing;
    if (nothing) setText(this.#empty, this.#rows.size ? "No market of that name" : "Waiting for markets");
  }

  #searchKey(event) {
    if (event.key === "Enter") {
      const [first] = this.#shown();
      if (first && this.#search.value) this.select(first.symbol);
    } else if (event.key !== "Escape") {
      return;
    }
    event.preventDefault();
    this.#search.value = "";
    this.#filter();
    this.#list.focus();
  }

  /** Scrolls the list alone, never the page. */
  #reveal(node) {
    const list = this.#list;
    if (node.offsetTop < list.scrollTop) list.scrollTop = node.offsetTop;
    const below = node.offsetTop + node.offsetHeight - list.clientHeight;
    if (below > list.scrollTop) list.scrollTop = below;
    if (node.offsetLeft < list.scrollLeft) list.scrollLeft = node.offsetLeft;
    const right = node.offsetLeft + node.offsetWidth - list.clientWidth;
    if (right > list.scrollLeft) list.scrollLeft = right;
  }
}
