import assert from "node:assert/strict";
import { test } from "node:test";

import { Link } from "../../web/link.js";

/** Numbers that are the same in each run (mulberry32). */
function numbers(seed) {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

test("of a log, whatever is lost and whatever comes again: each event once, and a gap just where events are lost", () => {
  for (let seed = 1; seed <= 500; seed += 1) {
    const random = numbers(seed);
    const link = new Link();
    link.begin();
    let [sequence, previous, lost] = [0, null, false];
    const seen = [];
    for (let i = 0; i < 100; i += 1) {
      sequence += 1 + random(5);
      const event = { sequence, previous };
      previous = sequence;
      if (random(10) === 0) {
        lost = true;
        continue;
      }
      assert.equal(link.advance(event), lost ? "gap" : "next", `seed ${seed}, event ${i}`);
      lost = false;
      seen.push(event);
      const again = seen[random(seen.length)];
      assert.equal(link.advance(again), "duplicate");
      assert.equal(link.last.sequence, sequence);
    }
  }
});

test("where nobody has said anything there is nothing to resume", () => {
  const link = new Link();
  assert.equal(link.isKnown, false);
  link.begin();
  assert.deepEqual([link.isKnown, link.toJSON()], [true, null]);
  link.begin(12);
  assert.equal(link.toJSON(), 12);
  link.learn("00000000000000ff");
  assert.deepEqual(link.toJSON(), { epoch: "00000000000000ff", sequence: 12 });
  link.learn("0000000000000001");
  assert.equal(link.last.epoch, "00000000000000ff", "known already");
});
