// Every frame between a running demo and foreign clients is exactly one message of docs/asyncapi.yaml, and every message of the
// document is seen. TICKMESH_BINARY names the command:
//
//     TICKMESH_BINARY=target/debug/tickmesh node --test traffic.test.mjs

import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import { DEADLINE_MS } from "./changes.mjs";
import { Connection, Traffic } from "./client.mjs";
import { Demo, token } from "./demo.mjs";
import { Document } from "./document.mjs";
import { runSessions } from "./sessions.mjs";

/** Messages that the demo does not send, and why. Their examples are read by protocol/tests/asyncapi.rs. */
const NEVER = new Map([["reset", "the demo's log is never recreated"]]);

const [TRADES, DEPTH, BOOK, TICKER] = ["trades", "depth", "book", "ticker"].map((channel) => `${channel}.btc_usdt`);
const [TICKERS, ORDERS] = ["ticker.global", "orders.alice"];
/** Another partition of the log. */
const OTHER = "trades.eth_usdt";
/** Of bad requests, and of requests that come too fast, after which an edge closes. */
const IN_A_ROW = 10;
/** More requests than one connection may make at once. */
const TOO_FAST = 2_000;
const RETRY_MS = 200;

const traffic = new Traffic(await Document.load());
let demo;
let opened = [];

before(async () => {
  demo = await Demo.start();
});

after(() => demo?.process.kill("SIGKILL"));

afterEach(() => {
  for (const connection of opened.splice(0)) connection.cut();
  assert.deepEqual(traffic.faults.splice(0), []);
});

async function attempt({ edge = 0, query = "", ...options } = {}) {
  const connection = await Connection.open(traffic, demo.edges[edge] + query, options);
  opened.push(connection);
  return connection;
}

async function open(options) {
  const connection = await attempt(options);
  assert.equal(connection.welcome?.event, "welcome", JSON.stringify(connection.refusal));
  return connection;
}

/** Subscribes to a stream, and takes its next event. */
async function eventOf(client, stream) {
  await client.ask({ action: "subscribe", streams: [stream] });
  return client.event(stream);
}

const codes = ({ rejected }) => Object.fromEntries(rejected.map(({ stream, code }) => [stream, code]));

test("streams: subscribe, list, unsubscribe", async () => {
  const client = await open();
  assert.equal(client.welcome.user, undefined);
  const good = [TRADES, DEPTH, BOOK, TICKER, TICKERS];
  const bad = ["Trades.BTC", "unheard_of.btc_usdt", ORDERS];
  const subscribed = await client.ask({ action: "subscribe", streams: [...good, ...bad, TRADES] });
  assert.deepEqual(subscribed.streams, good);
  assert.deepEqual(codes(subscribed), {
    "Trades.BTC": "unknown_stream",
    "unheard_of.btc_usdt": "unknown_stream",
    [ORDERS]: "forbidden",
  });
  for (const stream of good) await client.event(stream);
  const listed = await client.ask({ action: "streams" });
  assert.deepEqual(listed.streams, [...good].sort());
  const ended = await client.ask({ action: "unsubscribe", streams: [...good, OTHER, "?"] });
  assert.deepEqual(ended.streams, good);
  assert.deepEqual(codes(ended), { [OTHER]: "bad_request", "?": "unknown_stream" });
  await client.next("a heartbeat", ({ event }) => event === "heartbeat");
  assert.equal((await client.end()).code, 1000);
});

test("more streams than one connection may have", async () => {
  const client = await open();
  const most = client.welcome.limits.streams;
  await client.ask({ action: "subscribe", streams: [TRADES] });
  const streams = Array.from({ length: most }, (_, index) => `trades.none_${index}`);
  const { rejected, positions } = await client.ask({ action: "subscribe", streams });
  assert.deepEqual(rejected.map(({ code }) => code), ["too_many_streams"]);
  assert.deepEqual(positions, {}, "they have no events");
});

test("requests without an id, with every kind of id, and with fields that nobody knows", async () => {
  const client = await open();
  for (const id of [null, true, -5, 1.5, "", "é".repeat(60)]) {
    client.send({ action: "ping", id });
    await client.next("pong", (message) => message.event === "pong" && message.id === id);
  }
  client.send({ more: { deep: [1] }, action: "ping" });
  assert.equal((await client.next("pong", ({ event }) => event === "pong")).id, undefined);
  client.send({ action: "subscribe", streams: [TRADES] });
  await client.next("subscribed", ({ event }) => event === "subscribed");
});

test("bad requests", async () => {
  const resume = (rest) => JSON.stringify({ action: "resume", ...rest });
  const at = (position) => resume({ positions: { [TRADES]: position } });
  for (const frame of [
    "not JSON",
    "",
    "[]",
    "null",
    '"ping"',
    "{}",
    '{"action":7}',
    '{"action":"Subscribe"}',
    '{"action":"ping","id":[1]}',
    JSON.stringify({ action: "ping", id: "x".repeat(127) }),
    '{"action":"subscribe"}',
    '{"action":"subscribe","streams":[]}',
    '{"action":"subscribe","streams":"trades.btc_usdt"}',
    '{"action":"subscribe","streams":[1]}',
    JSON.stringify({ action: "unsubscribe", streams: Array(1025).fill("a.b") }),
    '{"action":"authenticate"}',
    '{"action":"authenticate","token":["a"]}',
    resume({}),
    resume({ streams: [TRADES] }),
    resume({ lastSequence: 1 }),
    resume({ streams: [TRADES], lastSequence: "1" }),
    resume({ streams: [TRADES], lastSequence: 1, positions: { [TRADES]: 1 } }),
    resume({ positions: {} }),
    ...[-1, 1.5, 2 ** 60, "1", [], {}, { epoch: "FE", sequence: 1 }, { epoch: "00000000000000fe" }].map(at),
  ]) {
    const client = await open();
    client.sendWrongly(frame);
    const { code } = await client.next(`the answer to ${frame}`, ({ event }) => event === "error");
    assert.equal(code, frame.includes('"Subscribe"') ? "unknown_action" : "bad_request", frame);
    await client.end();
  }
});

test("connections that an edge closes: binary frames in a row, too fast, too large, not UTF-8, no frames", async () => {
  const binary = await open();
  for (let count = 0; count < IN_A_ROW; count++) binary.sendWrongly(Buffer.from([count]));
  assert.equal((await binary.close()).code, 1008);

  const fast = await open();
  for (let count = 0; count < TOO_FAST; count++) fast.send({ action: "ping", id: count });
  await fast.next("a refusal", ({ code }) => code === "rate_limited");
  assert.equal((await fast.close()).code, 4429);

  const large = await open();
  large.sendWrongly("x".repeat(large.welcome.limits.message_bytes + 1));
  assert.equal((await large.close()).code, 1009);

  for (const [bytes, code] of [
    // Masked with zeros, as a client must mask: a text that is not UTF-8, and an opcode that there is not.
    [[0x81, 0x81, 0, 0, 0, 0, 0xff], 1007],
    [[0x83, 0x80, 0, 0, 0, 0], 1002],
  ]) {
    const raw = await open();
    raw.socket._socket.write(Buffer.from(bytes));
    assert.equal((await raw.close()).code, code);
  }
});

test("credentials in the handshake", async () => {
  const alice = token("--sub", "alice");
  for (const options of [
    { headers: { Authorization: `Bearer ${alice}` } },
    { protocols: ["tickmesh.v1", `bearer.${alice}`] },
    { query: `?token=${alice}` },
  ]) {
    assert.equal((await open(options)).welcome.user, "alice");
  }
  for (const options of [
    { headers: { Authorization: `Bearer ${alice}x` } },
    { headers: { Authorization: "Basic YTpi" } },
    { headers: { "X-API-Key": "a key that nobody has" } },
    { query: "?api_key=none" },
    { query: "?token=" },
  ]) {
    const { refusal } = await attempt(options);
    assert.deepEqual([refusal?.status, refusal?.error.code], [401, "unauthorized"], JSON.stringify(options));
    assert.match(refusal.headers["www-authenticate"], /^Bearer /);
  }
  const plain = await fetch(demo.edges[0].replace(/^ws/, "http"));
  traffic.refused(await plain.text());
  assert.equal(plain.status, 426);
});

test("credentials in session", async () => {
  const client = await open();
  for (const [text, code] of [["a.b.c", "unauthorized"], ["", "unauthorized"]]) {
    assert.equal((await client.ask({ action: "authenticate", token: text })).code, code);
  }
  const { user, expiresAt } = await client.ask({ action: "authenticate", token: token("--sub", "alice") });
  assert.equal(user, "alice");
  assert.ok(expiresAt > Date.now());
  const refused = await client.ask({ action: "authenticate", token: token("--sub", "bob") });
  assert.equal(refused.code, "forbidden", "another user's");
});

test("credentials that end: a warning, 4401, and then 401", async () => {
  const query = `?token=${token("--sub", "alice", "--ttl", "2s")}`;
  const client = await open({ query });
  const { code, expiresAt } = await client.next("a warning", ({ event }) => event === "warning");
  assert.equal(code, "token_expired");
  assert.ok(expiresAt < Date.now() + DEADLINE_MS);
  assert.equal((await client.close()).code, 4401);
  // Clocks may differ by some seconds, so the edge goes on to accept it for as long.
  const deadline = Date.now() + DEADLINE_MS;
  let refusal;
  while (!(refusal = (await attempt({ query })).refusal)) {
    assert.ok(Date.now() < deadline, "an expired token is still accepted");
    await pause(RETRY_MS);
  }
  assert.deepEqual([refusal.status, refusal.error.code], [401, "token_expired"]);
});

test("resume at an edge of another region", async () => {
  const client = await open();
  await client.ask({ action: "subscribe", streams: [TRADES, TICKER, OTHER] });
  await client.event(TICKER);
  await client.event(OTHER);
  const { sequence } = await client.event(TRADES);
  const { positions } = await client.ask({ action: "streams" });
  await client.end();

  const other = await open({ edge: 1 });
  const at = { [TRADES]: { ...positions[TRADES], sequence }, [TICKER]: sequence, [TICKERS]: null };
  const resumed = await other.ask({ action: "resume", positions: at });
  assert.deepEqual(resumed.rejected, []);
  const [trades, ticker, tickers] = [TRADES, TICKER, TICKERS].map((name) =>
    resumed.streams.find(({ stream }) => stream === name),
  );
  assert.deepEqual(trades.from, at[TRADES]);
  assert.equal(ticker.from.sequence, sequence);
  assert.equal(tickers.from, null);
  assert.ok(tickers.replayed > 0);
  const again = await other.ask({ action: "resume", positions: { [TRADES]: null } });
  assert.deepEqual(codes(again), { [TRADES]: "bad_request" });

  const last = await open({ edge: 2 });
  const both = await last.ask({ action: "resume", streams: [TRADES, DEPTH], lastSequence: sequence });
  assert.deepEqual(both.rejected, []);
  const mixed = await open({ edge: 2 });
  const bad = await mixed.ask({ action: "resume", streams: [TRADES, OTHER], lastSequence: sequence });
  assert.deepEqual(codes(bad), { [TRADES]: "bad_request", [OTHER]: "bad_request" });
});

test("resume from where nobody has been", async () => {
  const client = await open();
  const { sequence } = await eventOf(client, TRADES);
  const { positions } = await client.ask({ action: "streams" });
  const { epoch } = positions[TRADES];
  const other = await open({ edge: 1 });
  const resumed = await other.ask({
    action: "resume",
    positions: {
      [TRADES]: { epoch, sequence: sequence + 10_000_000 },
      [TICKER]: { epoch: "0000000000000001", sequence: 1 },
      "unheard_of.x": null,
      "?": 1,
    },
  });
  assert.deepEqual(codes(resumed), {
    [TRADES]: "resume_gap",
    [TICKER]: "epoch_changed",
    "unheard_of.x": "unknown_stream",
    "?": "unknown_stream",
  });
  // Both begin all the same.
  assert.deepEqual(Object.keys(resumed.positions), [TICKER, TRADES]);
  await other.event(TRADES);
});

test("the user's own orders", async () => {
  const client = await open({ query: `?token=${token("--sub", "alice")}` });
  const { sequence } = await eventOf(client, ORDERS);
  const { positions } = await client.ask({ action: "streams" });
  const other = await open({ edge: 1, query: `?token=${token("--sub", "alice")}` });
  const at = { ...positions[ORDERS], sequence };
  const resumed = await other.ask({ action: "resume", positions: { [ORDERS]: at } });
  assert.deepEqual(resumed.rejected, []);
  const bob = await open({ query: `?token=${token("--sub", "bob")}` });
  assert.deepEqual(codes(await bob.ask({ action: "subscribe", streams: [ORDERS] })), { [ORDERS]: "forbidden" });
});

test("the sessions of docs/protocol.md", async () => {
  assert.notEqual(await runSessions(traffic, demo.edges), 0);
});

test("an edge that goes", async () => {
  const client = await open();
  const code = demo.end();
  await client.next("draining", ({ event }) => event === "draining");
  assert.equal((await client.close()).code, 1001);
  assert.equal(await code, 0);
});

test("every message of the document was seen", () => {
  const unseen = [...traffic.document.messages.keys()].filter((name) => !traffic.seen.has(name));
  assert.deepEqual(unseen.sort(), [...NEVER.keys()].sort());
});
