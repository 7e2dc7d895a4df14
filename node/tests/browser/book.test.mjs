import assert from "node:assert/strict";
import { test } from "node:test";

import { compare } from "../../web/decimal.js";
import { OrderBook } from "../../web/book.js";

const levels = (side) => side.map(({ price, quantity }) => [price, quantity]);
const full = { asks: [["101", "1"], ["102", "2"]], bids: [["100", "1"], ["99", "2"]] };

function live(sequence = 10) {
  const book = new OrderBook();
  book.snapshot({ sequence, data: full });
  return book;
}

test("a snapshot sorts both sides, best first", () => {
  const book = new OrderBook();
  book.snapshot({
    sequence: 1,
    data: { asks: [["100.10", "1"], ["99.9", "2"], ["1000", "3"]], bids: [["9.5", "1"], ["10", "2"], ["9.45", "3"]] },
  });
  assert.deepEqual(levels(book.asks), [["99.9", "2"], ["100.1", "1"], ["1000", "3"]]);
  assert.deepEqual(levels(book.bids), [["10", "2"], ["9.5", "1"], ["9.45", "3"]]);
  assert.equal(book.synced, true);
});

test("diffs change, add and remove; another spelling of a price is the same level", () => {
  const book = live();
  book.diff({ sequence: 11, previous: 10, data: { asks: [["101.00", "5"], ["101.5", "1"]], bids: [["99.0", "0"], ["98", "0.00"]] } });
  assert.deepEqual(levels(book.asks), [["101", "5"], ["101.5", "1"], ["102", "2"]]);
  assert.deepEqual(levels(book.bids), [["100", "1"]]);
  assert.equal(book.sequence, 11);
});

test("a snapshot among the diffs replaces the book, and diffs that were kept go on from it", () => {
  const slow = live();
  slow.diff({ sequence: 20, previous: null, snapshot: true, data: { asks: [["105", "1"]], bids: [] } });
  assert.deepEqual([levels(slow.asks), levels(slow.bids), slow.sequence], [[["105", "1"]], [], 20]);
  const fresh = new OrderBook();
  fresh.diff({ sequence: 21, previous: 20, data: { asks: [["106", "2"]] } });
  fresh.diff({ sequence: 20, previous: null, snapshot: true, data: { asks: [["105", "1"]], bids: [] } });
  assert.deepEqual([levels(fresh.asks), fresh.sequence, fresh.synced], [[["105", "1"], ["106", "2"]], 21, true]);
  assert.equal(slow.gaps + fresh.gaps + slow.mismatches, 0);
});

test("a book that the market no longer knows is none, until one that is whole", () => {
  const lost = { asks: [], bids: [], incomplete: true };
  const book = live();
  book.diff({ sequence: 12, previous: 10, data: lost });
  assert.deepEqual([levels(book.asks), levels(book.bids), book.synced], [[], [], false]);
  book.snapshot({ sequence: 11, data: full });
  assert.equal(book.synced, false, "of before");
  book.diff({ sequence: 15, previous: 12, data: { asks: [["105", "1"]], bids: [], snapshot: true } });
  book.diff({ sequence: 14, previous: 12, data: lost });
  assert.deepEqual([levels(book.asks), book.synced, book.sequence], [[["105", "1"]], true, 15]);
  book.diff({ sequence: 16, previous: 15, data: { asks: [["106", "2"]] } });
  assert.deepEqual([levels(book.asks), book.gaps, book.mismatches], [[["105", "1"], ["106", "2"]], 0, 0]);
});

test("diffs before the snapshot are kept, and only the newer ones applied", () => {
  const book = new OrderBook();
  book.diff({ sequence: 11, previous: 10, data: { asks: [["101", "9"]] } });
  book.diff({ sequence: 12, previous: 11, data: { asks: [["102", "9"]] } });
  book.diff({ sequence: 13, previous: 12, data: { asks: [["103", "9"]] } });
  assert.equal(book.synced, false);
  book.snapshot({ sequence: 12, data: full });
  assert.deepEqual(levels(book.asks), [["101", "1"], ["102", "2"], ["103", "9"]]);
  assert.equal(book.sequence, 13);
  assert.equal(book.gaps, 0);
});

test("a snapshot older than the first diff that is kept is refused: a hole would lie between", () => {
  const book = new OrderBook();
  book.diff({ sequence: 13, previous: 12, data: { asks: [["103", "9"]] } });
  book.snapshot({ sequence: 11, data: full });
  assert.equal(book.synced, false);
  book.snapshot({ sequence: 12, data: full });
  assert.equal(book.synced, true);
  assert.equal(book.sequence, 13);
  assert.equal(book.gaps, 0);
});

test("diffs that the snapshot covers are dropped", () => {
  const book = live(10);
  book.diff({ sequence: 9, previous: 8, data: { asks: [["101", "99"]] } });
  book.diff({ sequence: 10, previous: 9, data: { asks: [["101", "99"]] } });
  assert.equal(book.asks[0].quantity, "1");
  book.diff({ sequence: 14, previous: 9, data: { asks: [["101", "7"]] } });
  assert.equal(book.asks[0].quantity, "7", "numbers need not be dense: previous at or below the position links up");
});

test("a gap is found by previous, and healed by the next snapshot at or above it", () => {
  const book = live(10);
  book.diff({ sequence: 13, previous: 12, data: { asks: [["103", "9"]] } });
  assert.equal(book.synced, false);
  assert.equal(book.gaps, 1);
  assert.equal(book.asks.length, 2, "what was known stays to be shown as old");
  book.diff({ sequence: 14, previous: 13, data: { asks: [["104", "9"]] } });
  book.snapshot({ sequence: 11, data: full });
  assert.equal(book.synced, false, "a snapshot below the gap cannot close it");
  book.snapshot({ sequence: 12, data: { asks: [["101", "3"]], bids: [] } });
  assert.equal(book.synced, true);
  assert.deepEqual(levels(book.asks), [["101", "3"], ["103", "9"], ["104", "9"]]);
  assert.equal(book.sequence, 14);
  assert.equal(book.gaps, 1);
});

test("an unknown previous is taken as it comes", () => {
  const book = live(10);
  book.diff({ sequence: 20, previous: null, data: { asks: [["101", "4"]] } });
  assert.equal(book.synced, true);
  assert.equal(book.asks[0].quantity, "4");
});

test("a book that equals the market's own passes the audit", () => {
  const book = live(10);
  book.diff({ sequence: 11, previous: 10, data: { asks: [["101", "4.0"]] } });
  book.snapshot({ sequence: 12, data: { asks: [["101", "4"], ["102", "2"]], bids: full.bids } });
  book.diff({ sequence: 13, previous: 11, data: { asks: [["101", "5"]] } });
  assert.equal(book.audits, 1);
  assert.equal(book.mismatches, 0);
  assert.equal(book.asks[0].quantity, "5");
});

test("a book that differs from the market's own takes the market's, and says so", () => {
  const book = live(10);
  book.snapshot({ sequence: 12, data: { asks: [["101", "8"]], bids: [["100", "8"]] } });
  book.diff({ sequence: 13, previous: 10, data: { bids: [["99.5", "1"]] } });
  assert.equal(book.mismatches, 1);
  assert.equal(book.synced, true);
  assert.deepEqual(levels(book.asks), [["101", "8"]]);
  assert.deepEqual(levels(book.bids), [["100", "8"], ["99.5", "1"]]);
});

test("numbers that are none are passed over", () => {
  const book = live(10);
  book.diff({ sequence: 11, previous: 10, data: { asks: [["abc", "1"], ["103", "x"], ["104", "1"]] } });
  assert.deepEqual(levels(book.asks), [["101", "1"], ["102", "2"], ["104", "1"]]);
});

test("what is kept while there is no snapshot is bounded, and the hole that leaves is found", () => {
  const book = new OrderBook();
  for (let i = 1; i <= 10_000; i += 1) book.diff({ sequence: i, previous: i - 1, data: { asks: [["101", String(i)]] } });
  book.snapshot({ sequence: 5, data: full });
  assert.equal(book.synced, false, "diffs between 5 and the oldest that is kept are gone");
  book.snapshot({ sequence: 9_999, data: full });
  assert.equal(book.synced, true);
  assert.equal(book.sequence, 10_000);
  assert.equal(book.asks[0].quantity, "10000");
});

test("after a reset nothing of before is left", () => {
  const book = live(10);
  book.reset();
  assert.deepEqual([book.asks.length, book.bids.length, book.sequence, book.synced], [0, 0, null, false]);
  book.snapshot({ sequence: 3, data: full });
  assert.equal(book.sequence, 3, "a new epoch may begin below the old one");
});

test("a long random walk with lost and doubled diffs ends at the market's own book", () => {
  // A small linear congruential generator: the same walk each time.
  let seed = 42;
  const random = (n) => {
    seed = (seed * 1103515245 + 12345) % 2147483648;
    return Math.floor((seed / 2147483648) * n);
  };
  const truth = { asks: new Map(), bids: new Map() };
  const book = new OrderBook();
  const snapshot = () => ({ asks: [...truth.asks], bids: [...truth.bids] });
  let lost = 0;
  for (let sequence = 1; sequence <= 5_000; sequence += 1) {
    const side = random(2) ? "asks" : "bids";
    const price = (side === "asks" ? 10_000 + random(80) : 9_999 - random(80)) / 100;
    const quantity = random(4) === 0 ? "0" : String(1 + random(900) / 100);
    const text = String(price);
    if (quantity === "0") truth[side].delete(text);
    else truth[side].set(text, quantity);
    const diff = { sequence, previous: sequence - 1, data: { [side]: [[price.toFixed(2), quantity]] } };
    if (sequence > 1 && sequence < 4_900 && random(100) === 0) lost += 1;
    else {
      book.diff(diff);
      if (random(50) === 0) book.diff(diff);
    }
    if (sequence % 100 === 0) book.snapshot({ sequence, data: snapshot() });
  }
  const sorted = (map, order) => [...map].sort(([a], [b]) => compare(a, b) * order);
  assert.ok(lost > 10 && book.gaps > 5, "the walk did lose diffs");
  assert.equal(book.mismatches, 0, "a gap is always found by previous, before an audit has to");
  assert.ok(book.audits > 0);
  assert.equal(book.synced, true);
  assert.deepEqual(levels(book.asks), sorted(truth.asks, 1));
  assert.deepEqual(levels(book.bids), sorted(truth.bids, -1));
});
