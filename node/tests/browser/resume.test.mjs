// The client resumes its streams after a lost connection.

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { TickmeshClient } from "../../web/tickmesh.js";
import { EPOCH, FakeSocket, at, last, start } from "./fake_socket.mjs";

beforeEach(() => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_000_000 });
  FakeSocket.all = [];
});

/** A client that stands somewhere and has lost its connection, and is at the next edge. */
function comeBack(names, positions) {
  const started = start(names);
  last().welcome();
  last().confirm(positions);
  last().lose();
  mock.timers.tick(250);
  last().welcome("us-1");
  return started;
}

test("after a lost connection each stream goes on where it stood, at the next edge", () => {
  const { client, seen, breaks } = start(["trades.a", "depth.a", "orders.alice"]);
  last().welcome();
  last().confirm({ "trades.a": at(1), "depth.a": at(8) });
  last().event("trades.a", 2, 1);
  last().lose();
  mock.timers.tick(250);
  assert.equal(last().url, "ws://us/ws");
  client.subscribe(["ticker.a"], () => undefined);
  last().welcome("us-1");
  assert.deepEqual(last().asked("resume").map(({ positions }) => positions), [
    { "trades.a": at(2), "depth.a": at(8), "orders.alice": null },
  ]);
  assert.deepEqual(last().asked("subscribe").map(({ streams }) => streams), [["ticker.a"]], "what is new is subscribed");
  for (const sequence of [3, 4]) last().event("trades.a", sequence, sequence - 1);
  last().event("orders.alice", 1, null);
  last().resumed({ "trades.a": 2, "orders.alice": 1 });
  last().event("trades.a", 5, 4);
  assert.deepEqual(seen, [2, 3, 4, 1, 5]);
  const { resumed, replayed, gaps, duplicates } = client.stats;
  assert.deepEqual([resumed, replayed, gaps, duplicates], [3, 3, 0, 0]);
  assert.deepEqual(breaks, []);
  assert.deepEqual(client.positions["depth.a"], at(8));
});

test("what comes again is dropped, and what is missing is told, in a replay as well", () => {
  const { client, seen, breaks } = comeBack(["trades.a"], { "trades.a": at(5) });
  last().event("trades.a", 5, 4);
  last().event("trades.a", 6, 5);
  last().event("trades.a", 9, 8);
  last().resumed({ "trades.a": 3 });
  assert.deepEqual(seen, [6, 9]);
  assert.deepEqual(breaks, [{ stream: "trades.a", kind: "gap", after: 6, before: 8, sequence: 9 }]);
  assert.deepEqual([client.stats.gaps, client.stats.duplicates], [1, 1]);
});

test("a gap that the edge tells is handed on with the oldest event there is, and the stream goes on", () => {
  const { client, seen, breaks } = comeBack(["trades.a", "depth.a"], { "trades.a": at(5), "depth.a": at(5) });
  last().event("trades.a", 6, 5);
  last().resumed({}, { "trades.a": at(900) }, [{ stream: "trades.a", code: "resume_gap", message: "no longer kept", oldest: at(500) }]);
  last().event("trades.a", 901, 900);
  last().event("depth.a", 6, 5);
  assert.deepEqual(seen, [6, 901, 6]);
  assert.deepEqual(breaks, [{
    stream: "trades.a", kind: "gap", after: 6, before: 900, sequence: null,
    code: "resume_gap", message: "no longer kept", oldest: at(500),
  }]);
  assert.deepEqual([client.stats.gaps, client.stats.resumed], [1, 1]);
});

test("another epoch that cannot be reached without loss is a gap and a reset", () => {
  const { seen, breaks } = comeBack(["trades.a"], { "trades.a": at(50) });
  const next = "0000000000000008";
  last().resumed({}, { "trades.a": at(2, next) }, [{ stream: "trades.a", code: "epoch_changed", message: "numbered anew" }]);
  last().event("trades.a", 3, 2);
  assert.deepEqual(breaks.map(({ kind, code }) => [kind, code]), [["gap", "epoch_changed"], ["reset", undefined]]);
  assert.deepEqual(seen, [3]);
});

test("a replay may cross into another epoch; until its first event the stream is resumed from the old one", () => {
  const { client, seen, breaks } = comeBack(["trades.a"], { "trades.a": at(5) });
  const next = "0000000000000008";
  last().event("trades.a", 6, 5);
  last().say({ event: "reset", stream: "trades.a", epoch: next });
  assert.deepEqual(client.positions, { "trades.a": at(6) });
  last().lose();
  mock.timers.tick(1_000);
  last().welcome("ap-1");
  assert.deepEqual(last().asked("resume")[0].positions, { "trades.a": at(6) });
  last().event("trades.a", 7, 6);
  assert.deepEqual(client.positions, { "trades.a": at(7) }, "what was lost with the connection comes again");
  last().say({ event: "reset", stream: "trades.a", epoch: next });
  last().event("trades.a", 0, null);
  last().event("trades.a", 1, 0);
  assert.deepEqual(client.positions, { "trades.a": at(1, next) });
  assert.deepEqual(seen, [6, 7, 0, 1]);
  assert.deepEqual(breaks.map(({ kind }) => kind), ["reset", "reset"]);
});

test("a stream that was empty learns its epoch with its first event", () => {
  const { client } = start();
  last().welcome();
  last().confirm();
  last().event("trades.a", 3, null);
  last().event("trades.a", 4, 3);
  assert.deepEqual(client.positions, { "trades.a": 4 }, "in the epoch in which the stream is");
  const [{ id }, ...more] = last().asked("streams");
  assert.deepEqual(more, [], "asked once");
  last().say({ event: "streams", id, streams: ["trades.a"], positions: { "trades.a": at(4) } });
  assert.deepEqual(client.positions, { "trades.a": at(4) });
  last().event("trades.a", 5, 4);
  assert.equal(last().asked("streams").length, 1);
});

test("a signed event tells the epoch itself", () => {
  const { client } = start();
  last().welcome();
  last().confirm();
  last().event("trades.a", 3, null, { epoch: EPOCH });
  assert.deepEqual(client.positions, { "trades.a": at(3) });
  assert.deepEqual(last().asked("streams"), []);
});

test("positions that were kept are resumed from, by another client", () => {
  const positions = { "trades.a": at(7), "depth.a": null, "ticker.a": at(1) };
  const { client, seen } = start(["trades.a", "depth.a", "book.a"], { positions });
  last().welcome();
  assert.deepEqual(last().asked("resume")[0].positions, { "trades.a": at(7), "depth.a": null });
  assert.deepEqual(last().asked("subscribe")[0].streams, ["book.a"]);
  last().event("trades.a", 8, 7);
  last().resumed({ "trades.a": 1 });
  assert.deepEqual(seen, [8]);
  assert.deepEqual(client.positions, { ...positions, "trades.a": at(8) }, "what is not subscribed yet is kept");
});

test("a refusal that passes leaves the position where it is, one that does not ends the stream", () => {
  const { breaks, seen } = comeBack(["trades.a", "orders.alice"], { "trades.a": at(5), "orders.alice": at(5) });
  last().resumed({}, {}, [
    { stream: "trades.a", code: "unavailable", message: "nobody knows yet" },
    { stream: "orders.alice", code: "forbidden", message: "not yours" },
  ]);
  assert.deepEqual(breaks.map(({ kind, code }) => [kind, code]), [["rejected", "unavailable"], ["rejected", "forbidden"]]);
  mock.timers.tick(1_000);
  assert.deepEqual(last().asked("resume").at(-1).positions, { "trades.a": at(5) });
  last().event("trades.a", 6, 5);
  last().resumed({ "trades.a": 1 });
  assert.deepEqual(seen, [6]);
});

test("a request that is refused as a whole is asked again", () => {
  const { client } = comeBack(["trades.a"], { "trades.a": at(5) });
  const [{ id }] = last().asked("resume");
  last().say({ event: "error", id, code: "rate_limited", message: "slower" });
  mock.timers.tick(1_000);
  assert.equal(last().asked("resume").length, 2);
  last().say({ event: "error", id, code: "rate_limited", message: "of the one before" });
  assert.equal(client.stream("trades.a").status, "resuming");
});

test("lost again in the middle of a replay: resumed from the last event that came", () => {
  const { seen } = comeBack(["trades.a"], { "trades.a": at(5) });
  last().event("trades.a", 6, 5);
  last().lose();
  mock.timers.tick(1_000);
  last().welcome("ap-1");
  assert.deepEqual(last().asked("resume")[0].positions, { "trades.a": at(6) });
  last().event("trades.a", 7, 6);
  assert.deepEqual(seen, [6, 7]);
});

test("left in the middle of a replay, and asked for again: nothing of the old one counts", () => {
  const { client, subscription } = comeBack(["trades.a"], { "trades.a": at(5) });
  subscription.unsubscribe();
  assert.deepEqual(last().asked("unsubscribe")[0].streams, ["trades.a"]);
  const seen = [];
  client.subscribe(["trades.a"], ({ sequence }) => seen.push(sequence));
  last().event("trades.a", 6, 5);
  last().resumed({ "trades.a": 1 });
  last().confirm({ "trades.a": at(9) });
  last().event("trades.a", 10, 9);
  assert.deepEqual([seen, client.stats.resumed], [[10], 0]);
});

test("requests keep to the edge's limits of names and bytes", () => {
  const names = Array.from({ length: 3_000 }, (_, i) => `trades.a_market_with_a_long_name_${i}`);
  const positions = Object.fromEntries(names.map((name) => [name, at(2 ** 53 - 1)]));
  const client = new TickmeshClient({ urls: ["ws://eu/ws"], WebSocket: FakeSocket, positions });
  client.subscribe(names, () => undefined);
  client.connect();
  last().welcome("eu-1", { message_bytes: 32_768 });
  const requests = last().asked("resume");
  assert.deepEqual(Object.assign({}, ...requests.map((request) => request.positions)), positions);
  for (const request of requests) assert.ok(JSON.stringify(request).length <= 32_768);
  client.close();
  client.connect();
  last().welcome();
  for (const request of last().asked("resume")) {
    assert.ok(JSON.stringify(request).length <= 65_536 && Object.keys(request.positions).length <= 1024);
  }
});
