import assert from "node:assert/strict";
import { test } from "node:test";

import { canonical, compare, decimals, subtract } from "../../web/decimal.js";

test("one number has one spelling", () => {
  const cases = [
    ["36200.50", "36200.5"], ["007", "7"], ["0.0", "0"], ["0", "0"], ["-0", "0"], ["-1.10", "-1.1"], ["100", "100"],
    ["0.00000001", "0.00000001"],
  ];
  for (const [text, expected] of cases) assert.equal(canonical(text), expected, text);
});

test("what is no plain decimal is refused", () => {
  for (const text of ["", ".5", "5.", "1e5", "abc", "1,000", " 1", "NaN", "--1", undefined, null]) {
    assert.equal(canonical(text), null, String(text));
  }
});

test("order is that of the numbers, also where floats cannot tell them apart", () => {
  const ascending = [
    "-10", "-9.5", "-9.49", "-0.1", "0", "0.00000001", "0.1", "0.9", "0.95", "1", "1.5", "9.99", "10", "100",
    "9007199254740992.1", "9007199254740992.2", "9007199254740993",
  ];
  for (let i = 0; i < ascending.length; i += 1) {
    for (let j = 0; j < ascending.length; j += 1) {
      assert.equal(Math.sign(compare(ascending[i], ascending[j])), Math.sign(i - j), `${ascending[i]} ? ${ascending[j]}`);
    }
  }
});

test("differences are exact", () => {
  assert.equal(subtract("0.3", "0.1"), "0.2");
  assert.equal(subtract("67282.5", "67282.45"), "0.05");
  assert.equal(subtract("1", "2.5"), "-1.5");
  assert.equal(subtract("5", "5"), "0");
  assert.equal(subtract("10", "0.00000001"), "9.99999999");
});

test("digits after the point", () => {
  assert.equal(decimals("1"), 0);
  assert.equal(decimals("1.50"), 2);
});
