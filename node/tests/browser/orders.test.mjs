import assert from "node:assert/strict";
import { test } from "node:test";

import { KEPT_ORDERS, Orders } from "../../web/orders.js";

const event = (id, status = "accepted", more = {}) => ({
  stream: "orders.alice", sequence: id, previous: null, signature: "s", verified: true, ...more,
  data: { id, symbol: "btc_usdt", side: "buy", price: "1.5", quantity: "2", filled: "0", status },
});

test("orders are newest first, and each keeps its place while it changes", () => {
  const orders = new Orders();
  for (const id of [2, 3, 4]) orders.take(event(id));
  orders.take(event(3, "filled"));
  assert.deepEqual(orders.latest(2).map(({ id, status }) => [id, status]), [[4, "accepted"], [3, "filled"]]);
  // Accepted before anybody looked.
  orders.take(event(1, "cancelled"));
  assert.deepEqual(orders.latest(10).map(({ id }) => id), [4, 3, 2, 1]);
});

test("each order says what became of its newest event's signature; verified events are counted", () => {
  const orders = new Orders();
  orders.take(event(1));
  orders.take(event(1, "filled", { verified: false }));
  orders.take(event(2, "accepted", { verified: undefined }));
  orders.take(event(3, "accepted", { signature: undefined, verified: undefined }));
  assert.deepEqual(orders.latest(3).map(({ mark }) => mark), ["unsigned", "unverified", "unverified"]);
  assert.deepEqual([orders.events, orders.verified], [4, 1]);
});

test("the oldest orders are forgotten", () => {
  const orders = new Orders();
  for (let id = 1; id <= KEPT_ORDERS + 5; id += 1) orders.take(event(id));
  assert.deepEqual(orders.latest(KEPT_ORDERS * 2).map(({ id }) => id).at(-1), 6);
});
