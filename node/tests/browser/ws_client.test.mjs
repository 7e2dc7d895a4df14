// A WebSocket client that nobody here wrote (npm `ws`) speaks protocol v1 with a running edge.
//
//     TICKMESH_WS_URL=ws://127.0.0.1:8080/ws node --test ws_client.test.mjs
//
// TICKMESH_SYMBOL names a market of that edge that moves (default btc_usdt).

import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import WebSocket from "ws";

const URL = process.env.TICKMESH_WS_URL;
const SYMBOL = process.env.TICKMESH_SYMBOL ?? "btc_usdt";
const DEADLINE_MS = 20_000;

const skip = URL ? false : "TICKMESH_WS_URL is not set";
const opened = [];

afterEach(() => {
  for (const socket of opened.splice(0)) socket.terminate();
});

/** A connection that keeps what it received, and can wait for what it will. */
class Connection {
  messages = [];
  #wake = () => {};

  static async open(url = URL) {
    const connection = new Connection(new WebSocket(url));
    await connection.next("welcome", ({ event }) => event === "welcome");
    return connection;
  }

  constructor(socket) {
    this.socket = socket;
    opened.push(socket);
    socket.on("message", (bytes, isBinary) => {
      assert.equal(isBinary, false, "text frames only");
      this.messages.push(JSON.parse(bytes.toString()));
      this.#wake();
    });
    socket.on("close", (code, reason) => {
      this.closed = { code, reason: reason.toString() };
      this.#wake();
    });
    socket.on("pong", (payload) => {
      this.pong = payload.toString();
      this.#wake();
    });
    socket.on("error", (error) => {
      this.error = error;
      this.#wake();
    });
  }

  send(message) {
    this.socket.send(typeof message === "string" ? message : JSON.stringify(message));
  }

  /** Waits until `holds()`; `what` names it if that never comes. */
  async until(what, holds) {
    const end = Date.now() + DEADLINE_MS;
    while (!holds()) {
      const left = end - Date.now();
      if (left <= 0) assert.fail(`waited ${DEADLINE_MS} ms for: ${what}; error ${this.error}, closed ${JSON.stringify(this.closed)}`);
      await new Promise((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, Math.min(left, 100));
      });
    }
  }

  /** The first message, received from `from` on, that `holds`. */
  async next(what, holds, from = 0) {
    let found;
    await this.until(what, () => (found = this.messages.slice(from).find(holds)) !== undefined);
    return found;
  }

  data(stream, from = 0) {
    return this.messages.slice(from).filter((message) => message.event === undefined && message.stream === stream);
  }
}

/** Each event follows the one before: in order, once, without a gap. A snapshot says itself where it stands, and replaces what
 * was before: the first one may be older than the position that was confirmed. */
function assertLinked(events, position) {
  let last = position?.sequence ?? null;
  for (const { sequence, previous, snapshot } of events) {
    assert.ok(Number.isSafeInteger(sequence), `sequence ${sequence}`);
    if (last !== null && !snapshot) {
      assert.ok(sequence > last, `${sequence} after ${last}`);
      assert.ok(previous !== null && previous <= last, `previous ${previous} of ${sequence}, but the last was ${last}`);
    }
    last = sequence;
  }
}

test("welcome, subscribe, data in order, unsubscribe, and then no more of that stream", { skip }, async () => {
  const connection = await Connection.open();
  const [welcome] = connection.messages;
  assert.equal(welcome.event, "welcome", "the first message");
  for (const field of ["connection", "node", "region"]) assert.equal(typeof welcome[field], "string", field);
  assert.ok(welcome.limits.streams > 0);

  const streams = [`trades.${SYMBOL}`, `depth.${SYMBOL}`];
  connection.send({ action: "subscribe", id: "first", streams });
  const subscribed = await connection.next("subscribed", ({ event }) => event === "subscribed");
  assert.equal(subscribed.id, "first");
  assert.deepEqual([...subscribed.streams].sort(), [...streams].sort());
  assert.deepEqual(subscribed.rejected, []);
  const before = connection.messages.slice(0, connection.messages.indexOf(subscribed));
  assert.deepEqual(before.filter(({ event }) => event === undefined), [], "confirmed before the first data");

  await connection.until("twenty trades and diffs", () => streams.every((stream) => connection.data(stream).length >= 20));
  for (const stream of streams) assertLinked(connection.data(stream), subscribed.positions[stream]);
  const trade = connection.data(streams[0])[0].data;
  for (const field of ["price", "quantity", "side"]) assert.equal(typeof trade[field], "string", `${field} of a trade`);
  assert.match(trade.side, /^(buy|sell)$/);

  connection.send({ action: "unsubscribe", id: 2, streams: [streams[0]] });
  const unsubscribed = await connection.next("unsubscribed", ({ event }) => event === "unsubscribed");
  assert.deepEqual(unsubscribed.streams, [streams[0]]);
  const left = connection.messages.indexOf(unsubscribed) + 1;
  // The other stream goes on; meanwhile trades would have come too, as they did before.
  await connection.until("the other stream to go on", () => connection.data(streams[1], left).length >= 30);
  assert.deepEqual(connection.data(streams[0], left), []);
  assertLinked(connection.data(streams[1]), subscribed.positions[streams[1]]);

  const from = connection.messages.length;
  connection.send({ action: "streams", id: 3 });
  const listed = await connection.next("the list of subscriptions", ({ event }) => event === "streams", from);
  assert.deepEqual(listed.streams, [streams[1]]);
});

test("a name that is none is refused by itself", { skip }, async () => {
  const connection = await Connection.open();
  connection.send({ action: "subscribe", id: 1, streams: ["No Such Stream", `trades.${SYMBOL}`] });
  const { streams, rejected } = await connection.next("subscribed", ({ event }) => event === "subscribed");
  assert.deepEqual(streams, [`trades.${SYMBOL}`]);
  assert.deepEqual(rejected.map(({ stream }) => stream), ["No Such Stream"]);
  assert.equal(rejected[0].code, "unknown_stream");
  assert.ok(rejected[0].message.length > 0);
});

test("pings: those of the protocol and those of RFC 6455", { skip }, async () => {
  const connection = await Connection.open();
  connection.send({ action: "ping", id: null });
  connection.send({ action: "ping", id: 7 });
  const pong = await connection.next("pong", ({ event, id }) => event === "pong" && id === 7);
  assert.ok(Math.abs(pong.timestamp - Date.now()) < 60_000, "milliseconds since 1970");
  connection.socket.ping("payload");
  await connection.until("a pong frame", () => connection.pong === "payload");
});

test("bad JSON and unknown actions are errors, and the connection goes on", { skip }, async () => {
  const connection = await Connection.open();
  const cases = [
    ["{nonsense", "bad_request", undefined],
    ["[1,2,3]", "bad_request", undefined],
    [{ action: "dance", id: 5 }, "unknown_action", 5],
    [{ action: "subscribe", id: 6 }, "bad_request", 6],
  ];
  for (const [message, code, id] of cases) {
    const from = connection.messages.length;
    connection.send(message);
    const error = await connection.next(`an error for ${JSON.stringify(message)}`, ({ event }) => event === "error", from);
    assert.equal(error.code, code);
    assert.equal(error.id, id);
    assert.ok(error.message.length > 0);
  }
  connection.send({ action: "ping", id: 1 });
  await connection.next("pong", ({ event }) => event === "pong");
  assert.equal(connection.closed, undefined);
});

test("ten errors in a row close with 1008", { skip }, async () => {
  const connection = await Connection.open();
  for (let i = 0; i < 10; i += 1) connection.send("{nonsense");
  await connection.until("the close", () => connection.closed);
  assert.equal(connection.closed.code, 1008);
  assert.ok(connection.closed.reason.length > 0, "a reason in words");
});
