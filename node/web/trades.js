// The latest trades, newest on top. A new trade takes the node of the oldest row: nothing is made while data flows.

import { byId, make, setText } from "./dom.js";
import { clock, price } from "./format.js";
import { TAPE_LENGTH } from "./tape.js";

class Row {
  constructor() {
    this.side = make("span", "hidden");
    this.price = make("span", "trade-price", { role: "cell" });
    this.priceText = document.createTextNode("");
    this.price.append(make("span", "tri", { "aria-hidden": "true" }), this.side, this.priceText);
    this.size = make("span", "trade-size", { role: "cell" });
    this.time = make("span", "trade-time", { role: "cell" });
    this.node = make("div", "trade", { role: "row" }, this.price, this.size, this.time);
  }

  /** @param {import("./tape.js").Trade} trade */
  write(trade, pricePlaces, sizePlaces) {
    const sell = trade.side === "sell";
    this.node.dataset.direction = sell ? "-1" : "1";
    setText(this.side, sell ? "sell " : "buy ");
    setText(this.priceText, price(trade.price, pricePlaces));
    setText(this.size, price(trade.quantity, sizePlaces));
    setText(this.time, clock(trade.timestamp, true));
  }
}

export class TradesView {
  #list = byId("trades");
  #empty = byId("trades-empty");
  #note = byId("trades-note");
  /** @type {Row[]} as on the page, top first */
  #rows = [];
  #market = null;
  #count = 0;
  #places = "";

  /** @param {import("./market.js").Market} market */
  show(market) {
    this.#market = market;
    this.#count = 0;
    for (const { node } of this.#rows) node.hidden = true;
    this.#empty.hidden = false;
    setText(this.#note, "");
  }

  paint() {
    const market = this.#market;
    if (!market) return;
    if (market.refused) setText(this.#empty, market.refused);
    const { tape, pricePlaces, sizePlaces } = market;
    const fresh = Math.min(tape.count - this.#count, tape.trades.length);
    if (fresh === 0) return;
    this.#count = tape.count;
    this.#empty.hidden = true;
    for (let i = fresh - 1; i >= 0; i -= 1) {
      const row = this.#take();
      row.write(tape.trades[i], pricePlaces.value, sizePlaces.value);
      row.node.hidden = false;
      // The move also starts the row's highlight again.
      this.#list.prepend(row.node);
      this.#rows.unshift(row);
    }
    this.#realign(pricePlaces.value, sizePlaces.value);
  }

  /** A row to write: one that is free, the oldest, or a new one until there are enough. */
  #take() {
    if (this.#rows.length < TAPE_LENGTH && !this.#rows.at(-1)?.node.hidden) return new Row();
    return this.#rows.pop();
  }

  /** The first number with more digits widens the rows above it and below it. */
  #realign(pricePlaces, sizePlaces) {
    const places = `${pricePlaces} ${sizePlaces}`;
    if (places === this.#places) return;
    this.#places = places;
    this.#market.tape.trades.forEach((trade, i) => this.#rows[i]?.write(trade, pricePlaces, sizePlaces));
  }
}
