import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { TickmeshClient } from "../../web/tickmesh.js";
import { FakeSocket, at, last, start } from "./fake_socket.mjs";

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
  last().confirm({ "trades.a": at(5) });
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
  last().confirm({ "trades.a": at(10) });
  last().event("trades.a", 11, 10);
  last().event("trades.a", 15, 11);
  assert.equal(client.stats.gaps, 0, "numbers need not be dense");
  last().event("trades.a", 19, 18);
  last().event("trades.a", 20, null);
  assert.deepEqual(seen, [11, 15, 19, 20]);
  assert.deepEqual(breaks, [
    { stream: "trades.a", kind: "gap", after: 15, before: 18, sequence: 19 },
    { stream: "trades.a", kind: "gap", after: 19, before: null, sequence: 20 },
  ]);
  assert.deepEqual([client.stats.gaps, client.stream("trades.a").gaps], [2, 2]);
});

test("the first event after the confirmation must link up with the confirmed position", () => {
  const { client } = start();
  last().welcome();
  last().confirm({ "trades.a": at(10) });
  last().event("trades.a", 13, 12);
  assert.equal(client.stats.gaps, 1);
});

test("the first event of a stream that had none must have nothing before it", () => {
  for (const [previous, gaps] of [[null, 0], [4, 1]]) {
    const { client } = start();
    last().welcome();
    last().confirm();
    last().event("trades.a", 5, previous);
    assert.equal(client.stats.gaps, gaps);
    client.close();
  }
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

test("a snapshot and a conflated event replace what was before: their position counts, and no gap is told", () => {
  const { client, seen, breaks } = start();
  const flags = [];
  client.subscribe(["trades.a"], ({ snapshot, conflated }) => flags.push(snapshot ? "snapshot" : conflated ? "conflated" : ""));
  last().welcome();
  last().confirm({ "trades.a": at(10) });
  last().event("trades.a", 10, 9, { snapshot: true });
  last().event("trades.a", 11, 10);
  last().event("trades.a", 30, 29, { conflated: true });
  last().event("trades.a", 30, 29, { conflated: true });
  last().event("trades.a", 31, 30);
  last().event("trades.a", 50, 49, { snapshot: true });
  last().event("trades.a", 51, 50);
  assert.deepEqual(seen, [10, 11, 30, 31, 50, 51]);
  assert.deepEqual(flags, ["snapshot", "", "conflated", "", "snapshot", ""]);
  assert.deepEqual([breaks, client.stats.gaps, client.stats.duplicates], [[], 0, 1]);
});

test("a reset begins a new numbering", () => {
  const { client, seen, breaks } = start();
  last().welcome();
  last().confirm({ "trades.a": at(100) });
  last().say({ event: "reset", stream: "trades.a", epoch: 8 });
  last().event("trades.a", 1, null);
  assert.deepEqual(seen, [1]);
  assert.equal(breaks[0].kind, "reset");
  assert.deepEqual([client.stats.gaps, client.stats.duplicates], [0, 0]);
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
  last().confirm({ "trades.a": at(1) });
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

test("no edge at all is refused", () => {
  assert.throws(() => new TickmeshClient({ urls: [] }), TypeError);
});
