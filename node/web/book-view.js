// The order book: asks above, the spread, bids below; a bar behind each row shows how much stands up to it.

import { subtract } from "./decimal.js";
import { byId, make, setData, setText } from "./dom.js";
import { amount, price } from "./format.js";

// As in style.css.
const ROW_HEIGHT_PX = 22;

// Deeper than any screen is high.
const MAX_ROWS = 60;

class Row {
  #price = "";
  #size = "";
  #total = "";
  #scale = "";

  constructor() {
    this.bar = make("span", "bar", { "aria-hidden": "true" });
    this.priceCell = make("span", "book-price", { role: "cell" });
    this.sizeCell = make("span", "book-size", { role: "cell" });
    this.totalCell = make("span", "book-total", { role: "cell" });
    this.node = make("div", "book-row", { role: "row" }, this.bar, this.priceCell, this.sizeCell, this.totalCell);
  }

  write(priceText, sizeText, totalText, share) {
    if (priceText !== this.#price) this.priceCell.textContent = this.#price = priceText;
    if (sizeText !== this.#size) this.sizeCell.textContent = this.#size = sizeText;
    if (totalText !== this.#total) this.totalCell.textContent = this.#total = totalText;
    const scale = `scaleX(${share.toFixed(3)})`;
    if (scale !== this.#scale) this.bar.style.transform = this.#scale = scale;
  }
}

class SideView {
  /** @type {Row[]} best price first */
  rows = [];

  /** @param {HTMLElement} node */
  constructor(node) {
    this.node = node;
  }

  /** @param {number} count */
  resize(count) {
    while (this.rows.length < count) {
      const row = new Row();
      this.rows.push(row);
      this.node.append(row.node);
    }
    while (this.rows.length > count) this.rows.pop().node.remove();
  }

  /** Sums of the sizes up to each row shown. @param {readonly import("./book.js").Level[]} levels */
  totals(levels) {
    let sum = 0;
    return levels.slice(0, this.rows.length).map(({ quantity }) => (sum += Number(quantity)));
  }

  paint(levels, totals, most, pricePlaces, sizePlaces) {
    this.rows.forEach((row, i) => {
      if (i >= totals.length) {
        row.write("", "", "", 0);
        return;
      }
      const { price: text, quantity } = levels[i];
      row.write(price(text, pricePlaces), price(quantity, sizePlaces), amount(totals[i], sizePlaces), totals[i] / most);
    });
  }
}

export class BookView {
  #body = byId("book");
  #asks = new SideView(byId("asks"));
  #bids = new SideView(byId("bids"));
  #state = byId("book-state");
  #spread = byId("spread");
  #last = byId("spread-last");
  #value = byId("spread-value");
  #share = byId("spread-share");
  #market = null;
  #version = -1;
  #count = -1;

  /** @param {() => void} askFrame */
  constructor(askFrame) {
    new ResizeObserver(() => {
      this.#fit();
      this.#version = -1;
      askFrame();
    }).observe(this.#body);
    this.#fit();
  }

  /** @param {import("./market.js").Market} market */
  show(market) {
    this.#market = market;
    this.#version = this.#count = -1;
  }

  paint() {
    const market = this.#market;
    if (!market) return;
    const { book, tape } = market;
    if (book.version === this.#version && tape.count === this.#count) return;
    if (book.version !== this.#version) this.#paintLevels(book, market.pricePlaces.value, market.sizePlaces.value);
    this.#version = book.version;
    this.#count = tape.count;
    setText(this.#last, price(tape.last?.price ?? market.ticker?.price, market.pricePlaces.value));
    setData(this.#spread, "direction", tape.last ? tape.direction : 0);
  }

  #paintLevels(book, pricePlaces, sizePlaces) {
    const asks = this.#asks.totals(book.asks);
    const bids = this.#bids.totals(book.bids);
    const most = Math.max(asks.at(-1) ?? 0, bids.at(-1) ?? 0, Number.MIN_VALUE);
    this.#asks.paint(book.asks, asks, most, pricePlaces, sizePlaces);
    this.#bids.paint(book.bids, bids, most, pricePlaces, sizePlaces);
    this.#paintSpread(book.asks[0]?.price, book.bids[0]?.price, pricePlaces);
    const waiting = book.sequence === null;
    setText(this.#state, book.synced ? "" : waiting ? "Waiting for a snapshot" : "Synchronising");
    setData(this.#body, "synced", book.synced);
    this.#body.setAttribute("aria-busy", String(!book.synced));
  }

  #paintSpread(ask, bid, places) {
    if (ask === undefined || bid === undefined) {
      setText(this.#value, "–");
      setText(this.#share, "");
      return;
    }
    const spread = subtract(ask, bid);
    setText(this.#value, price(spread, places));
    setText(this.#share, `${((Number(spread) / Number(ask)) * 10_000).toFixed(2)} bps`);
  }

  /** As many rows as the height holds, equal on both sides. */
  #fit() {
    const free = this.#body.clientHeight - this.#spread.offsetHeight;
    const count = Math.min(Math.max(Math.floor(free / 2 / ROW_HEIGHT_PX), 1), MAX_ROWS);
    this.#asks.resize(count);
    this.#bids.resize(count);
  }
}
