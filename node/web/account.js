// Who is signed in, and the panel of that user's orders. Users are the demo's inventions: a click signs in.

import { byId, make, setData, setText } from "./dom.js";
import { clock, integer, pair, price } from "./format.js";
import { Orders } from "./orders.js";
import { load, save } from "./storage.js";
import { expiryOf } from "./tokens.js";

const USERS = [["", "Nobody"], ["alice", "Alice"], ["bob", "Bob"]];

// As many as the panel is high, in style.css.
const ROWS = 6;

const MARKS = {
  verified: ["Verified", "The exchange signed this event, and the signature is good"],
  unverified: ["Not verified", "The signature is wrong, or this browser cannot check it"],
  unsigned: ["Unsigned", "The event has no signature"],
};

const STATUSES = { accepted: "Accepted", partially_filled: "Partly filled", filled: "Filled", cancelled: "Cancelled" };

class Row {
  #shown = null;

  constructor() {
    const cell = (name) => make("span", `order-${name}`, { role: "cell" });
    this.market = cell("market");
    this.side = cell("side");
    this.price = cell("price");
    this.quantity = cell("quantity");
    this.filled = cell("filled");
    this.status = cell("status");
    this.mark = cell("mark");
    this.base = document.createTextNode("");
    this.quote = make("span", "order-quote");
    this.market.append(this.base, this.quote);
    this.markText = make("span", "order-mark-text");
    this.mark.append(make("span", "check", { "aria-hidden": "true" }), this.markText);
    const cells = [this.market, this.side, this.price, this.quantity, this.filled, this.status, this.mark];
    this.node = make("div", "order", { role: "row" }, ...cells);
    this.node.hidden = true;
  }

  /** @param {import("./orders.js").Order | undefined} order */
  paint(order) {
    if (order === this.#shown) return;
    this.#shown = order;
    this.node.hidden = !order;
    if (!order) return;
    const { base, quote } = pair(order.symbol);
    const [mark, title] = MARKS[order.mark];
    setData(this.node, "order", order.id);
    setData(this.node, "status", order.status);
    setData(this.node, "mark", order.mark);
    setData(this.node, "direction", order.side === "sell" ? -1 : 1);
    setText(this.base, base);
    setText(this.quote, quote ? `/${quote}` : "");
    setText(this.side, order.side === "sell" ? "Sell" : "Buy");
    setText(this.price, price(order.price));
    setText(this.quantity, price(order.quantity));
    setText(this.filled, price(order.filled));
    setText(this.status, STATUSES[order.status] ?? order.status);
    setText(this.markText, mark);
    this.mark.title = title;
  }
}

export class Account {
  #controls;
  #onChange;
  #client = null;
  #subscription = null;
  #orders = new Orders();
  #refused = "";
  #expiresAt = null;
  #rows = Array.from({ length: ROWS }, () => new Row());
  /** @type {Map<string, HTMLElement>} */
  #buttons = new Map();
  #empty = byId("orders-empty");
  #state = byId("orders-state");
  #askFrame = () => {};

  user = "";

  /**
   * @param {import("./controls.js").Controls} controls
   * @param {() => void} onChange another user is signed in, and the edge is to be told
   */
  constructor(controls, onChange) {
    this.#controls = controls;
    this.#onChange = onChange;
    const kept = load("user");
    this.user = USERS.some(([user]) => user === kept) ? kept : "";
    for (const [user, name] of USERS) {
      const button = make("button", "", { type: "button", role: "radio", "data-user": user }, name);
      button.addEventListener("click", () => this.#signIn(user));
      this.#buttons.set(user, button);
      byId("users").append(button);
    }
    byId("orders").append(...this.#rows.map(({ node }) => node));
    byId("account").hidden = false;
    byId("desk").dataset.account = "true";
  }

  /** The token of who is signed in; null if nobody is. */
  token = async () => {
    if (!this.user) return null;
    const token = await this.#controls.token(this.user);
    this.#expiresAt = expiryOf(token);
    return token;
  };

  /** @param {import("./tickmesh.js").TickmeshClient} client @param {() => void} askFrame */
  use(client, askFrame) {
    this.#client = client;
    this.#askFrame = askFrame;
    this.#follow();
  }

  #signIn(user) {
    if (user === this.user) return;
    this.user = user;
    save("user", user);
    this.#subscription?.unsubscribe();
    this.#onChange();
    this.#follow();
  }

  #follow() {
    const orders = (this.#orders = new Orders());
    this.#subscription = null;
    this.#refused = "";
    this.#expiresAt = null;
    for (const [user, button] of this.#buttons) button.setAttribute("aria-checked", String(user === this.user));
    if (this.user) {
      const take = (message) => {
        orders.take(message);
        this.#askFrame();
      };
      const onBreak = ({ kind, message }) => {
        if (kind === "rejected") this.#refused = message ?? "refused by the edge";
        this.#askFrame();
      };
      this.#subscription = this.#client.subscribe([`orders.${this.user}`], take, { onBreak });
    }
    this.#askFrame();
  }

  paint() {
    const orders = this.#orders.latest(ROWS);
    this.#rows.forEach((row, i) => row.paint(orders[i]));
    const { events, verified } = this.#orders;
    this.#empty.hidden = orders.length > 0;
    const waiting = this.user ? "Waiting for the first order" : "Sign in to see private orders, signed by the exchange";
    setText(this.#empty, this.#refused || waiting);
    const until = this.#expiresAt === null ? "" : ` · token until ${clock(this.#expiresAt)}`;
    setText(this.#state, this.user ? `${integer(verified)} of ${integer(events)} events verified${until}` : "");
    setData(this.#state, "verified", verified);
    setData(this.#state, "events", events);
  }
}
