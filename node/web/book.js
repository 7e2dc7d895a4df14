// The order book of one symbol, built from two streams in one numbering: `book.<symbol>`, the full book, once a second, and
// `depth.<symbol>`, every change.
//
// A worked example. Diffs 11, 12 and 13 arrive before any snapshot: they are kept. A snapshot with sequence 12 arrives: it
// holds everything up to 12, so 13 alone is applied, and the book is live at 13. Then {15, previous 14}: 14 is missing, so
// the book is no longer to be trusted; it waits for the next snapshot at or above 14 and goes on from there.

import { canonical, compare } from "./decimal.js";

/**
 * @typedef {{ price: string, quantity: string }} Level price canonical, quantity as sent
 * @typedef {object} Depth
 * @property {[string, string][]} [asks]
 * @property {[string, string][]} [bids]
 * @property {boolean} [snapshot]     these are all levels that there are
 * @property {boolean} [incomplete]   nobody knows the book from here on, until the next that is whole
 * @property {number} [timestamp]
 */

// One second of diffs lies between two snapshots; 4,096 covers a very busy market. More are dropped, oldest first, and the
// gap that leaves is found like any other.
const MAX_BUFFERED_DIFFS = 4096;

/** One side, best price first. */
class Side {
  /** @type {Level[]} */
  levels = [];

  /** @param {1 | -1} order 1: lowest price first (asks); -1: highest first (bids) */
  constructor(order) {
    this.order = order;
  }

  /**
   * @param {string} price
   * @param {string} quantity "0" removes the level
   */
  set(price, quantity) {
    const key = canonical(price);
    const size = canonical(quantity);
    if (key === null || size === null) return;
    const index = this.#find(key);
    const found = index < this.levels.length && this.levels[index].price === key;
    if (size === "0") {
      if (found) this.levels.splice(index, 1);
    } else if (found) {
      this.levels[index].quantity = quantity;
    } else {
      this.levels.splice(index, 0, { price: key, quantity });
    }
  }

  clear() {
    this.levels = [];
  }

  /** Index of the price, or where it belongs. */
  #find(price) {
    let low = 0;
    let high = this.levels.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (compare(this.levels[middle].price, price) * this.order < 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

export class OrderBook {
  #asks = new Side(1);
  #bids = new Side(-1);
  /** @type {{ sequence: number, previous: number | null, data: Depth }[]} */
  #buffer = [];
  /** A full book of a later position than the last diff, to compare with once the diffs have come that far. */
  #audit = null;
  // While a gap is open: a snapshot below this position cannot close it.
  #needed = 0;

  /** Whether the levels are the market's; else they are old, or none. */
  synced = false;
  /** Position the levels stand at; null before the first snapshot. */
  sequence = null;
  /** Gaps found in the diffs, and books that differed from the market's own. */
  gaps = 0;
  mismatches = 0;
  /** Full books that were compared with this one and were equal to it. */
  audits = 0;
  /** Rises with every change: a view paints again when it differs. */
  version = 0;

  /** Asks, lowest price first. @returns {readonly Level[]} */
  get asks() {
    return this.#asks.levels;
  }

  /** Bids, highest price first. @returns {readonly Level[]} */
  get bids() {
    return this.#bids.levels;
  }

  /**
   * A message of `book.<symbol>`.
   *
   * @param {{ sequence: number, data: Depth }} message
   */
  snapshot({ sequence, data }) {
    if (this.synced) {
      this.#keepForAudit(sequence, data);
      return;
    }
    if (sequence < this.#needed) return;
    this.#adopt(sequence, data);
  }

  /**
   * A message of `depth.<symbol>`. One that an edge or the market marks as a snapshot holds the whole book, whatever came before.
   *
   * @param {{ sequence: number, previous: number | null, snapshot?: boolean, data: Depth }} message
   */
  diff({ sequence, previous, snapshot, data }) {
    if (data.incomplete) {
      if (sequence > (this.sequence ?? 0)) this.#forget(sequence);
      return;
    }
    if (snapshot || data.snapshot) {
      this.#audit = null;
      this.#adopt(sequence, data);
      return;
    }
    if (!this.synced) {
      this.#hold({ sequence, previous, data });
      return;
    }
    if (sequence <= this.sequence) return;
    if (previous !== null && previous > this.sequence) {
      this.gaps += 1;
      this.#lose(previous);
      this.#hold({ sequence, previous, data });
      return;
    }
    if (this.#audit && sequence > this.#audit.sequence && !this.#agrees()) {
      this.#hold({ sequence, previous, data });
      const { sequence: at, data: full } = this.#audit;
      this.mismatches += 1;
      this.#lose(at);
      this.#adopt(at, full);
      return;
    }
    this.#apply(sequence, data);
  }

  /** Forgets everything: another symbol, or another epoch. */
  reset() {
    this.#asks.clear();
    this.#bids.clear();
    this.#buffer = [];
    this.#needed = 0;
    this.sequence = null;
    this.#audit = null;
    this.synced = false;
    this.version += 1;
  }

  #adopt(sequence, data) {
    this.#asks.clear();
    this.#bids.clear();
    this.synced = true;
    this.#needed = 0;
    this.#apply(sequence, data);
    const held = this.#buffer;
    this.#buffer = [];
    for (const diff of held) this.diff(diff);
  }

  #apply(sequence, data) {
    for (const [price, quantity] of data.asks ?? []) this.#asks.set(price, quantity);
    for (const [price, quantity] of data.bids ?? []) this.#bids.set(price, quantity);
    this.sequence = sequence;
    this.version += 1;
  }

  #hold(diff) {
    // A snapshot older than the first diff that is kept would leave a hole before it.
    if (this.#buffer.length === 0 && diff.previous !== null) this.#needed = Math.max(this.#needed, diff.previous);
    if (this.#buffer.length === MAX_BUFFERED_DIFFS) this.#buffer.shift();
    this.#buffer.push(diff);
  }

  /** Nobody knows the book any more. */
  #forget(sequence) {
    this.#asks.clear();
    this.#bids.clear();
    this.#buffer = [];
    this.#lose(sequence);
  }

  #lose(needed) {
    this.synced = false;
    this.#needed = needed;
    this.#audit = null;
    this.version += 1;
  }

  #keepForAudit(sequence, data) {
    // One at a time, and only of a position that the diffs have not passed: levels of the past are not kept.
    if (!this.#audit && sequence >= this.sequence) this.#audit = { sequence, data };
  }

  /** Called when the next diff lies beyond the full book that waits: both must be the same book then. */
  #agrees() {
    const { data } = this.#audit;
    const asks = new Side(1);
    const bids = new Side(-1);
    for (const [price, quantity] of data.asks ?? []) asks.set(price, quantity);
    for (const [price, quantity] of data.bids ?? []) bids.set(price, quantity);
    const equal = sameLevels(asks.levels, this.asks) && sameLevels(bids.levels, this.bids);
    if (equal) {
      this.#audit = null;
      this.audits += 1;
    }
    return equal;
  }
}

function sameLevels(a, b) {
  return (
    a.length === b.length &&
    a.every(({ price, quantity }, i) => price === b[i].price && canonical(quantity) === canonical(b[i].quantity))
  );
}
