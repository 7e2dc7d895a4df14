// The latest trades of one symbol.

/** @typedef {{ id: string, price: string, quantity: string, side: "buy" | "sell", timestamp: number }} Trade */

// More rows than any screen is high.
export const TAPE_LENGTH = 80;

export class Tape {
  /** @type {Trade[]} newest first */
  trades = [];
  /** Trades that ever came: a view knows from it how many are new. */
  count = 0;

  /** @param {Trade} trade */
  add(trade) {
    this.trades.unshift(trade);
    if (this.trades.length > TAPE_LENGTH) this.trades.pop();
    this.count += 1;
  }

  /** @returns {Trade | undefined} */
  get last() {
    return this.trades[0];
  }

  /** The way the price last moved: -1, 0 or 1. */
  get direction() {
    const [last, ...before] = this.trades;
    const other = before.find(({ price }) => price !== last.price);
    return other ? Math.sign(Number(last.price) - Number(other.price)) : 0;
  }
}
