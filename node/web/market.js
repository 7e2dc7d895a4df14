// Everything the page knows of the selected symbol: it subscribes, feeds the models, and asks for a frame.

import { OrderBook } from "./book.js";
import { Places } from "./format.js";
import { Tape } from "./tape.js";

/** Streams whose timestamp is the moment of the event, so that a latency can be told from it. */
const TIMED = new Set(["trades", "depth"]);

export class Market {
  #subscription = null;
  #client;
  #onEvent;

  book = new OrderBook();
  tape = new Tape();
  ticker = null;
  pricePlaces = new Places();
  sizePlaces = new Places();
  /** What the edge said if it refuses a stream. @type {string | null} */
  refused = null;

  /**
   * @param {import("./tickmesh.js").TickmeshClient} client
   * @param {string} symbol
   * @param {import("./candles.js").CandleSet} candles
   * @param {(latencyMs: number | null) => void} onEvent after each event
   */
  constructor(client, symbol, candles, onEvent) {
    this.#client = client;
    this.#onEvent = onEvent;
    this.symbol = symbol;
    this.candles = candles;
  }

  /** Names of this market's streams. */
  get tradesStream() {
    return `trades.${this.symbol}`;
  }

  open() {
    // Diffs first: a snapshot then finds all that follows it.
    const streams = ["depth", "book", "trades", "ticker"].map((channel) => `${channel}.${this.symbol}`);
    this.#subscription = this.#client.subscribe(streams, (message) => this.#take(message), {
      onBreak: (cause) => this.#broken(cause),
    });
  }

  close() {
    this.#subscription?.unsubscribe();
    this.#subscription = null;
    this.candles.interrupt();
  }

  #take(message) {
    const channel = message.stream.slice(0, message.stream.indexOf("."));
    const { data } = message;
    switch (channel) {
      case "trades":
        this.#trade(data);
        break;
      case "depth":
        this.#learnPlaces(data);
        this.book.diff(message);
        break;
      case "book":
        this.#learnPlaces(data);
        this.book.snapshot(message);
        break;
      case "ticker":
        this.ticker = data;
        break;
      default:
        break;
    }
    this.#onEvent(TIMED.has(channel) && data.timestamp ? Date.now() - data.timestamp : null);
  }

  #trade(trade) {
    this.pricePlaces.see(trade.price);
    this.sizePlaces.see(trade.quantity);
    this.tape.add(trade);
    this.candles.add(Number(trade.price), Number(trade.quantity), trade.timestamp);
  }

  #learnPlaces({ asks = [], bids = [] }) {
    for (const side of [asks, bids]) {
      for (const [price, quantity] of side) {
        this.pricePlaces.see(price);
        this.sizePlaces.see(quantity);
      }
    }
  }

  #broken({ stream, kind, message }) {
    if (kind === "rejected") this.refused = message ?? "refused by the edge";
    if (stream.startsWith("trades.")) this.candles.interrupt();
    // Another numbering: nothing that is kept can be compared with what comes. Gaps the book finds by itself.
    if (kind === "reset" && (stream.startsWith("book.") || stream.startsWith("depth."))) this.book.reset();
    this.#onEvent(null);
  }
}
