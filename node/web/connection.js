// One WebSocket at a time, to one of several edges: comes back after a loss, at the next of them, later and later.

import { InOrder } from "./in-order.js";
import { Tokens } from "./tokens.js";

/**
 * @typedef {"idle" | "connecting" | "online" | "waiting" | "closed"} Phase
 *   idle: connect() was not called, or close() was; waiting: between two attempts; closed: the edge said not to come back
 *
 * @typedef {object} State
 * @property {Phase} phase
 * @property {string} url         the edge in question
 * @property {number} attempt     attempts since the last success; 0 while online
 * @property {number} [retryAt]   waiting: when the next attempt begins, in ms since 1970
 * @property {string} [reason]    why the last connection ended
 * @property {boolean} draining   the edge said it will go away
 * @property {Welcome} [welcome]  online: what the edge said of itself
 *
 * @typedef {{ connection: string, node: string, region: string, user?: string, limits: Record<string, number> }} Welcome
 *
 * @typedef {object} Options
 * @property {string[]} urls
 * @property {typeof WebSocket} WebSocket
 * @property {() => number} random
 * @property {import("./tokens.js").Source} [token]
 * @property {string[]} [protocols]
 *
 * @typedef {object} Hooks
 * @property {(text: string, order: InOrder) => void} onText a message of the edge
 * @property {() => void} onDrop        the connection has ended, for whatever reason
 * @property {(state: State) => void} onState
 * @property {(ms: number) => void} onRoundTrip
 */

// What the first delay after a lost connection may be; doubled with each failure up to the last. Each delay is drawn between
// nothing and that (full jitter), so that the clients of a lost edge do not come back in step.
const FIRST_DELAY_MS = 250;
const LAST_DELAY_MS = 10_000;

// A connection that has no welcome by then is given up: a handshake across the world takes well under two seconds.
const CONNECT_TIMEOUT_MS = 8_000;

// Round trips are measured this often; the answer also shows that the connection lives.
const PING_INTERVAL_MS = 2_000;

// Nothing at all for so long, with pings unanswered and the edge's own heartbeat (5 s) missed twice: the connection is dead.
const SILENCE_LIMIT_MS = 11_000;

// Pings without an answer that are remembered.
const PINGS_IN_FLIGHT = 8;

// What the edge is asked to speak; a token goes beside it, as browsers can put it nowhere else but into the address.
const SUBPROTOCOL = "tickmesh.v1";

// The edge closes with this when credentials have expired or were taken back. With a new token one more attempt is made.
const CREDENTIALS_CLOSE_CODE = 4401;

// Close codes after which coming back without a change is useless: protocol, text that is not UTF-8, policy, too big, credentials.
const FINAL_CLOSE_CODES = new Set([1002, 1007, 1008, 1009, CREDENTIALS_CLOSE_CODE]);

// Least delay after a close code that asks for one: a fault of the edge, too many connections or requests.
const LEAST_DELAY_MS = new Map([[1011, 1_000], [4429, 1_000]]);

// A connection that lived shorter than this did not really succeed: the backoff goes on where it was.
const STABLE_AFTER_MS = 5_000;

export class Connection {
  #options;
  #hooks;
  #urls;
  #urlIndex = 0;
  /** @type {WebSocket | null} */
  #socket = null;
  /** What the socket said and is not yet handed on. */
  #order = new InOrder();
  /** @type {Record<"connect" | "retry" | "ping" | "drain", ReturnType<typeof setTimeout> | undefined>} */
  #timers = { connect: undefined, retry: undefined, ping: undefined, drain: undefined };
  /** When pings were sent, by their ids. @type {Map<string, number>} */
  #pings = new Map();
  #pingsSent = 0;
  #heardAt = 0;
  #onlineAt = 0;
  #failures = 0;
  /** @type {Tokens | null} */
  tokens;
  /** The attempt that waits for its token. @type {object | null} */
  #opening = null;
  /** The token of this attempt. @type {string | null} */
  #token = null;
  /** Tokens refused since one was accepted for a while. */
  #refusals = 0;
  /** @type {State} */
  #state;

  /**
   * @param {Options} options
   * @param {Hooks} hooks
   */
  constructor(options, hooks) {
    this.#options = options;
    this.#hooks = hooks;
    this.#urls = [...options.urls];
    this.tokens = options.token ? new Tokens(options.token, (message) => this.send(message)) : null;
    this.#state = { phase: "idle", url: this.#urls[0], attempt: 0, draining: false };
  }

  get state() {
    return this.#state;
  }

  get isOnline() {
    return this.#state.phase === "online";
  }

  connect() {
    if (this.#state.phase === "idle" || this.#state.phase === "closed") this.#open(0);
  }

  close() {
    this.#drop("closed by this client");
    this.#setState({ phase: "idle", attempt: 0, draining: false });
  }

  /** @param {string[]} urls */
  moveTo(urls) {
    this.#drop("moved to another edge");
    this.#urls = [...urls];
    this.#urlIndex = 0;
    this.#failures = 0;
    this.#open(0);
  }

  retryNow() {
    if (this.#state.phase === "waiting" || this.#state.phase === "closed") this.#open(this.#state.attempt);
  }

  /** @param {object} message */
  send(message) {
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(message));
  }

  /** The edge has said who it is. @param {Welcome} welcome */
  welcomed(welcome) {
    clearTimeout(this.#timers.connect);
    this.#onlineAt = Date.now();
    if (this.#token !== null) this.tokens?.begin(this.#token);
    this.#setState({ phase: "online", attempt: 0, reason: undefined, welcome });
  }

  /** Looks for signs of life from now on. */
  watch() {
    this.#ping();
    this.#timers.ping = setInterval(() => this.#ping(), PING_INTERVAL_MS);
  }

  /** The edge will go. @param {unknown} reconnectAfter ms */
  draining(reconnectAfter) {
    // Until then the edge still delivers. Up to half as long again, so that its clients do not arrive together.
    const delay = Math.max(0, Number(reconnectAfter) || 0) * (1 + this.#options.random() / 2);
    this.#setState({ draining: true });
    clearTimeout(this.#timers.drain);
    this.#timers.drain = setTimeout(() => {
      this.#drop("the edge drains");
      this.#nextUrl();
      this.#open(0);
    }, delay);
  }

  /** @param {string} id */
  pong(id) {
    const sent = this.#pings.get(id);
    if (sent === undefined) return;
    this.#pings.delete(id);
    this.#hooks.onRoundTrip(performance.now() - sent);
  }

  #open(attempt) {
    clearTimeout(this.#timers.retry);
    const url = this.#urls[this.#urlIndex];
    this.#onlineAt = 0;
    this.#token = null;
    this.#setState({ phase: "connecting", url, attempt, draining: false, retryAt: undefined, welcome: undefined });
    if (!this.tokens) {
      this.#dial(url, this.#options.protocols ?? []);
      return;
    }
    const opening = (this.#opening = {});
    this.tokens.next().then(
      (token) => {
        if (this.#opening !== opening) return;
        this.#token = token;
        this.#dial(url, token === null ? [] : [SUBPROTOCOL, `bearer.${token}`]);
      },
      (error) => this.#opening === opening && this.#again(`no token: ${error.message}`),
    );
  }

  #dial(url, protocols) {
    this.#opening = null;
    let socket;
    try {
      socket = new this.#options.WebSocket(url, protocols);
    } catch (error) {
      this.#again(`no connection: ${/** @type {Error} */ (error).message}`);
      return;
    }
    this.#socket = socket;
    // A socket that was given up still has events to come: its order has ended by then.
    const order = (this.#order = new InOrder());
    socket.onmessage = ({ data }) => {
      if (order.ended) return;
      this.#heardAt = Date.now();
      this.#hooks.onText(data, order);
    };
    socket.onclose = (event) => order.run(undefined, () => this.#closed(event));
    this.#timers.connect = setTimeout(() => {
      this.#drop("no welcome in time");
      this.#again("no welcome in time");
    }, CONNECT_TIMEOUT_MS);
  }

  #closed({ code, reason }) {
    const words = reason || (code === 1006 ? "connection lost" : `closed with ${code}`);
    if (this.#wasStable()) this.#refusals = 0;
    this.#drop(words);
    const renewable = code === CREDENTIALS_CLOSE_CODE && this.tokens && this.#refusals++ === 0;
    if (FINAL_CLOSE_CODES.has(code) && !renewable) {
      this.#setState({ phase: "closed", reason: words, welcome: undefined });
    } else {
      this.#again(words, LEAST_DELAY_MS.get(code));
    }
  }

  /** Ends the socket, if there is one, without a word to its handlers. */
  #drop(reason) {
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    const socket = this.#socket;
    this.#socket = null;
    this.#opening = null;
    this.#order.end();
    this.#pings.clear();
    this.tokens?.end();
    this.#hooks.onDrop();
    if (socket && socket.readyState <= 1) socket.close(1000, reason);
  }

  #again(reason, least = 0) {
    if (this.#wasStable()) this.#failures = 0;
    this.#failures += 1;
    this.#nextUrl();
    const delay = least + backoff(this.#failures, this.#options.random);
    const url = this.#urls[this.#urlIndex];
    const [attempt, retryAt] = [this.#failures, Date.now() + delay];
    this.#setState({ phase: "waiting", url, attempt, reason, retryAt, draining: false, welcome: undefined });
    this.#timers.retry = setTimeout(() => this.#open(attempt), delay);
  }

  #wasStable() {
    return this.#onlineAt > 0 && Date.now() - this.#onlineAt > STABLE_AFTER_MS;
  }

  #nextUrl() {
    this.#urlIndex = (this.#urlIndex + 1) % this.#urls.length;
  }

  #setState(change) {
    this.#state = { ...this.#state, ...change };
    this.#hooks.onState(this.#state);
  }

  #ping() {
    if (Date.now() - this.#heardAt > SILENCE_LIMIT_MS) {
      this.#drop("silence");
      this.#again("no sign of life from the edge");
      return;
    }
    const id = `ping ${(this.#pingsSent += 1)}`;
    const oldest = this.#pings.keys().next().value;
    if (this.#pings.size === PINGS_IN_FLIGHT && oldest !== undefined) this.#pings.delete(oldest);
    this.#pings.set(id, performance.now());
    this.send({ action: "ping", id });
  }
}

/**
 * How long to wait before an attempt: drawn between nothing and a time that doubles from 250 ms to 10 s.
 *
 * @param {number} attempt 1 for the first
 * @param {() => number} random in [0, 1)
 * @returns {number} ms
 */
export function backoff(attempt, random) {
  return Math.min(LAST_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(attempt - 1, 16)) * random();
}
