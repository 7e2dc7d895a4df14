import assert from "node:assert/strict";
import { test } from "node:test";

import * as format from "../../web/format.js";

test("prices are grouped and padded, never rounded", () => {
  assert.equal(format.price("36200.5", 2), "36,200.50");
  assert.equal(format.price("36200.123456789", 2), "36,200.123456789");
  assert.equal(format.price("1234567"), "1,234,567");
  assert.equal(format.price("999"), "999");
  assert.equal(format.price("0.00001234", 4), "0.00001234");
  assert.equal(format.price("-1234.5"), "-1,234.5");
  assert.equal(format.price("123456789012345678901234567890.1"), "123,456,789,012,345,678,901,234,567,890.1");
});

test("nothing known is a dash, not NaN", () => {
  for (const text of [null, undefined, ""]) assert.equal(format.price(text), "–");
  assert.equal(format.amount(NaN, 2), "–");
  assert.equal(format.compact("abc"), "–");
  assert.equal(format.compact(undefined), "–");
  assert.equal(format.changePercent(undefined, "1"), "–");
  assert.equal(format.changePercent("1", "0"), "–");
  assert.equal(format.latency(null), "–");
  assert.equal(format.integer(null), "–");
  assert.equal(format.clock(NaN), "–");
});

test("changes carry their sign", () => {
  assert.equal(format.changePercent("110", "100"), "+10.00%");
  assert.equal(format.changePercent("90", "100"), "−10.00%");
  assert.equal(format.changePercent("100.0000001", "100"), "0.00%");
  assert.equal(format.signed("-12.5", 2), "−12.50");
  assert.equal(format.signed("12.5"), "+12.5");
  assert.equal(format.signed("0.00"), "0.00");
  assert.equal(format.direction("2", "1"), 1);
  assert.equal(format.direction("1", "2"), -1);
  assert.equal(format.direction("x", "2"), 0);
});

test("large amounts are short", () => {
  assert.equal(format.compact("2500000000"), "2.50B");
  assert.equal(format.compact("1234567"), "1.23M");
  assert.equal(format.compact("12345"), "12.3K");
  assert.equal(format.compact("1234.56"), "1,234.6");
  assert.equal(format.compact("0.5"), "0.5000");
});

test("latencies", () => {
  assert.equal(format.latency(0), "<1 ms");
  assert.equal(format.latency(-3), "<1 ms");
  assert.equal(format.latency(1.25), "1.3 ms");
  assert.equal(format.latency(42.4), "42 ms");
  assert.equal(format.latency(15_000), "15 s");
});

test("names of markets", () => {
  assert.deepEqual(format.pair("btc_usdt"), { base: "BTC", quote: "USDT" });
  assert.deepEqual(format.pair("index"), { base: "INDEX", quote: "" });
});

test("places remember the longest fraction, within reason", () => {
  const places = new format.Places();
  for (const text of ["1", "1.25", "1.5"]) places.see(text);
  assert.equal(places.value, 2);
  places.see(`1.${"1".repeat(40)}`);
  assert.equal(places.value, format.Places.LIMIT);
});
