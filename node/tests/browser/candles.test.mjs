import assert from "node:assert/strict";
import { test } from "node:test";

import { Candles, CandleSet, INTERVALS } from "../../web/candles.js";

test("trades of one period make one candle", () => {
  const candles = new Candles(5);
  for (const [price, at] of [[10, 5_000], [12, 6_000], [9, 7_500], [11, 9_999]]) candles.add(price, 2, at);
  assert.deepEqual(candles.list, [{ time: 5, open: 10, high: 12, low: 9, close: 11, volume: 8 }]);
});

test("a pause is drawn flat, but not where trades may be missing", () => {
  const candles = new Candles(1);
  candles.add(10, 1, 1_000);
  candles.add(11, 1, 4_000);
  assert.deepEqual(candles.list.map(({ time, close, volume }) => [time, close, volume]), [[1, 10, 1], [2, 10, 0], [3, 10, 0], [4, 11, 1]]);
  candles.interrupt();
  candles.add(12, 1, 9_000);
  assert.deepEqual(candles.list.map(({ time }) => time), [1, 2, 3, 4, 9]);
});

test("a trade that comes late belongs to the newest candle: times never go back", () => {
  const candles = new Candles(1);
  candles.add(10, 1, 5_000);
  candles.add(8, 1, 4_000);
  assert.deepEqual(candles.list, [{ time: 5, open: 10, high: 10, low: 8, close: 8, volume: 2 }]);
});

test("no number, no candle; and never more than a bound", () => {
  const candles = new Candles(1);
  candles.add(NaN, 1, 1_000);
  candles.add(1, 1, NaN);
  assert.equal(candles.list.length, 0);
  for (let second = 1; second < 5_000; second += 1) candles.add(1, 1, second * 1_000);
  assert.equal(candles.list.length, 2_000);
  assert.equal(candles.list.at(-1).time, 4_999);
});

test("all lengths are built at once", () => {
  const set = new CandleSet();
  for (let second = 60; second < 120; second += 1) set.add(second, 1, second * 1_000);
  assert.equal(set.since, 60_000);
  assert.deepEqual(INTERVALS.map((seconds) => set.of(seconds).list.length), [60, 12, 1]);
});
