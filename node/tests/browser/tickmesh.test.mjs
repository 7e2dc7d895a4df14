import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { TickmeshClient, backoff } from "../../web/tickmesh.js";

/** A socket whose other end is the test. */
class FakeSocket {
  /** @type {FakeSocket[]} */
  static all = [];
  readyState = 0;
  sent = [];

  constructor(url, protocols) {
    this.url = url;
    this.protocols = protocols;
    FakeSocket.all.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.readyState = 3;
  }

  say(message) {
    this.onmessage({ data: typeof message === "string" ? message : JSON.stringify(message) });
  }

  welcome(node = "eu-1") {
    this.readyState = 1;
    this.say({ event: "welcome", connection: "c1", node, region: "eu-west", limits: {} });
  }

  /** Answers the newest subscribe. */
  confirm(positions = {}, rejected = []) {
    const { id, streams } = this.asked("subscribe").at(-1);
    const refused = new Set(rejected.map(({ stream }) => stream));
    this.say({ event: "subscribed", id, streams: streams.filter((name) => !refused.has(name)), positions, rejected });
  }

  event(stream, sequence, previous, data = {}) {
    this.say({ stream, sequence, previous, data });
  }

  lose(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose({ code, reason });
  }

  asked(action) {
    return this.sent.filter((message) => message.action === action);
  }
}

const last = () => FakeSocket.all.at(-1);
const URLS = ["ws://eu/ws", "ws://us/ws", "ws://ap/ws"];

function start(names = ["trades.a"], options = {}) {
  const seen = [];
  const breaks = [];
  const states = [];
  const client = new TickmeshClient({
    urls: URLS, WebSocket: FakeSocket, random: () => 0.5, onState: (state) => states.push(state), ...options,
  });
  const subscription = client.subscribe(names, (message) => seen.push(message.sequence), { onBreak: (cause) => breaks.push(cause) });
  client.connect();
  return { client, subscription, seen, breaks, states };
}

beforeEach(() => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_000_000 });
  FakeSocket.all = [];
});

test("it subscribes after the welcome, and hands on events after the confirmation", () => {
  const { client, seen, states } = start(["trades.a", "depth.a"]);
  assert.equal(last().sent.length, 0, "nothing is sent before the welcome");
  last().welcome();
  assert.deepEqual(last().asked("subscribe")[0].streams, ["trades.a", "depth.a"]);
  last().event("trades.a", 5, 4);
  assert.deepEqual(seen, [], "leftovers before `subscribed` are not handed on");
  last().confirm({ "trades.a": { epoch: 7, sequence: 5 } });
  last().event("trades.a", 6, 5);
  last().event("depth.a", 1, null);
  last().event("other.b", 1, null);
  assert.deepEqual(seen, [6, 1]);
  assert.equal(client.stream("trades.a").sequence, 6);
  assert.deepEqual(states.map(({ phase }) => phase), ["connecting", "online"]);
  assert.equal(client.state.welcome.node, "eu-1");
});

test("gaps are told before the event that shows them, and counted", () => {
  const { client, seen, breaks } = start();
  last().welcome();
  last().confirm({ "trades.a": { epoch: 7, sequence: 10 } });
  last().event("trades.a", 11, 10);
  last().event("trades.a", 15, 11);
  assert.equal(client.stats.gaps, 0, "numbers need not be dense");
  last().event("trades.a", 19, 18);
  assert.deepEqual(seen, [11, 15, 19]);
  assert.deepEqual(breaks, [{ stream: "trades.a", kind: "gap", after: 15, before: 18 }]);
  assert.deepEqual([client.stats.gaps, client.stream("trades.a").gaps], [1, 1]);
});

test("the first event after the confirmation must link up with the confirmed position", () => {
  const { client } = start();
  last().welcome();
  last().confirm({ "trades.a": { epoch: 7, sequence: 10 } });
  last().event("trades.a", 13, 12);
  assert.equal(client.stats.gaps, 1);
});

test("duplicates are counted and dropped", () => {
  const { client, seen } = start();
  last().welcome();
  last().confirm();
  for (const [sequence, previous] of [[1, null], [2, 1], [2, 1], [1, null], [3, 2]]) last().event("trades.a", sequence, previous);
  assert.deepEqual(seen, [1, 2, 3]);
  assert.equal(client.stats.duplicates, 2);
  assert.equal(client.stats.gaps, 0);
});

test("an event without previous in mid-stream is neither a gap nor proof of none", () => {
  const { client, seen } = start();
  last().welcome();
  last().confirm();
  last().event("trades.a", 1, null);
  last().event("trades.a", 9, null);
  assert.deepEqual(seen, [1, 9]);
  assert.deepEqual([client.stats.gaps, client.stats.unlinked], [0, 1]);
});

test("a reset begins a new numbering", () => {
  const { client, seen, breaks } = start();
  last().welcome();
  last().confirm({ "trades.a": { epoch: 7, sequence: 100 } });
  last().say({ event: "reset", stream: "trades.a", epoch: 8 });
  last().event("trades.a", 1, null);
  assert.deepEqual(seen, [1]);
  assert.equal(breaks[0].kind, "reset");
  assert.deepEqual([client.stats.gaps, client.stats.duplicates], [0, 0]);
});

test("after a lost connection it comes back, subscribes again, and tells what it missed", () => {
  const { client, seen, breaks } = start();
  last().welcome();
  last().confirm({ "trades.a": { epoch: 7, sequence: 1 } });
  last().event("trades.a", 2, 1);
  last().lose();
  assert.equal(client.state.phase, "waiting");
  mock.timers.tick(250);
  assert.equal(FakeSocket.all.length, 2);
  last().welcome();
  assert.deepEqual(last().asked("subscribe")[0].streams, ["trades.a"]);
  last().confirm({ "trades.a": { epoch: 7, sequence: 9 } });
  last().event("trades.a", 10, 9);
  assert.deepEqual(seen, [2, 10]);
  assert.deepEqual(breaks, [{ stream: "trades.a", kind: "missed", after: 2, before: 9 }]);
  assert.deepEqual([client.stats.missed, client.stats.gaps, client.stats.duplicates], [1, 0, 0]);
});

test("nothing went by meanwhile: nothing is told", () => {
  const { client, breaks } = start();
  last().welcome();
  last().confirm({ "trades.a": { epoch: 7, sequence: 3 } });
  last().lose();
  mock.timers.tick(250);
  last().welcome();
  last().confirm({ "trades.a": { epoch: 7, sequence: 3 } });
  assert.deepEqual(breaks, []);
  assert.equal(client.stats.missed, 0);
});

test("an edge that is behind the one before sends old events again: dropped, no duplicates", () => {
  const { client, seen, breaks } = start();
  last().welcome();
  last().confirm();
  for (let i = 1; i <= 5; i += 1) last().event("trades.a", i, i - 1 || null);
  client.moveTo(["ws://us/ws"]);
  last().welcome("us-1");
  last().confirm({ "trades.a": { epoch: null, sequence: 3 } });
  for (let i = 4; i <= 7; i += 1) last().event("trades.a", i, i - 1);
  last().event("trades.a", 7, 6);
  assert.deepEqual(seen, [1, 2, 3, 4, 5, 6, 7]);
  assert.deepEqual([client.stats.replayed, client.stats.duplicates, client.stats.gaps], [2, 1, 0]);
  assert.deepEqual(breaks, []);
});

test("another epoch after a reconnect is told as a reset", () => {
  const { breaks, seen } = start();
  last().welcome();
  last().confirm({ "trades.a": { epoch: 7, sequence: 50 } });
  last().lose();
  mock.timers.tick(250);
  last().welcome();
  last().confirm({ "trades.a": { epoch: 8, sequence: 2 } });
  last().event("trades.a", 3, 2);
  assert.deepEqual(breaks.map(({ kind }) => kind), ["reset"]);
  assert.deepEqual(seen, [3]);
});

test("the same edge is tried once more, then the others in turn, ever later", () => {
  start();
  const urls = [];
  for (let i = 0; i < 7; i += 1) {
    urls.push(last().url);
    last().lose();
    mock.timers.tick(10_000);
  }
  assert.deepEqual(urls, [URLS[0], URLS[0], URLS[1], URLS[2], URLS[0], URLS[1], URLS[2]]);
});

test("the delay doubles up to ten seconds and is drawn from its upper half", () => {
  assert.deepEqual([1, 2, 3, 6].map((attempt) => backoff(attempt, () => 0)), [125, 250, 500, 4_000]);
  assert.deepEqual([1, 2, 7, 100].map((attempt) => backoff(attempt, () => 1)), [250, 500, 10_000, 10_000]);
});

test("a connection that ends right after its welcome does not reset the delay", () => {
  const { client } = start();
  const delays = [];
  for (let i = 0; i < 4; i += 1) {
    last().welcome();
    last().lose();
    delays.push(client.state.retryAt - Date.now());
    mock.timers.tick(10_000);
  }
  assert.deepEqual(delays, [187.5, 375, 750, 1_500]);
});

test("close codes that say so end it; a person can try again", () => {
  for (const code of [1002, 1008, 1009, 4401]) {
    const { client } = start();
    const sockets = FakeSocket.all.length;
    last().welcome();
    last().lose(code, "words");
    mock.timers.tick(60_000);
    assert.equal(client.state.phase, "closed");
    assert.equal(client.state.reason, "words");
    assert.equal(FakeSocket.all.length, sockets, String(code));
    client.retryNow();
    assert.equal(client.state.phase, "connecting");
    client.close();
  }
});

test("a draining edge is left for the next one after the time it names, and delivers until then", () => {
  const { client, seen } = start();
  last().welcome();
  last().confirm();
  last().say({ event: "draining", reconnectAfter: 1_000 });
  assert.equal(client.state.draining, true);
  last().event("trades.a", 1, null);
  assert.deepEqual(seen, [1]);
  mock.timers.tick(999);
  assert.equal(FakeSocket.all.length, 1, "never earlier than it said");
  mock.timers.tick(501);
  assert.deepEqual([FakeSocket.all.length, last().url], [2, URLS[1]]);
  assert.equal(FakeSocket.all[0].readyState, 3);
});

test("a close with 1001 leads to another edge at once", () => {
  start();
  last().welcome();
  last().lose(1001, "the edge is draining");
  mock.timers.tick(250);
  assert.equal(last().url, URLS[1]);
});

test("4429 waits longer", () => {
  const { client } = start();
  last().welcome();
  last().lose(4429);
  assert.ok(client.state.retryAt - Date.now() >= 1_000);
});

test("what a given-up socket still says is not heard", () => {
  const { client, seen } = start();
  const old = last();
  old.welcome();
  old.confirm();
  client.moveTo(["ws://us/ws"]);
  old.event("trades.a", 1, null);
  old.onclose({ code: 1006, reason: "" });
  assert.deepEqual(seen, []);
  assert.equal(client.state.phase, "connecting");
  assert.equal(FakeSocket.all.length, 2);
});

test("no welcome in time, or no sign of life: the next attempt", () => {
  const { client } = start();
  mock.timers.tick(8_000);
  assert.equal(client.state.phase, "waiting");
  mock.timers.tick(250);
  last().welcome();
  const sockets = FakeSocket.all.length;
  mock.timers.tick(10_000);
  assert.equal(client.state.phase, "online");
  mock.timers.tick(4_000);
  assert.notEqual(client.state.phase, "online");
  mock.timers.tick(1_000);
  assert.ok(FakeSocket.all.length > sockets);
});

test("heartbeats keep it alive", () => {
  const { client } = start();
  last().welcome();
  for (let i = 0; i < 10; i += 1) {
    mock.timers.tick(5_000);
    last().say({ event: "heartbeat", timestamp: Date.now() });
  }
  assert.equal(client.state.phase, "online");
  assert.equal(FakeSocket.all.length, 1);
});

test("round trips are those of its own pings", () => {
  const trips = [];
  start(["trades.a"], { onRoundTrip: (ms) => trips.push(ms) });
  last().welcome();
  const [{ id }] = last().asked("ping");
  last().say({ event: "pong", id: 999, timestamp: 1 });
  last().say({ event: "pong", id, timestamp: 1 });
  last().say({ event: "pong", id, timestamp: 1 });
  assert.equal(trips.length, 1);
  assert.ok(trips[0] >= 0);
});

test("a stream is left with its last subscriber, and what is still under way is dropped", () => {
  const { client, subscription, seen } = start();
  const other = [];
  const second = client.subscribe(["trades.a"], ({ sequence }) => other.push(sequence));
  last().welcome();
  last().confirm();
  last().event("trades.a", 1, null);
  subscription.unsubscribe();
  last().event("trades.a", 2, 1);
  assert.deepEqual(last().asked("unsubscribe"), []);
  second.unsubscribe();
  second.unsubscribe();
  assert.deepEqual(last().asked("unsubscribe").map(({ streams }) => streams), [["trades.a"]]);
  last().event("trades.a", 3, 2);
  assert.deepEqual([seen, other], [[1], [1, 2]]);
});

test("left and asked for again: an answer to the older request is not taken for the newer one", () => {
  const { client, subscription } = start();
  last().welcome();
  const first = last().asked("subscribe")[0];
  subscription.unsubscribe();
  const seen = [];
  client.subscribe(["trades.a"], ({ sequence }) => seen.push(sequence));
  last().say({ event: "subscribed", id: first.id, streams: ["trades.a"], positions: {}, rejected: [] });
  last().event("trades.a", 1, null);
  assert.deepEqual(seen, []);
  last().confirm({ "trades.a": { epoch: 7, sequence: 1 } });
  last().event("trades.a", 2, 1);
  assert.deepEqual(seen, [2]);
});

test("refusals are told; those that pass are asked again after a second", () => {
  const { client, breaks } = start(["trades.a", "nosuch.b"]);
  last().welcome();
  last().confirm({}, [
    { stream: "trades.a", code: "unavailable", message: "nobody knows yet" },
    { stream: "nosuch.b", code: "unknown_stream", message: "no such channel" },
  ]);
  assert.deepEqual(breaks.map(({ stream, code }) => [stream, code]), [["trades.a", "unavailable"], ["nosuch.b", "unknown_stream"]]);
  assert.equal(client.stream("nosuch.b").status, "rejected");
  mock.timers.tick(1_000);
  assert.deepEqual(last().asked("subscribe").at(-1).streams, ["trades.a"]);
});

test("many streams go in requests of 1,024", () => {
  start(Array.from({ length: 2_500 }, (_, i) => `trades.s${i}`));
  last().welcome();
  assert.deepEqual(last().asked("subscribe").map(({ streams }) => streams.length), [1024, 1024, 452]);
});

test("what is no JSON is counted, and the connection goes on", () => {
  const errors = [];
  const { client, seen } = start(["trades.a"], { onError: ({ code }) => errors.push(code) });
  last().welcome();
  last().confirm();
  last().say("{nonsense");
  last().say({ event: "error", code: "bad_request", message: "words" });
  last().say({ event: "from a later version" });
  last().event("trades.a", 1, null);
  assert.deepEqual([client.stats.errors, errors, seen], [2, ["bad_request"], [1]]);
});

test("close() ends it for good, until connect()", () => {
  const { client } = start();
  last().welcome();
  client.close();
  mock.timers.tick(60_000);
  assert.deepEqual([client.state.phase, FakeSocket.all.length], ["idle", 1]);
  client.connect();
  last().welcome();
  assert.deepEqual(last().asked("subscribe")[0].streams, ["trades.a"]);
});

const settled = () => new Promise((resolve) => setImmediate(resolve));

test("a token goes into the handshake, and a new one follows the warning", async () => {
  let count = 0;
  const { client } = start(["orders.alice"], { token: async () => `t${(count += 1)}` });
  assert.equal(client.state.phase, "connecting");
  await settled();
  assert.deepEqual(last().protocols, ["tickmesh.v1", "bearer.t1"]);
  last().welcome();
  last().say({ event: "warning", code: "token_expired", message: "soon", expiresAt: 1 });
  await settled();
  assert.deepEqual(last().asked("authenticate").map(({ token }) => token), ["t2"]);
  last().lose();
  mock.timers.tick(1000);
  await settled();
  assert.deepEqual(last().protocols, ["tickmesh.v1", "bearer.t3"], "asked for at each connection");
});

test("expired or revoked: one more attempt with a new token, then no more", async () => {
  const { client } = start(["orders.alice"], { token: () => "t" });
  await settled();
  last().welcome();
  mock.timers.tick(6000);
  for (const phase of ["waiting", "closed"]) {
    last().lose(4401, "revoked");
    assert.equal(client.state.phase, phase);
    mock.timers.tick(1000);
    await settled();
    if (phase === "waiting") last().welcome();
  }
});

test("no token to be had: the next attempt; and none after close()", async () => {
  let fails = true;
  const token = async () => {
    if (fails) throw new Error("signed out");
    return "t";
  };
  const { client } = start(["orders.alice"], { token });
  await settled();
  assert.equal(client.state.phase, "waiting");
  assert.match(client.state.reason, /signed out/);
  fails = false;
  mock.timers.tick(1000);
  client.close();
  await settled();
  assert.equal(FakeSocket.all.length, 0);
});

test("no edge at all is refused", () => {
  assert.throws(() => new TickmeshClient({ urls: [] }), TypeError);
});
