// docs/asyncapi.yaml by itself: what AsyncAPI's own parser says of it, and its examples.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Document } from "./document.mjs";

const document = await Document.load();

test("the document is valid AsyncAPI 3", () => {
  assert.deepEqual(document.faults, []);
});

test("each message is sent by clients or by edges, and not by both", () => {
  const both = [...document.ofClients].filter((name) => document.ofEdges.has(name));
  assert.deepEqual(both, []);
  const sent = [...document.ofClients, ...document.ofEdges];
  assert.deepEqual(sent.sort(), [...document.messages.keys()].sort());
});

test("each message has an example, which is this message and no other", () => {
  for (const [name, { examples }] of document.messages) {
    assert.notEqual(examples.length, 0, `${name} has no example`);
    for (const example of examples) {
      assert.deepEqual(document.match(example), [name], JSON.stringify(example));
    }
  }
});

test("what an edge does not say is no message", () => {
  for (const frame of [
    {},
    [],
    "welcome",
    { event: "unheard_of" },
    { event: "pong", timestamp: 1, more: 1 },
    { event: "pong", timestamp: -1 },
    { stream: "trades.btc_usdt", sequence: 1, previous: null, data: {} },
    { stream: "unheard_of.btc_usdt", sequence: 1, previous: null, data: {} },
  ]) {
    assert.deepEqual(document.match(frame), [], JSON.stringify(frame));
  }
  // The same example, but for one thing.
  const [trade] = document.messages.get("trade").examples;
  for (const change of [
    { more: 1 },
    { sequence: 2 ** 53 },
    { previous: "8121" },
    { snapshot: false },
    { epoch: "00000000000000fe" },
    { signature: "a..b" },
    { data: { ...trade.data, price: 36200.5 } },
    { data: { ...trade.data, more: 1 } },
  ]) {
    assert.deepEqual(document.match({ ...trade, ...change }), [], JSON.stringify(change));
  }
});
