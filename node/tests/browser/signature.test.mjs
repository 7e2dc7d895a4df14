import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { TickmeshClient } from "../../web/tickmesh.js";
import { Verifier, dataText } from "../../web/signature.js";
import { FakeSocket, last } from "./fake_socket.mjs";

// Made by protocol/tests/client.rs, which pins the same text.
const KEY_ID = "--6IM5l0OosLj9yWskISYhUA3n_3CURQkmrYMSha_ck";
const SIGNATURE =
  "eyJhbGciOiJFZERTQSIsImtpZCI6Ii0tNklNNWwwT29zTGo5eVdza0lTWWhVQTNuXzNDVVJRa21yWU1TaGFfY2siLCJiNjQiOmZhbHNlLCJjcml0IjpbImI2NCJdfQ" +
  "..6vafoYcbD7gIEnmuCAlLhg2wTvGVTPHwbIucjNKrtMHvlxs_CxXHIoCYLiY-QhrLp0WdiKCso3bRScYZg-84Dw";
const SIGNED =
  `{"stream":"orders.alice","epoch":"00000000000000ff","sequence":12,"previous":7,` +
  `"data":{"id":7,"price":"1.50"},"signature":"${SIGNATURE}"}`;
// The public half of 32 sevens.
const JWK = { kty: "OKP", crv: "Ed25519", x: "6kpsY-KcUgq-9VB7Ey7F-ZVHdq6-vnuSQh7qaRRG0iw", kid: KEY_ID, use: "sig", alg: "EdDSA" };
const JWKS = { keys: [JWK] };

const verify = (verifier, text) => verifier.verify(text, JSON.parse(text));

/** Signs as an exchange does, with a key of the test. */
async function signer(header = {}) {
  const { privateKey, publicKey } = await crypto.subtle.generateKey("Ed25519", true, ["sign", "verify"]);
  const base64 = (bytes) => Buffer.from(bytes).toString("base64url");
  const { kty, crv, x } = await crypto.subtle.exportKey("jwk", publicKey);
  const head = base64(JSON.stringify({ alg: "EdDSA", kid: "k", b64: false, crit: ["b64"], ...header }));
  const frame = async (sequence, data = "1", stream = "trades.a") => {
    const epoch = "00000000000000ff";
    const text = `${head}.{"stream":"${stream}","epoch":"${epoch}","sequence":${sequence},"data":${data}}`;
    const signature = `${head}..${base64(await crypto.subtle.sign("Ed25519", privateKey, Buffer.from(text)))}`;
    return `{"stream":"${stream}","epoch":"${epoch}","sequence":${sequence},"previous":${sequence - 1 || null},"data":${data},"signature":"${signature}"}`;
  };
  return { jwks: { keys: [{ kty, crv, x, kid: "k" }] }, frame };
}

test("the frame that ingest and edge make verifies", async () => {
  assert.equal(await verify(new Verifier(JWKS), SIGNED), true);
});

test("any change of stream, epoch, sequence or data breaks it; previous is not signed", async () => {
  const verifier = new Verifier(JWKS);
  for (const [from, to] of [
    ["orders.alice", "orders.alicf"],
    ["00ff", "00fe"],
    [":12", ":13"],
    [":12", ":12.5"],
    [`"1.50"`, `"1.51"`],
    [`"1.50"`, `"1.50" `],
    [`{"id":7,`, `{"id":7, `],
    [`"epoch":"00000000000000ff",`, ""],
    [SIGNATURE, SIGNATURE.slice(0, -1)],
    [SIGNATURE, SIGNATURE.replace("..", ".")],
    [SIGNATURE, ""],
    [SIGNATURE, "A".repeat(600)],
  ]) {
    const changed = SIGNED.replace(from, to);
    assert.notEqual(changed, SIGNED);
    assert.equal(await verify(verifier, changed), false, changed);
  }
  assert.equal(await verify(verifier, SIGNED.replace(`"previous":7`, `"previous":null`)), true);
});

test("what JSON.parse reads is what was verified, however often a frame says it", async () => {
  const verifier = new Verifier(JWKS);
  const data = `"data":{"id":7,"price":"1.50"}`;
  const bob = `"stream":"orders.bob"`;
  for (const [frame, expected] of [
    [SIGNED.replace(data, `${data},"data":{"id":8}`), false],
    [SIGNED.replace(data, `"data":{"id":8},${data}`), false],
    [SIGNED.replace(data, `${data},"d\\u0061ta":{"id":8}`), false],
    [SIGNED.replace(/}$/, `,"data":{"id":8}}`), false],
    [SIGNED.replace(/}$/, `,"data":{"id":8},"signature":"${SIGNATURE}"}`), false],
    [SIGNED.replace(/}$/, `,${bob}}`), false],
    [SIGNED.replace(data, `${bob},${data}`), false],
    // Said twice before it, the last one counts for both.
    [SIGNED.replace("{", `{${bob},`), true],
    [SIGNED.replace("{", `{"d\\u0061ta":{"id":8},`), true],
  ]) {
    assert.notEqual(frame, SIGNED);
    assert.equal(await verify(verifier, frame), expected, frame);
    const { stream, data: read } = JSON.parse(frame);
    if (expected) assert.deepEqual([stream, read.id], ["orders.alice", 7]);
  }
});

test("headers that are not exactly right are refused", async () => {
  for (const header of [
    { alg: "none" }, { alg: "HS256" }, { b64: true }, { b64: undefined }, { crit: undefined }, { crit: [] }, { crit: ["b64", "exp"] },
    { crit: "b64" }, { kid: undefined }, { kid: "other" }, { kid: 7 },
  ]) {
    const { jwks, frame } = await signer(header);
    assert.equal(await verify(new Verifier(jwks), await frame(1)), false, JSON.stringify(header));
  }
  const { jwks, frame } = await signer();
  const [text, [key]] = [await frame(1), jwks.keys];
  assert.equal(await verify(new Verifier(jwks), text), true);
  for (const other of [{ use: "enc" }, { alg: "ES256" }, { kty: "RSA" }, { crv: "X25519" }]) {
    assert.equal(await verify(new Verifier({ keys: [{ ...key, ...other }] }), text), false, JSON.stringify(other));
  }
});

test("without Ed25519, or without keys, nobody can say", async () => {
  const unsupported = { importKey: async () => { throw new DOMException("unrecognized name", "NotSupportedError"); } };
  assert.equal(await verify(new Verifier(JWKS, { subtle: unsupported }), SIGNED), undefined);
  assert.equal(await verify(new Verifier(JWKS, { subtle: null }), SIGNED), undefined);
  for (const answer of [{ ok: false, status: 503 }, { ok: true, json: async () => ({}) }]) {
    mock.timers.reset();
    mock.timers.enable({ apis: ["setTimeout", "Date"] });
    assert.equal(await verify(new Verifier("https://exchange/", { fetch: async () => answer }), SIGNED), undefined);
  }
  mock.timers.reset();
  assert.equal(await new Verifier(JWKS).verify("{}", {}), undefined, "not signed");
});

test("the address is asked once for all, and again for a key that is not known", async () => {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_000_000 });
  const [old, next] = [await signer(), await signer({ kid: "next" })];
  next.jwks.keys[0].kid = "next";
  let asked = 0;
  const served = { keys: [...old.jwks.keys] };
  const fetch = async () => {
    asked += 1;
    return { ok: true, json: async () => structuredClone(served) };
  };
  const verifier = new Verifier("https://exchange/", { fetch });
  const frames = await Promise.all([1, 2, 3].map((sequence) => old.frame(sequence)));
  assert.deepEqual(await Promise.all(frames.map((text) => verify(verifier, text))), [true, true, true]);
  assert.equal(asked, 1);
  served.keys.push(...next.jwks.keys);
  const text = await next.frame(4);
  assert.equal(await verify(verifier, text), false, "asked a moment ago");
  assert.equal(asked, 1);
  mock.timers.tick(60_001);
  assert.equal(await verify(verifier, text), true);
  assert.equal(await verify(verifier, frames[0]), true);
  assert.equal(asked, 2);
  mock.timers.reset();
});

test("data is cut out as it is", () => {
  const frame = (data) => `{"stream":"a.b","sequence":1,"previous":null,"data":${data},"signature":"s..t"}`;
  for (const data of [`{"data":1,"signature":"s..t"}`, `[1.0, 2]`, `",\\"data\\":"`, `"}"`]) {
    assert.equal(dataText(frame(data), "s..t"), data);
  }
  assert.equal(dataText(`{"stream":"a.b","data":1}`, "s..t"), null);
  assert.equal(dataText(frame(""), "s..t"), null);
});

// The client

function start(jwks, streams) {
  const seen = [];
  const client = new TickmeshClient({ urls: ["ws://eu/ws"], WebSocket: FakeSocket, jwks });
  client.subscribe(streams, ({ stream, sequence, verified }) => seen.push([stream, sequence, verified]), {
    onBreak: ({ kind }) => seen.push(kind),
  });
  client.connect();
  last().welcome();
  last().confirm();
  return { client, seen, socket: last() };
}

/** Waits for what is verified in threads of their own. */
async function until(condition) {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

beforeEach(() => {
  mock.timers.reset();
  FakeSocket.all = [];
});

test("events are handed on in order with what became of their signatures, and resets between them", async () => {
  const { jwks, frame } = await signer();
  const { client, seen, socket } = start(jwks, ["trades.a", "depth.a"]);
  const [good, forged, third] = [await frame(1), (await frame(2)).replace(`"data":1`, `"data":2`), await frame(3)];
  socket.say({ stream: "depth.a", sequence: 1, previous: null, data: 1 });
  assert.deepEqual(seen, [["depth.a", 1, undefined]], "what is not signed does not wait for anything");
  socket.say(good);
  socket.say({ stream: "depth.a", sequence: 2, previous: 1, data: 1 });
  socket.say(forged);
  socket.say({ event: "reset", stream: "depth.a", epoch: "01" });
  socket.say(third);
  socket.say({ stream: "depth.a", sequence: 1, previous: null, data: 1 });
  await until(() => seen.length === 7);
  assert.deepEqual(seen.slice(1), [
    ["trades.a", 1, true], ["depth.a", 2, undefined], ["trades.a", 2, false], "reset", ["trades.a", 3, true], ["depth.a", 1, undefined],
  ]);
  assert.deepEqual([client.stats.verified, client.stats.forged, client.stats.unverifiable, client.stats.gaps], [2, 1, 0, 0]);
  client.close();
});

test("what came before the end of a connection is handed on, and then the end is seen", async () => {
  const { jwks, frame } = await signer();
  const { client, seen, socket } = start(jwks, ["trades.a"]);
  socket.say(await frame(1));
  socket.lose();
  assert.equal(client.state.phase, "online");
  await until(() => client.state.phase === "waiting");
  assert.deepEqual(seen, [["trades.a", 1, true]]);
  client.close();
});

test("a given-up connection hands on nothing any more, verified or not", async () => {
  const { jwks, frame } = await signer();
  const { client, seen, socket } = start(jwks, ["trades.a"]);
  socket.say(await frame(1));
  client.moveTo(["ws://us/ws"]);
  last().welcome("us-1");
  last().resumed();
  last().say(await frame(1));
  await until(() => seen.length > 0);
  assert.deepEqual(seen, [["trades.a", 1, true]]);
  client.close();
});

test("keys that cannot be had: the events come all the same, and are counted", async () => {
  const { frame } = await signer();
  mock.method(globalThis, "fetch", async () => ({ ok: false, status: 500 }));
  const { client, seen, socket } = start("https://exchange/jwks.json", ["trades.a"]);
  socket.say(await frame(1));
  await until(() => seen.length === 1);
  assert.deepEqual([seen, client.stats.unverifiable], [[["trades.a", 1, undefined]], 1]);
  client.close();
  mock.restoreAll();
});
