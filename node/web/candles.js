// Candles of several lengths, built from trades as they arrive.

/**
 * @typedef {{ time: number, open: number, high: number, low: number, close: number, volume: number }} Candle
 *   time: begin of the candle, seconds since 1970
 */

/** Candle lengths offered, in seconds. */
export const INTERVALS = Object.freeze([1, 5, 60]);

// Per length: 2,000 candles fill a wide screen many times over.
const MAX_CANDLES = 2_000;

// A pause in trading is drawn as flat candles up to this many; a longer one as a jump.
const MAX_FLAT = 300;

/** The candles of one symbol in one length. Floats: they are drawn, never compared or sent. */
export class Candles {
  /** @type {Candle[]} oldest first */
  list = [];
  /** Rises with every trade. */
  version = 0;
  #broken = false;

  /** @param {number} seconds length of a candle */
  constructor(seconds) {
    this.seconds = seconds;
  }

  /** Trades may be missing from here on: the pause that follows is not drawn as a quiet market. */
  interrupt() {
    this.#broken = true;
  }

  /** @param {number} price @param {number} quantity @param {number} timestamp ms since 1970 */
  add(price, quantity, timestamp) {
    if (!Number.isFinite(price) || !Number.isFinite(timestamp)) return;
    const amount = Number.isFinite(quantity) ? quantity : 0;
    const time = Math.floor(timestamp / 1000 / this.seconds) * this.seconds;
    const last = this.list.at(-1);
    this.version += 1;
    if (last && time <= last.time) {
      // The engine's clock may step back a little; such a trade belongs to the newest candle.
      last.high = Math.max(last.high, price);
      last.low = Math.min(last.low, price);
      last.close = price;
      last.volume += amount;
      return;
    }
    if (last && !this.#broken) this.#fill(last, time);
    this.#broken = false;
    this.list.push({ time, open: price, high: price, low: price, close: price, volume: amount });
    if (this.list.length > MAX_CANDLES) this.list.splice(0, this.list.length - MAX_CANDLES);
  }

  #fill(last, until) {
    if ((until - last.time) / this.seconds > MAX_FLAT) return;
    const { close } = last;
    for (let time = last.time + this.seconds; time < until; time += this.seconds) {
      this.list.push({ time, open: close, high: close, low: close, close, volume: 0 });
    }
  }
}

/** One symbol's candles in all lengths, so that a change of length loses nothing. */
export class CandleSet {
  #all = new Map(INTERVALS.map((seconds) => [seconds, new Candles(seconds)]));

  /** When the first trade came, ms since 1970; null before. */
  since = null;

  /** @param {number} seconds one of INTERVALS */
  of(seconds) {
    return this.#all.get(seconds);
  }

  add(price, quantity, timestamp) {
    this.since ??= timestamp;
    for (const candles of this.#all.values()) candles.add(price, quantity, timestamp);
  }

  interrupt() {
    for (const candles of this.#all.values()) candles.interrupt();
  }
}
