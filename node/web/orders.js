// The latest orders of the user who is signed in, each as its newest event tells it.

/**
 * @typedef {"verified" | "unverified" | "unsigned"} Mark what became of the signature of an order's newest event
 * @typedef {{ id: number, symbol: string, side: "buy" | "sell", price: string, quantity: string, filled: string,
 *   status: string, mark: Mark }} Order
 */

// More rows than the panel shows, so that an order that still lives is found again.
export const KEPT_ORDERS = 100;

export class Orders {
  /** @type {Order[]} newest first: an exchange counts its orders */
  #orders = [];
  events = 0;
  verified = 0;

  /** @param {import("./stream.js").Message} message */
  take(message) {
    const { id, symbol, side, price, quantity, filled, status } = message.data;
    const order = { id, symbol, side, price, quantity, filled, status, mark: markOf(message) };
    this.events += 1;
    if (order.mark === "verified") this.verified += 1;
    // An order that is known keeps its place; one from before the sign-in is an old one.
    const at = this.#orders.findIndex((other) => other.id <= id);
    if (at < 0) this.#orders.push(order);
    else this.#orders.splice(at, this.#orders[at].id === id ? 1 : 0, order);
    if (this.#orders.length > KEPT_ORDERS) this.#orders.pop();
  }

  /** @param {number} count @returns {Order[]} newest first */
  latest(count) {
    return this.#orders.slice(0, count);
  }
}

/** @returns {Mark} */
function markOf({ signature, verified }) {
  if (signature === undefined) return "unsigned";
  return verified ? "verified" : "unverified";
}
