// Rates and latencies of the last seconds, in constant space.

// A tenth of a second per bucket, three seconds in all: steady enough to read, quick enough to show a stall.
const BUCKET_MS = 100;
const BUCKETS = 30;

/** Events per second over the last three seconds. */
export class Rate {
  #counts = new Array(BUCKETS).fill(0);
  #bucket = 0;
  #began = null;

  /** @param {number} now ms, of any clock that does not go back */
  add(now) {
    this.#advance(now);
    this.#counts[this.#bucket % BUCKETS] += 1;
  }

  /** @param {number} now @returns {number} */
  perSecond(now) {
    if (this.#began === null) return 0;
    this.#advance(now);
    const total = this.#counts.reduce((sum, count) => sum + count, 0);
    const span = Math.min(BUCKETS * BUCKET_MS, Math.max(now - this.#began, 1000));
    return (total * 1000) / span;
  }

  #advance(now) {
    const bucket = Math.floor(now / BUCKET_MS);
    if (this.#began === null) {
      this.#began = now;
      this.#bucket = bucket;
    }
    if (bucket <= this.#bucket) return;
    const steps = Math.min(bucket - this.#bucket, BUCKETS);
    for (let i = 1; i <= steps; i += 1) this.#counts[(bucket - steps + i) % BUCKETS] = 0;
    this.#bucket = bucket;
  }
}

// Samples kept: a busy market sends more in the window, and then the newest of them stand for all.
const SAMPLES = 1024;

// Older samples say nothing of now.
const WINDOW_MS = 5_000;

/** Percentiles of what was measured in the last five seconds. */
export class Percentiles {
  #values = new Float64Array(SAMPLES);
  #times = new Float64Array(SAMPLES);
  #next = 0;
  #filled = 0;

  /** @param {number} value @param {number} now ms */
  add(value, now) {
    this.#values[this.#next] = value;
    this.#times[this.#next] = now;
    this.#next = (this.#next + 1) % SAMPLES;
    this.#filled = Math.min(this.#filled + 1, SAMPLES);
  }

  clear() {
    this.#filled = 0;
    this.#next = 0;
  }

  /**
   * @param {number[]} shares such as [0.5, 0.99]
   * @param {number} now ms
   * @returns {(number | null)[]} null where nothing was measured
   */
  at(shares, now) {
    const recent = [];
    for (let i = 0; i < this.#filled; i += 1) {
      if (now - this.#times[i] <= WINDOW_MS) recent.push(this.#values[i]);
    }
    recent.sort((a, b) => a - b);
    return shares.map((share) => {
      if (recent.length === 0) return null;
      return recent[Math.min(recent.length - 1, Math.floor(share * recent.length))];
    });
  }
}
