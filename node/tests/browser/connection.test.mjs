import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { backoff } from "../../web/connection.js";
import { FakeSocket, URLS, last, settled, start } from "./fake_socket.mjs";

beforeEach(() => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_000_000 });
  FakeSocket.all = [];
});

test("after each loss the next edge is tried, ever later", () => {
  start();
  const urls = [];
  for (let i = 0; i < 5; i += 1) {
    urls.push(last().url);
    last().lose();
    mock.timers.tick(10_000);
  }
  assert.deepEqual(urls, [URLS[0], URLS[1], URLS[2], URLS[0], URLS[1]]);
});

test("the delay is drawn between nothing and what doubles up to ten seconds", () => {
  assert.deepEqual([1, 2, 7, 100].map((attempt) => backoff(attempt, () => 1)), [250, 500, 10_000, 10_000]);
  assert.deepEqual([1, 3].map((attempt) => backoff(attempt, () => 0.5)), [125, 500]);
  assert.equal(backoff(100, () => 0), 0);
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
  assert.deepEqual(delays, [125, 250, 500, 1_000]);
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

test("a close with 1001 or 4408 comes back at once", () => {
  for (const code of [1001, 4408]) {
    const { client } = start();
    last().welcome();
    last().lose(code, "words");
    mock.timers.tick(125);
    assert.equal(client.state.phase, "connecting");
    client.close();
  }
});

test("4429 and 1011 wait a second at least", () => {
  for (const code of [4429, 1011]) {
    const { client } = start(["trades.a"], { random: () => 0 });
    last().welcome();
    last().lose(code);
    assert.equal(client.state.retryAt - Date.now(), 1_000);
    client.close();
  }
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

test("nobody is signed in where there is no token; who signs in is from the next connection on", async () => {
  let token = null;
  const { client } = start(["trades.a"], { token: async () => token });
  await settled();
  assert.deepEqual(last().protocols, []);
  last().welcome();
  token = "t1";
  client.moveTo(URLS);
  await settled();
  assert.deepEqual(last().protocols, ["tickmesh.v1", "bearer.t1"]);
  last().welcome();
  // Signed out meanwhile: the edge is shown nothing.
  token = null;
  last().say({ event: "warning", code: "token_expired", message: "soon", expiresAt: 1 });
  await settled();
  assert.deepEqual(last().asked("authenticate"), []);
  client.close();
});

test("a new token is shown before the one in use expires, and again before that one does", async () => {
  // A JWT that expires 10 minutes from now, and one that is none.
  const claims = Buffer.from(JSON.stringify({ sub: "alice", exp: Date.now() / 1000 + 600 })).toString("base64url");
  const tokens = [`e30.${claims}.c2ln`, "opaque"];
  start(["orders.alice"], { token: () => tokens.shift() ?? "another" });
  await settled();
  last().welcome();
  const shown = () => last().asked("authenticate").map(({ token }) => token);
  const wait = async (ms) => {
    for (let i = 0; i < ms; i += 1_000) {
      mock.timers.tick(1_000);
      last().say({ event: "heartbeat", timestamp: 1 });
    }
    await settled();
  };
  await wait(500_000);
  assert.deepEqual(shown(), []);
  await wait(20_000);
  assert.deepEqual(shown(), ["opaque"]);
  last().say({ event: "authenticated", id: "token", user: "alice", expiresAt: Date.now() + 100_000 });
  await wait(60_000);
  assert.deepEqual(shown(), ["opaque", "another"], "half of its life before the end");
  last().say({ event: "error", id: "token", code: "unauthorized", message: "no" });
  await wait(6_000);
  assert.deepEqual(shown(), ["opaque", "another", "another"], "not accepted: another one after a pause");
});

test("a token that was not to be had is asked for again after a pause; two are never asked for at once", async () => {
  const answers = [];
  const { client } = start(["orders.alice"], { token: () => new Promise((resolve, reject) => answers.push({ resolve, reject })) });
  answers[0].resolve("t1");
  await settled();
  last().welcome();
  const warn = () => last().say({ event: "warning", code: "token_expired", message: "soon", expiresAt: 1 });
  warn();
  warn();
  await settled();
  assert.equal(answers.length, 2);
  answers[1].reject(new Error("offline"));
  await settled();
  mock.timers.tick(5_000);
  await settled();
  assert.equal(answers.length, 3);
  client.close();
  answers[2].resolve("t3");
  await settled();
  mock.timers.tick(60_000);
  assert.deepEqual([last().asked("authenticate"), answers.length], [[], 3]);
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
