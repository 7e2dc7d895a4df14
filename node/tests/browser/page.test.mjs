// The page in a real browser, against a running demo.
//
//     TICKMESH_PAGE_URL=http://127.0.0.1:8080/ node --test page.test.mjs
//
// CHROMIUM names the browser (default /usr/bin/chromium); TICKMESH_SCREENSHOT a file to write a picture to.

import assert from "node:assert/strict";
import { after, before, beforeEach, test } from "node:test";

import { chromium } from "playwright-core";
import WebSocket from "ws";

import { canonical, compare } from "../../web/decimal.js";

const PAGE_URL = process.env.TICKMESH_PAGE_URL;
const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const DEADLINE_MS = 20_000;

const skip = PAGE_URL ? false : "TICKMESH_PAGE_URL is not set";

let browser;
let page;
/** What the browser complained about since the page was opened. */
let complaints = [];

/** Waits until `read`, run in the page, gives something that `holds`. */
async function until(what, read, holds = Boolean, argument = undefined) {
  const end = Date.now() + DEADLINE_MS;
  let value;
  do {
    value = await page.evaluate(read, argument);
    if (holds(value)) return value;
    await new Promise((resolve) => setTimeout(resolve, 50));
  } while (Date.now() < end);
  assert.fail(`waited ${DEADLINE_MS} ms for: ${what}; last seen: ${JSON.stringify(value)}`);
}

const text = (id) => page.evaluate((name) => document.getElementById(name).textContent, id);
const untilText = (what, id, holds) => until(what, (name) => document.getElementById(name).textContent, holds, id);
const number = (words) => Number(words.replaceAll(",", ""));
const untilLive = () =>
  until("state live", () => document.getElementById("state").dataset.phase, (phase) => phase === "online");
const untilBook = () =>
  until("an order book in step", () => document.getElementById("book").dataset.synced, (synced) => synced === "true");

/** Prices of both sides, best first, as shown in one frame. */
const shownBook = () =>
  page.evaluate(() => {
    const prices = (side) =>
      [...document.querySelectorAll(`#${side} .book-price`)].map((cell) => cell.textContent.replaceAll(",", "")).filter(Boolean);
    return { asks: prices("asks"), bids: prices("bids") };
  });

const shownTrades = () => page.evaluate(() => document.querySelectorAll("#trades .trade:not([hidden])").length);

const selected = () => page.evaluate(() => document.querySelector('#markets-list [aria-selected="true"]')?.id.replace("market-", ""));

async function open({ width = 1440, height = 900, colorScheme = "dark" } = {}) {
  await page?.context().close();
  const context = await browser.newContext({ viewport: { width, height }, colorScheme });
  page = await context.newPage();
  complaints = [];
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error.stack ?? error)));
  page.on("requestfailed", (request) => complaints.push(`not loaded: ${request.url()}`));
  await page.goto(PAGE_URL);
}

before(async () => {
  if (skip) return;
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
  });
});

after(async () => {
  await browser?.close();
});

beforeEach(async () => {
  if (!skip) await open();
});

test("everything fills with live data, nothing is lost or doubled, and the browser has no complaint", { skip }, async () => {
  await untilLive();
  await until("ten trades", () => document.querySelectorAll("#trades .trade:not([hidden])").length, (count) => count >= 10);
  await untilBook();
  await untilText("a last price", "last-price", (price) => number(price) > 0);
  await untilText("the day's volume", "ticker-volume", (volume) => /\d/.test(volume));
  await until("last prices of all markets", () =>
    [...document.querySelectorAll(".market-last")].map((cell) => cell.textContent),
  (prices) => prices.length > 1 && prices.every((price) => /\d/.test(price)));

  await until("candles", () => document.getElementById("legend-close").textContent, (close) => /\d/.test(close));
  assert.equal(await page.evaluate(() => document.getElementById("chart-empty").hidden), true);
  await until("something drawn on the chart", () => {
    const canvases = [...document.querySelectorAll("#chart canvas")];
    return canvases.some((canvas) => {
      if (!canvas.width || !canvas.height) return false;
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const colours = new Set();
      for (let i = 0; i < data.length; i += 4) colours.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
      return colours.size > 3;
    });
  });

  const first = number(await untilText("a sequence", "vital-sequence", (sequence) => number(sequence) > 0));
  await untilText("a higher sequence", "vital-sequence", (sequence) => number(sequence) > first);
  await untilText("events per second", "vital-rate", (rate) => number(rate) > 0);
  await untilText("a latency", "vital-p50", (latency) => /\d/.test(latency));
  await untilText("a round trip", "vital-trip", (trip) => /\d/.test(trip));
  assert.equal(await text("vital-continuity-text"), "No gaps, no duplicates");
  const continuity = await page.evaluate(() => ({ ...document.getElementById("vital-continuity").dataset }));
  assert.deepEqual(continuity, { level: "ok", gaps: "0", duplicates: "0" });

  if (process.env.TICKMESH_SCREENSHOT) await page.screenshot({ path: process.env.TICKMESH_SCREENSHOT });
  assert.deepEqual(complaints, []);
});

test("both sides of the book are sorted and never cross", { skip }, async () => {
  await untilLive();
  await untilBook();
  for (let look = 0; look < 20; look += 1) {
    const { asks, bids } = await shownBook();
    assert.ok(asks.length > 1 && bids.length > 1, "levels on both sides");
    const numbers = { asks: asks.map(canonical), bids: bids.map(canonical) };
    for (let i = 1; i < asks.length; i += 1) assert.ok(compare(numbers.asks[i - 1], numbers.asks[i]) < 0, `asks ${asks}`);
    for (let i = 1; i < bids.length; i += 1) assert.ok(compare(numbers.bids[i - 1], numbers.bids[i]) > 0, `bids ${bids}`);
    assert.ok(compare(numbers.bids[0], numbers.asks[0]) < 0, `crossed: bid ${bids[0]}, ask ${asks[0]}`);
    const sequence = await text("vital-sequence");
    await untilText("the market to move on", "vital-sequence", (now) => now !== sequence);
  }
});

test("rows keep their nodes while data flows", { skip }, async () => {
  await untilLive();
  await untilBook();
  await page.evaluate(() => document.querySelectorAll(".book-row, .market, .trade").forEach((row) => (row.dataset.kept = "yes")));
  // Before the first paint there is none, and nothing is greater than that.
  const sequence = number(await untilText("a sequence", "vital-sequence", (value) => number(value) > 0));
  await untilText("the market to move on", "vital-sequence", (now) => number(now) > sequence);
  assert.equal(await page.evaluate(() => document.querySelectorAll(".book-row:not([data-kept]), .market:not([data-kept]), .trade:not([data-kept])").length), 0);
});

test("trades are shown newest first, each once", { skip }, async () => {
  await untilLive();
  await until("ten trades", () => document.querySelectorAll("#trades .trade:not([hidden])").length, (count) => count >= 10);
  const times = await page.evaluate(() =>
    [...document.querySelectorAll("#trades .trade:not([hidden])")]
      .map((row) => ({ top: row.getBoundingClientRect().top, time: row.querySelector(".trade-time").textContent }))
      .sort((a, b) => a.top - b.top));
  assert.equal(new Set(times.map(({ top }) => top)).size, times.length, "one row in each place");
  const shown = times.map(({ time }) => time);
  // Around midnight the clock begins again: then the order of the texts says nothing.
  if (shown.at(-1) <= shown[0]) assert.deepEqual(shown, [...shown].sort().reverse());
});

test("nothing jumps while data flows", { skip }, async () => {
  await untilLive();
  await untilBook();
  await until("ten trades", () => document.querySelectorAll("#trades .trade:not([hidden])").length, (count) => count >= 10);
  await page.evaluate(() => {
    window.shift = 0;
    new PerformanceObserver((list) => list.getEntries().forEach(({ value }) => (window.shift += value))).observe({ type: "layout-shift" });
  });
  const trades = await page.evaluate(() => document.getElementById("vital-sequence").textContent);
  for (let look = 0, last = trades; look < 8; look += 1) {
    last = await untilText("the market to move on", "vital-sequence", (now) => now !== last);
  }
  // 0.1 is what is called good for a whole visit; a number that gains a digit moves its neighbour a little.
  assert.ok((await page.evaluate(() => window.shift)) < 0.02);
});

test("another region: it reconnects there and goes on", { skip }, async (t) => {
  await untilLive();
  const edges = await page.evaluate(async () => (await (await fetch("network.json")).json()).edges);
  if (edges.length < 2) {
    t.skip("this demo has one edge");
    return;
  }
  await until("trades", () => document.querySelectorAll("#trades .trade:not([hidden])").length);
  const market = await selected();
  const current = await text("region-title");
  const other = edges.find(({ title }) => title !== current);

  await page.keyboard.press("r");
  await until("the list of regions", () => !document.getElementById("region-list").hidden);
  await page.locator("#region-list .region-option", { hasText: other.title }).click();
  await untilText("the other region's name", "region-title", (title) => title === other.title);
  await untilLive();
  await untilText("the other edge", "vital-edge", (edge) => edge.includes(other.name) && edge.includes(other.region));
  assert.equal(await selected(), market, "the view is kept");

  await untilBook();
  const sequence = number(await untilText("a sequence", "vital-sequence", (value) => number(value) > 0));
  await untilText("a higher sequence", "vital-sequence", (value) => number(value) > sequence);
  await untilText("a latency", "region-ms", (latency) => /\d/.test(latency));
  assert.equal(await text("vital-continuity-text"), "No gaps, no duplicates");
  assert.deepEqual(complaints, []);
});

test("every region can be reached by the keyboard alone", { skip }, async () => {
  await untilLive();
  await page.keyboard.press("r");
  await page.keyboard.press("End");
  const last = await page.evaluate(() => document.querySelector(".region-option.active b").textContent);
  await page.keyboard.press("Enter");
  await untilText("the last region's name", "region-title", (title) => title === last);
  await untilLive();
  assert.equal(await page.evaluate(() => document.activeElement.id), "region", "the focus is where it was");
});

test("another market, by the keyboard alone", { skip }, async () => {
  await untilLive();
  await untilBook();
  const first = await selected();
  await page.keyboard.press("ArrowDown");
  const second = await until("another market", () =>
    document.querySelector('#markets-list [aria-selected="true"]')?.id.replace("market-", ""),
  (now) => now && now !== first);
  await until("its streams", () => document.getElementById("vital-stream").textContent, (name) => name === `trades.${second}`);
  await untilBook();
  await until("its trades", () => document.querySelectorAll("#trades .trade:not([hidden])").length);
  assert.equal((await text("pair-base")).toLowerCase(), second.split("_")[0]);
  await untilText("its sequence", "vital-sequence", (sequence) => number(sequence) > 0);

  await page.keyboard.press("/");
  await page.keyboard.type(first.split("_")[0]);
  await page.keyboard.press("Enter");
  await until("the first market again", () =>
    document.querySelector('#markets-list [aria-selected="true"]')?.id.replace("market-", ""),
  (now) => now === first);
  await untilBook();
  assert.equal(await text("vital-continuity-text"), "No gaps, no duplicates");
  assert.deepEqual(complaints, []);
});

test("rapid changes of market end at the last one, with nothing lost", { skip }, async () => {
  await untilLive();
  const count = await page.evaluate(() => document.querySelectorAll(".market").length);
  for (let i = 0; i < count * 2; i += 1) await page.keyboard.press(i < count ? "ArrowDown" : "ArrowUp");
  await untilBook();
  const market = await selected();
  await untilText("its streams", "vital-stream", (name) => name === `trades.${market}`);
  await until("its trades", () => document.querySelectorAll("#trades .trade:not([hidden])").length);
  assert.equal(await text("vital-continuity-text"), "No gaps, no duplicates");
});

test("candle lengths", { skip }, async () => {
  await untilLive();
  await until("candles", () => document.getElementById("legend-close").textContent, (close) => /\d/.test(close));
  for (const [key, label] of [["2", "5s"], ["3", "1m"], ["1", "1s"]]) {
    await page.keyboard.press(key);
    assert.equal(await page.evaluate(() => document.querySelector('#intervals [aria-checked="true"]').textContent), label);
    await until("candles of that length", () => document.getElementById("legend-close").textContent, (close) => /\d/.test(close));
  }
});

test("the theme follows the system, can be changed, and is remembered", { skip }, async () => {
  const background = () => page.evaluate(() => getComputedStyle(document.querySelector(".top")).backgroundColor);
  await untilLive();
  const dark = await background();
  await page.keyboard.press("t");
  const light = await background();
  assert.notEqual(light, dark);
  await page.reload();
  assert.equal(await background(), light, "remembered");
  await untilLive();
  await page.locator("#theme").click();
  assert.equal(await background(), dark);
  await open({ colorScheme: "light" });
  assert.equal(await background(), light, "the system's choice");
});

/** Follows a user's orders beside the page, by another client: what each order's newest event says, by id. */
async function ordersOf(user) {
  const { edges, controls } = await (await fetch(new URL("network.json", PAGE_URL))).json();
  const asked = await fetch(`${controls}/demo/token`, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ user }),
  });
  const { token } = await asked.json();
  const socket = new WebSocket(edges.at(-1).url, ["tickmesh.v1", `bearer.${token}`]);
  const orders = new Map();
  socket.on("open", () => socket.send(JSON.stringify({ action: "subscribe", id: 1, streams: [`orders.${user}`] })));
  await new Promise((resolve, reject) => {
    socket.on("error", reject);
    socket.on("message", (bytes) => {
      const { event, data, streams } = JSON.parse(bytes.toString());
      if (event === "subscribed" && streams.length === 1) resolve();
      if (data) orders.set(String(data.id), data);
    });
  });
  return { orders, close: () => socket.close() };
}

/** The rows of the panel as they are shown: id, status, mark. */
const shownOrders = () =>
  page.evaluate(() => [...document.querySelectorAll(".order:not([hidden])")].map(({ dataset }) => ({ ...dataset })));

const signIn = (user) => page.locator(`#users [data-user="${user}"]`).click();
const verifiedEvents = () => page.evaluate(() => Number(document.getElementById("orders-state").dataset.verified));

test("who signs in sees just their own orders, each verified", { skip }, async () => {
  await untilLive();
  assert.deepEqual(await shownOrders(), [], "nobody is signed in");
  const [alice, bob] = await Promise.all([ordersOf("alice"), ordersOf("bob")]);
  await signIn("alice");
  await until("events of hers and his", () => Number(document.getElementById("orders-state").dataset.events), (count) => count >= 8 && bob.orders.size > 0);
  const shown = await shownOrders();
  assert.ok(shown.length > 0);
  for (const { order, mark } of shown) {
    assert.equal(mark, "verified");
    assert.ok(!bob.orders.has(order), `order ${order} is bob's`);
  }
  assert.ok(shown.some(({ order }) => alice.orders.has(order)), "the other client was told of them as well");
  const ids = shown.map(({ order }) => Number(order));
  assert.deepEqual(ids, [...ids].sort((a, b) => b - a), "newest first");

  await signIn("bob");
  await until("his orders", () => document.querySelectorAll(".order:not([hidden])").length);
  for (const { order } of await shownOrders()) assert.ok(!alice.orders.has(order), `order ${order} is alice's`);
  await signIn("");
  await until("no orders", () => document.querySelectorAll(".order:not([hidden])").length, (count) => count === 0);
  await untilLive();
  assert.equal(await text("vital-continuity-text"), "No gaps, no duplicates");
  assert.deepEqual(complaints, []);
  alice.close();
  bob.close();
});

test("the circuit breakers of the peers are shown", { skip }, async () => {
  await untilText("a breaker for the source of each ingest peer", "circuits", (line) => /^Circuit breakers: [2-9] closed$/.test(line));
  assert.equal(await page.evaluate(() => document.getElementById("circuits").dataset.open), "0");
});

test("no other site may ask the demo", { skip }, async () => {
  const { controls } = await (await fetch(new URL("network.json", PAGE_URL))).json();
  const ask = (origin) =>
    fetch(`${controls}/demo/token`, {
      method: "POST", headers: { "content-type": "application/json", ...origin }, body: JSON.stringify({ user: "alice" }),
    });
  assert.equal((await ask({ origin: "http://elsewhere.example" })).status, 403);
  assert.equal((await ask({ origin: new URL(PAGE_URL).origin })).status, 200);
  const stranger = { method: "POST", headers: { "content-type": "application/json" }, body: '{"user":"mallory"}' };
  assert.equal((await fetch(`${controls}/demo/token`, stranger)).status, 404);
});

/** Waits until a kill has been got over, and says what the page tells of it. */
async function outcome() {
  await until("streams that all go on", () => document.getElementById("outcome-verdict").dataset.level, (level) => level !== "open");
  const [killed, now, time, verdict] = await Promise.all(["killed", "now", "time", "verdict-text"].map((name) => text(`outcome-${name}`)));
  return { killed, now, time, verdict };
}

/** Waits until an edge serves again. */
async function untilReady({ name, url }) {
  const ready = url.replace(/^ws(.*)ws$/, "http$1readyz");
  const end = Date.now() + DEADLINE_MS;
  while (!(await fetch(ready).then(({ ok }) => ok, () => false))) {
    assert.ok(Date.now() < end, `${name} is not started again`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

test("the edge is killed: another one goes on where it was, and no sequence is missed", { skip }, async () => {
  await signIn("alice");
  await untilLive();
  await until("an order", () => document.querySelectorAll(".order:not([hidden])").length);
  const { edges, node } = await (await fetch(new URL("network.json", PAGE_URL))).json();
  const victim = edges.find(({ name }) => name === node);
  await page.locator("#kill-edge").click();
  await untilText("who was killed", "outcome-killed", (name) => name === victim.name);
  const { now, time, verdict } = await outcome();
  assert.ok(edges.some(({ name }) => name === now) && now !== victim.name, now);
  assert.match(time, /\d/);
  assert.equal(verdict, "No sequence was missed");
  await untilText("the other edge", "vital-edge", (edge) => edge.startsWith(now));

  const seen = await verifiedEvents();
  await until("more of her orders", () => Number(document.getElementById("orders-state").dataset.verified), (count) => count > seen);
  await untilBook();
  const sequence = await text("vital-sequence");
  await untilText("the market to move on", "vital-sequence", (value) => value !== sequence);
  assert.equal((await outcome()).verdict, "No sequence was missed");
  assert.equal(await text("vital-continuity-text"), "No gaps, no duplicates");
  assert.deepEqual(complaints, []);

  await untilReady(victim);
  await page.reload();
  await untilText("its own edge again", "vital-edge", (edge) => edge.startsWith(victim.name));
});

test("the leading ingest peer is killed: the other one goes on, and no sequence is missed", { skip }, async () => {
  await signIn("bob");
  await untilLive();
  await until("an order", () => document.querySelectorAll(".order:not([hidden])").length);
  // Refused for as long as nobody else could lead, right after another kill.
  await until("a kill", () => {
    const killed = document.getElementById("outcome-killed").textContent.includes("ingest");
    if (!killed) document.getElementById("kill-leader").click();
    return killed;
  });
  const { killed, verdict } = await outcome();
  assert.match(killed, /^eu-ingest-[12]$/);
  assert.equal(verdict, "No sequence was missed");
  const [sequence, seen] = [await text("vital-sequence"), await verifiedEvents()];
  await untilText("the market to move on", "vital-sequence", (value) => value !== sequence);
  await until("more of his orders", () => Number(document.getElementById("orders-state").dataset.verified), (count) => count > seen);
  assert.equal((await outcome()).verdict, "No sequence was missed");
  assert.equal(await text("vital-continuity-text"), "No gaps, no duplicates");
  assert.deepEqual(complaints.filter((words) => !words.includes("409")), []);
});

test("help opens and closes by the keyboard", { skip }, async () => {
  await untilLive();
  await page.keyboard.press("?");
  await until("the help", () => document.getElementById("help").open);
  await page.keyboard.press("Escape");
  await until("no help", () => !document.getElementById("help").open);
});

test("a phone's width needs no sideways scrolling", { skip }, async () => {
  for (const width of [390, 320]) {
    await open({ width, height: 844 });
    await untilLive();
    await untilBook();
    const { scroll, inner } = await page.evaluate(() => ({ scroll: document.documentElement.scrollWidth, inner: innerWidth }));
    assert.ok(scroll <= inner, `${scroll} px wide on a screen of ${inner}`);
    await page.locator('.views [data-view="trades"]').click();
    await until("trades", () => document.querySelectorAll("#trades .trade:not([hidden])").length);
    assert.equal(await page.locator("#trades").isVisible(), true);
    assert.equal(await page.locator("#asks").isVisible(), false);
    assert.ok((await shownTrades()) > 0);
  }
});
