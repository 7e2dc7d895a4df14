// The latest trades, newest on top. There are as many rows as the panel holds; a new trade takes over the oldest row, and rows
// are moved by transform alone: no node is made, and nothing is laid out anew, while data flows.

import { byId, make, setText } from "./dom.js";
import { clock, price } from "./format.js";
import { TAPE_LENGTH } from "./tape.js";

// As in style.css.
const ROW_HEIGHT_PX = 22;

// How long a new trade is tinted.
const FRESH_MS = 350;

class Row {
  /** @type {import("./tape.js").Trade | null} */
  trade = null;
  freshUntil = 0;
  #place = -1;

  constructor() {
    this.side = make("span", "hidden");
    this.price = make("span", "trade-price", { role: "cell" });
    this.priceText = document.createTextNode("");
    this.price.append(make("span", "tri", { "aria-hidden": "true" }), this.side, this.priceText);
    this.size = make("span", "trade-size", { role: "cell" });
    this.time = make("span", "trade-time", { role: "cell" });
    this.node = make("div", "trade", { role: "row" }, this.price, this.size, this.time);
    this.node.hidden = true;
  }

  /** @param {import("./tape.js").Trade} trade */
  write(trade, pricePlaces, sizePlaces) {
    const sell = trade.side === "sell";
    this.trade = trade;
    this.node.dataset.direction = sell ? "-1" : "1";
    setText(this.side, sell ? "sell " : "buy ");
    setText(this.priceText, price(trade.price, pricePlaces));
    setText(this.size, price(trade.quantity, sizePlaces));
    setText(this.time, clock(trade.timestamp, true));
    this.node.hidden = false;
  }

  clear() {
    this.trade = null;
    this.node.hidden = true;
  }

  /** @param {number} index from the top */
  moveTo(index) {
    if (index === this.#place) return;
    this.#place = index;
    this.node.style.transform = `translateY(${index * ROW_HEIGHT_PX}px)`;
  }

  /** @param {number} now */
  tint(now) {
    const fresh = String(this.trade !== null && now < this.freshUntil);
    if (this.node.dataset.fresh !== fresh) this.node.dataset.fresh = fresh;
  }
}

export class TradesView {
  #list = byId("trades");
  #empty = byId("trades-empty");
  /** @type {Row[]} newest first */
  #rows = [];
  #market = null;
  #count = 0;
  #places = "";
  #askFrame;
  #timer = null;

  /** @param {() => void} askFrame */
  constructor(askFrame) {
    this.#askFrame = askFrame;
    new ResizeObserver(() => {
      this.#fit();
      askFrame();
    }).observe(byId("trades-body"));
  }

  /** @param {import("./market.js").Market} market */
  show(market) {
    this.#market = market;
    this.#count = 0;
    for (const row of this.#rows) row.clear();
    this.#empty.hidden = false;
    setText(this.#empty, "Waiting for the first trade");
  }

  paint() {
    const market = this.#market;
    if (!market) return;
    if (market.refused) setText(this.#empty, market.refused);
    const { tape, pricePlaces, sizePlaces } = market;
    const now = performance.now();
    const fresh = Math.min(tape.count - this.#count, tape.trades.length, this.#rows.length);
    this.#count = tape.count;
    if (fresh > 0) {
      this.#empty.hidden = true;
      const taken = this.#rows.splice(this.#rows.length - fresh, fresh);
      taken.forEach((row, i) => {
        row.write(tape.trades[i], pricePlaces.value, sizePlaces.value);
        row.freshUntil = now + FRESH_MS;
      });
      this.#rows.unshift(...taken);
      this.#rows.forEach((row, i) => row.moveTo(i));
      this.#timer ??= setTimeout(() => {
        this.#timer = null;
        this.#askFrame();
      }, FRESH_MS);
    }
    for (const row of this.#rows) row.tint(now);
    this.#realign(pricePlaces.value, sizePlaces.value);
  }

  /** The first number with more digits widens those of all rows. */
  #realign(pricePlaces, sizePlaces) {
    const places = `${pricePlaces} ${sizePlaces}`;
    if (places === this.#places) return;
    this.#places = places;
    for (const row of this.#rows) if (row.trade) row.write(row.trade, pricePlaces, sizePlaces);
  }

  /** As many rows as the height holds, all of them written anew. */
  #fit() {
    const height = byId("trades-body").clientHeight;
    const count = Math.min(Math.floor(height / ROW_HEIGHT_PX), TAPE_LENGTH);
    while (this.#rows.length > count) this.#rows.pop().node.remove();
    while (this.#rows.length < count) {
      const row = new Row();
      this.#rows.push(row);
      this.#list.append(row.node);
    }
    const { tape, pricePlaces, sizePlaces } = this.#market ?? {};
    this.#rows.forEach((row, i) => {
      const trade = tape?.trades[i];
      if (trade) row.write(trade, pricePlaces.value, sizePlaces.value);
      else row.clear();
      row.moveTo(i);
    });
    this.#count = tape?.count ?? 0;
    this.#empty.hidden = this.#count > 0;
  }
}
