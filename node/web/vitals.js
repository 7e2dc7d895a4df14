// What the connection is doing: state, edge, events a second, latency, sequence, and whether anything was lost.

import { byId, setData, setText } from "./dom.js";
import { integer, latency } from "./format.js";
import { Percentiles, Rate } from "./meter.js";

// Numbers that change faster cannot be read.
const REFRESH_MS = 250;

// From here on an attempt may be seconds away.
const MANY_ATTEMPTS = 3;

const WORDS = {
  idle: "Disconnected", connecting: "Connecting", online: "Live", waiting: "Reconnecting", closed: "Disconnected",
};

export class Vitals {
  #client;
  #desk = byId("desk");
  #state = byId("state");
  #retry = byId("retry");
  #nodes = Object.fromEntries(
    ["edge", "rate", "p50", "p99", "trip", "stream", "sequence", "continuity", "continuity-text", "replayed"].map((name) => [
      name, byId(`vital-${name}`),
    ]),
  );
  #rate = new Rate();
  #latency = new Percentiles();
  #trip = null;
  #due = true;
  #market = null;
  #phase = null;
  #onLatency;

  /**
   * @param {import("./tickmesh.js").TickmeshClient} client
   * @param {() => void} askFrame
   * @param {(ms: number) => void} onLatency the median, a few times a second while online
   */
  constructor(client, askFrame, onLatency) {
    this.#client = client;
    this.#onLatency = onLatency;
    this.#retry.addEventListener("click", () => client.retryNow());
    setInterval(() => {
      this.#due = true;
      askFrame();
    }, REFRESH_MS);
  }

  /** @param {import("./market.js").Market} market */
  show(market) {
    this.#market = market;
    this.#due = true;
  }

  /** After each event. @param {number | null} latencyMs */
  event(latencyMs) {
    const now = performance.now();
    this.#rate.add(now);
    if (latencyMs !== null) this.#latency.add(latencyMs, now);
  }

  /** @param {number} ms */
  roundTrip(ms) {
    this.#trip = ms;
  }

  /** At once, for a person waits for it. @param {import("./tickmesh.js").State} state @param {string} edge */
  state(state, edge) {
    const { phase, draining, reason, attempt } = state;
    const offline = phase !== "online" && navigator.onLine === false;
    if (phase !== "online") {
      this.#latency.clear();
      this.#trip = null;
    }
    setData(this.#state, "phase", offline ? "closed" : draining ? "draining" : phase);
    setText(byId("state-text"), offline ? "Offline" : draining ? "Edge is draining" : WORDS[phase]);
    this.#state.title = reason ?? "";
    // The first attempts come by themselves before anyone could press a button.
    this.#retry.hidden = !(phase === "closed" || (phase !== "online" && attempt >= MANY_ATTEMPTS));
    // Until the first connection there is nothing old to dim.
    if (phase === "online") this.#phase = phase;
    setData(this.#desk, "stale", this.#phase === "online" && phase !== "online");
    setText(this.#nodes.edge, edge);
    this.#due = true;
  }

  paint() {
    if (!this.#due) return;
    this.#due = false;
    const now = performance.now();
    const [p50, p99] = this.#latency.at([0.5, 0.99], now);
    setText(this.#nodes.rate, integer(this.#rate.perSecond(now)));
    setText(this.#nodes.p50, latency(p50));
    setText(this.#nodes.p99, latency(p99));
    setText(this.#nodes.trip, latency(this.#trip));
    if (p50 !== null) this.#onLatency(p50);
    if (this.#market) {
      const stream = this.#market.tradesStream;
      setText(this.#nodes.stream, stream);
      setText(this.#nodes.sequence, integer(this.#client.stream(stream)?.sequence));
    }
    this.#continuity();
  }

  #continuity() {
    const { gaps, duplicates, replayed } = this.#client.stats;
    const { mismatches = 0 } = this.#market?.book ?? {};
    const faults = [
      count(gaps, "gap"), count(duplicates, "duplicate"), count(mismatches, "book mismatch", "book mismatches"),
    ].filter(Boolean);
    const text = faults.length ? faults.join(", ") : "No gaps, no duplicates";
    setText(this.#nodes["continuity-text"], text);
    setData(this.#nodes.continuity, "level", faults.length ? "bad" : "ok");
    setData(this.#nodes.continuity, "gaps", gaps);
    setData(this.#nodes.continuity, "duplicates", duplicates);
    setText(this.#nodes.replayed, replayed ? `replayed after reconnect: ${count(replayed, "event")}` : "");
  }
}

function count(number, one, many = `${one}s`) {
  return number ? `${integer(number)} ${number === 1 ? one : many}` : null;
}
