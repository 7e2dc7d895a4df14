// Two buttons that kill a peer of the demo, and what that did to this client, by its own counters.

import { byId, setData, setText } from "./dom.js";
import { integer, latency } from "./format.js";

/**
 * A kill, and what was seen since.
 *
 * @typedef {object} Incident
 * @property {"edge" | "leader"} kind
 * @property {string | null} killed       who it was; null until the demo has said so
 * @property {number} began               ms of performance.now()
 * @property {number | null} lostAt       when the connection was lost
 * @property {number | null} backAt       when there was one again
 * @property {number} heardAt             when the last event of the market came
 * @property {number} pause               the longest time between two of them, in ms
 * @property {number} events              of the market, since the demo said who was killed
 * @property {number} replayed            counters of the client as they were before
 * @property {number} gaps
 */

// A takeover takes some ten milliseconds, and the peer comes back after five seconds: longer pauses belong to something else.
const WATCHED_MS = 4_000;

export class Failures {
  #controls;
  #client;
  #askFrame;
  /** @type {import("./market.js").Market | null} */
  #market = null;
  /** @type {Incident | null} */
  #incident = null;
  #failed = "";
  #busy = false;
  #edge = byId("kill-edge");
  #leader = byId("kill-leader");
  #nodes = Object.fromEntries(
    ["note", "facts", "killed", "now", "time-name", "time", "replayed", "verdict", "verdict-text"].map((name) => [
      name, byId(`outcome-${name}`),
    ]),
  );

  /**
   * @param {import("./controls.js").Controls} controls
   * @param {import("./tickmesh.js").TickmeshClient} client
   * @param {() => void} askFrame
   */
  constructor(controls, client, askFrame) {
    this.#controls = controls;
    this.#client = client;
    this.#askFrame = askFrame;
    this.#edge.addEventListener("click", () => this.#kill("edge", { edge: client.state.welcome?.node }));
    this.#leader.addEventListener("click", () => this.#kill("leader", { leader_of: this.#market?.tradesStream }));
  }

  /** @param {import("./market.js").Market} market */
  show(market) {
    this.#market = market;
    // The other market's events say nothing of how long this one paused.
    if (this.#incident) this.#incident.heardAt = performance.now();
  }

  /** After each event of the market. */
  event() {
    const incident = this.#incident;
    if (!incident) return;
    const now = performance.now();
    if (now - incident.began < WATCHED_MS) incident.pause = Math.max(incident.pause, now - incident.heardAt);
    incident.heardAt = now;
    if (incident.killed) incident.events += 1;
  }

  /** @param {import("./tickmesh.js").State} state */
  state({ phase }) {
    const incident = this.#incident;
    if (!incident) return;
    if (phase !== "online") incident.lostAt ??= performance.now();
    else if (incident.lostAt !== null) incident.backAt ??= performance.now();
  }

  paint() {
    const online = this.#client.state.phase === "online";
    for (const button of [this.#edge, this.#leader]) button.toggleAttribute("disabled", this.#busy || !online || !this.#market);
    const incident = this.#incident;
    this.#nodes.facts.hidden = !incident;
    this.#nodes.note.hidden = Boolean(incident);
    setText(this.#nodes.note, this.#failed || "A crash: no goodbye. It is started again after five seconds.");
    if (incident) this.#paint(incident);
  }

  /** @param {Incident} incident */
  #paint({ kind, killed, lostAt, backAt, pause, events, replayed, gaps }) {
    const { state, stats } = this.#client;
    const missed = stats.gaps - gaps;
    const isBack = kind === "edge" ? backAt !== null : events > 0;
    const settled = killed !== null && isBack && this.#isLive();
    setText(this.#nodes.killed, killed ?? "…");
    setText(this.#nodes.now, state.welcome?.node ?? "looking for an edge");
    setText(this.#nodes["time-name"], kind === "edge" ? "Away for" : "Longest pause");
    const away = lostAt !== null && backAt !== null ? backAt - lostAt : null;
    setText(this.#nodes.time, latency(kind === "edge" ? away : settled ? pause : null));
    setText(this.#nodes.replayed, settled ? integer(stats.replayed - replayed) : "–");
    setData(this.#nodes.facts, "kind", kind);
    setData(this.#nodes.verdict, "level", missed ? "bad" : settled ? "ok" : "open");
    setData(this.#nodes.verdict, "gaps", missed);
    const words = missed ? `${integer(missed)} ${missed === 1 ? "gap" : "gaps"}` : settled ? "No sequence was missed" : "Watching";
    setText(this.#nodes["verdict-text"], words);
  }

  /** Whether every stream goes on where it stood. */
  #isLive() {
    return Object.keys(this.#client.positions).every((name) => this.#client.stream(name)?.status === "live");
  }

  async #kill(kind, victim) {
    if (this.#busy) return;
    const { replayed, gaps } = this.#client.stats;
    const now = performance.now();
    // Begun before the answer: the connection may be lost sooner than it comes.
    /** @type {Incident} */
    const incident = {
      kind, killed: null, began: now, lostAt: null, backAt: null, heardAt: now, pause: 0, events: 0, replayed, gaps,
    };
    this.#incident = incident;
    this.#busy = true;
    this.#askFrame();
    try {
      const { killed } = await this.#controls.kill(victim);
      incident.killed = killed;
    } catch (error) {
      this.#incident = null;
      this.#failed = `Not killed: ${/** @type {Error} */ (error).message}`;
    }
    this.#busy = false;
    this.#askFrame();
  }
}
