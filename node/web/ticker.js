// The head of the page: the selected market, its last price and the figures of the day.

import { byId, setData, setText } from "./dom.js";
import { changePercent, compact, direction, pair, price, signed } from "./format.js";

// A title that changes faster cannot be read in a tab.
const TITLE_INTERVAL_MS = 1_000;

const FIGURES = [
  "last-price", "last-percent", "ticker-change", "ticker-open", "ticker-high", "ticker-low", "ticker-volume",
];

export class TickerView {
  #nodes = Object.fromEntries(
    ["pair-base", "pair-quote", "last", "ticker-unit", ...FIGURES].map((id) => [id, byId(id)]),
  );
  #units = [...document.querySelectorAll("[data-unit]")];
  #market = null;
  #ticker = null;
  #trade = null;
  #titleAt = 0;

  /** @param {import("./market.js").Market} market */
  show(market) {
    this.#market = market;
    this.#ticker = this.#trade = null;
    this.#titleAt = 0;
    const { base, quote } = pair(market.symbol);
    setText(this.#nodes["pair-base"], base);
    setText(this.#nodes["pair-quote"], quote ? `/${quote}` : "");
    setText(this.#nodes["ticker-unit"], base);
    for (const unit of this.#units) setText(unit, unit.dataset.unit === "base" ? base : quote);
    for (const id of FIGURES) setText(this.#nodes[id], "–");
    setData(this.#nodes.last, "direction", 0);
  }

  paint() {
    const market = this.#market;
    if (!market) return;
    const trade = market.tape.last;
    const { ticker } = market;
    if (ticker === this.#ticker && trade === this.#trade) return;
    this.#ticker = ticker;
    this.#trade = trade;
    // A trade is the newest price there is; the ticker speaks until one has come.
    const last = trade?.price ?? ticker?.price;
    const places = market.pricePlaces.value;
    setText(this.#nodes["last-price"], price(last, places));
    if (ticker) {
      setText(this.#nodes["last-percent"], changePercent(last, ticker.open));
      setData(this.#nodes.last, "direction", direction(last, ticker.open));
      setText(this.#nodes["ticker-change"], signed(ticker.change, places));
      setText(this.#nodes["ticker-open"], price(ticker.open, places));
      setText(this.#nodes["ticker-high"], price(ticker.high, places));
      setText(this.#nodes["ticker-low"], price(ticker.low, places));
      setText(this.#nodes["ticker-volume"], compact(ticker.volume));
    }
    this.#title(last, places);
  }

  #title(last, places) {
    const now = performance.now();
    if (this.#titleAt && now - this.#titleAt < TITLE_INTERVAL_MS) return;
    this.#titleAt = now;
    const { base, quote } = pair(this.#market.symbol);
    document.title = `${price(last, places)} ${quote ? `${base}/${quote}` : base} – tickmesh`;
  }
}
