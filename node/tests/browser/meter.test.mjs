import assert from "node:assert/strict";
import { test } from "node:test";

import { Percentiles, Rate } from "../../web/meter.js";

test("a steady stream has its rate, and a stalled one falls to zero", () => {
  const rate = new Rate();
  for (let now = 10_000; now < 20_000; now += 10) rate.add(now);
  assert.ok(Math.abs(rate.perSecond(20_000) - 100) < 4, String(rate.perSecond(20_000)));
  assert.equal(rate.perSecond(24_000), 0);
});

test("the first events are not blown up to a rate", () => {
  const rate = new Rate();
  assert.equal(rate.perSecond(0), 0);
  rate.add(5_000);
  assert.equal(rate.perSecond(5_001), 1);
});

test("percentiles of the last seconds only", () => {
  const percentiles = new Percentiles();
  assert.deepEqual(percentiles.at([0.5, 0.99], 0), [null, null]);
  percentiles.add(9_999, 0);
  for (let i = 0; i < 100; i += 1) percentiles.add(i, 10_000 + i);
  assert.deepEqual(percentiles.at([0.5, 0.99], 10_100), [50, 99]);
  assert.deepEqual(percentiles.at([0.5], 60_000), [null]);
  percentiles.clear();
  assert.deepEqual(percentiles.at([0.5], 10_100), [null]);
});

test("space is bounded: the newest samples stand for all", () => {
  const percentiles = new Percentiles();
  for (let i = 0; i < 5_000; i += 1) percentiles.add(i < 4_000 ? 1 : 7, 100);
  assert.equal(percentiles.at([0.5], 100)[0], 7);
});
