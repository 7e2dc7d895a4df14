// Client of a tickmesh edge, protocol v1: one WebSocket, many streams, several edges to fall back on. No dependency; runs in
// a browser, and elsewhere with a WebSocket class handed in.
//
//     const client = new TickmeshClient({ urls: ["wss://eu.example.com/ws", "wss://us.example.com/ws"] });
//     const subscription = client.subscribe(["trades.btc_usdt"], ({ sequence, data }) => console.log(sequence, data.price));
//     client.connect();
//     subscription.unsubscribe();
//
// With `jwks`, the exchange's public keys, each event says whether its signature is good: `verified`.
//
// What it promises to a handler: the events of a stream in the order of their sequence, each once, and no gap it is not told
// of (`onBreak`, and the counters of `client.stats`).

import { Verifier } from "./signature.js";

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
 * @typedef {object} Message
 * @property {string} stream
 * @property {number} sequence
 * @property {number | null} previous sequence of the event before; null where the edge knows none
 * @property {any} data
 * @property {boolean} [snapshot]
 * @property {string} [epoch]      of a signed event: what the sequence counts in
 * @property {string} [signature]  of a signed event: a detached JWS over stream, epoch, sequence and data
 * @property {boolean} [verified]  with `jwks`: whether the signature is good; absent where the event has none, or where nobody
 *   can say (no Ed25519 in this browser, no keys to be had), which `client.stats.unverifiable` counts
 *
 * @typedef {object} Break something a handler should know before the next event of the stream
 * @property {string} stream
 * @property {"gap" | "missed" | "reset" | "rejected"} kind
 *   gap: the edge's events do not link up; missed: events went by while this client was away; reset: numbered anew, all that
 *   was known is void; rejected: the edge refuses the stream
 * @property {number | null} after  last sequence delivered before
 * @property {number | null} before gap: `previous` of the next event; missed: where the stream stood at the subscription
 * @property {string} [code]
 * @property {string} [message]
 */

// First delay after a lost connection, doubled with each failure up to the last. Each delay is drawn from its upper half, so
// that the clients of a lost edge do not come back in step.
const FIRST_DELAY_MS = 250;
const LAST_DELAY_MS = 10_000;

// A connection that has no welcome by then is given up: a handshake across the world takes well under two seconds.
const CONNECT_TIMEOUT_MS = 8_000;

// Round trips are measured this often; the answer also shows that the connection lives.
const PING_INTERVAL_MS = 2_000;

// Nothing at all for so long, with pings unanswered and the edge's own heartbeat (5 s) missed twice: the connection is dead.
const SILENCE_LIMIT_MS = 11_000;

// An edge that could not reach anyone who knows a stream answers `unavailable`: ask again after so long.
const RESUBSCRIBE_DELAY_MS = 1_000;

// The edge's own limit of names in one request.
const STREAMS_PER_REQUEST = 1024;

// Pings without an answer that are remembered.
const PINGS_IN_FLIGHT = 8;

// What the edge is asked to speak; a token goes beside it, as browsers can put it nowhere else but into the address.
const SUBPROTOCOL = "tickmesh.v1";

// The edge closes with this when credentials have expired or were taken back. With a new token one more attempt is made.
const CREDENTIALS_CLOSE_CODE = 4401;

// Close codes after which coming back without a change is useless: protocol, text that is not UTF-8, policy, too big, credentials.
const FINAL_CLOSE_CODES = new Set([1002, 1007, 1008, 1009, CREDENTIALS_CLOSE_CODE]);

// Close code of an edge that drains, and of one that has too many clients or requests.
const DRAIN_CLOSE_CODE = 1001;
const RATE_CLOSE_CODE = 4429;

// After 4429 the backoff begins as if so many attempts had failed: one to two seconds.
const RATE_ATTEMPTS = 4;

// A connection that lived shorter than this did not really succeed: the backoff goes on where it was.
const STABLE_AFTER_MS = 5_000;

// Rejections that pass.
const PASSING_CODES = new Set(["unavailable", "rate_limited", "overloaded", "internal"]);

/** One stream this client wants, and where it stands. */
class Stream {
  /** @type {Set<Subscriber>} */
  subscribers = new Set();
  /** @type {"wanted" | "asked" | "live" | "rejected"} */
  status = "wanted";
  /** @type {number | null} */
  sequence = null;
  /** @type {string | number | null} */
  epoch = null;
  gaps = 0;
  duplicates = 0;
  /** Events up to here may come again from an edge that is behind the one before. */
  replayUntil = -1;
  /** Id of the subscribe request that is not to be mistaken for an older one. */
  request = 0;

  constructor(name) {
    this.name = name;
  }
}

/** @typedef {{ onMessage: (message: Message) => void, onBreak?: (cause: Break) => void }} Subscriber */

export class TickmeshClient {
  #options;
  #urls;
  #urlIndex = 0;
  #socket = null;
  /** @type {Map<string, Stream>} */
  #streams = new Map();
  #nextId = 1;
  #pings = new Map();
  #timers = { connect: null, retry: null, ping: null, resubscribe: null, drain: null };
  #heardAt = 0;
  #onlineAt = 0;
  #failures = 0;
  /** The attempt that waits for its token. */
  #opening = null;
  /** @type {Verifier | null} */
  #verifier;
  /** Ends when everything received so far has been handed on; null if nothing waits. */
  #verifying = null;
  /** Tokens refused since one was accepted for a while. */
  #refusals = 0;
  /** @type {State} */
  #state;

  /**
   * Since the client was made. `missed`: streams that went on while it was away; `replayed`: events that an edge behind the one
   * before sent again; `unlinked`: events in mid-stream without `previous`, so that nobody can say whether one is missing;
   * `verified`, `forged`, `unverifiable`: signed events by what became of their signatures.
   */
  stats = {
    events: 0, bytes: 0, gaps: 0, duplicates: 0, missed: 0, replayed: 0, unlinked: 0, connections: 0, errors: 0,
    verified: 0, forged: 0, unverifiable: 0,
  };

  /**
   * @param {object} options
   * @param {string[]} options.urls edges, the preferred one first
   * @param {(state: State) => void} [options.onState]
   * @param {(ms: number) => void} [options.onRoundTrip]
   * @param {(error: { code: string, message: string }) => void} [options.onError] `error` messages of the edge
   * @param {typeof WebSocket} [options.WebSocket]
   * @param {() => number} [options.random] in [0, 1)
   * @param {() => string | Promise<string>} [options.token] gives the token to sign in with; asked at each connection, and
   *   again before one expires
   * @param {string | URL | import("./signature.js").Jwks} [options.jwks] public keys to verify signed events with: an
   *   address, or the set itself; best had from the exchange and not from the edge
   * @param {string[]} [options.protocols] subprotocols, if no token is given
   */
  constructor(options) {
    if (!options.urls?.length) throw new TypeError("urls must name at least one edge");
    this.#options = { WebSocket: globalThis.WebSocket, random: Math.random, ...options };
    this.#verifier = options.jwks ? new Verifier(options.jwks) : null;
    this.#urls = [...options.urls];
    this.#state = { phase: "idle", url: this.#urls[0], attempt: 0, draining: false };
  }

  /** @returns {State} */
  get state() {
    return this.#state;
  }

  /** Begins; comes back by itself until close(). */
  connect() {
    if (this.#state.phase === "idle" || this.#state.phase === "closed") this.#open(0);
  }

  /** Ends the connection and all attempts. Subscriptions are kept for the next connect(). */
  close() {
    this.#drop("closed by this client");
    this.#setState({ phase: "idle", attempt: 0, draining: false });
  }

  /**
   * Goes to other edges at once, with all subscriptions.
   *
   * @param {string[]} urls the preferred one first
   */
  moveTo(urls) {
    if (!urls.length) throw new TypeError("urls must name at least one edge");
    this.#drop("moved to another edge");
    this.#urls = [...urls];
    this.#urlIndex = 0;
    this.#failures = 0;
    this.#open(0);
  }

  /** Does not wait for the next attempt: the network is back, or a person asks. */
  retryNow() {
    if (this.#state.phase === "waiting" || this.#state.phase === "closed") this.#open(this.#state.attempt);
  }

  /**
   * @param {string[]} names such as "trades.btc_usdt"
   * @param {(message: Message) => void} onMessage
   * @param {{ onBreak?: (cause: Break) => void }} [more]
   * @returns {{ unsubscribe(): void }}
   */
  subscribe(names, onMessage, { onBreak } = {}) {
    const subscriber = { onMessage, onBreak };
    for (const name of names) {
      if (!this.#streams.has(name)) this.#streams.set(name, new Stream(name));
      this.#streams.get(name).subscribers.add(subscriber);
    }
    this.#ask();
    return { unsubscribe: () => this.#leave(names, subscriber) };
  }

  /**
   * Where a stream stands; undefined if nobody subscribed to it.
   *
   * @param {string} name
   * @returns {{ status: string, sequence: number | null, epoch: any, gaps: number, duplicates: number } | undefined}
   */
  stream(name) {
    const stream = this.#streams.get(name);
    if (!stream) return undefined;
    const { status, sequence, epoch, gaps, duplicates } = stream;
    return { status, sequence, epoch, gaps, duplicates };
  }

  // The connection

  #open(attempt) {
    this.#clearTimer("retry");
    const url = this.#urls[this.#urlIndex];
    this.#onlineAt = 0;
    this.#setState({ phase: "connecting", url, attempt, draining: false, retryAt: undefined, welcome: undefined });
    if (!this.#options.token) {
      this.#dial(url, this.#options.protocols ?? []);
      return;
    }
    const opening = (this.#opening = {});
    this.#token().then(
      (token) => this.#opening === opening && this.#dial(url, [SUBPROTOCOL, `bearer.${token}`]),
      (error) => this.#opening === opening && this.#again(`no token: ${error.message}`),
    );
  }

  async #token() {
    return this.#options.token();
  }

  #dial(url, protocols) {
    this.#opening = null;
    let socket;
    try {
      socket = new this.#options.WebSocket(url, protocols);
    } catch (error) {
      this.#again(`no connection: ${error.message}`);
      return;
    }
    this.#socket = socket;
    // A socket that was given up still has events to come: they are not this connection's.
    const current = (handle) => (event) => {
      if (this.#socket === socket) handle(event);
    };
    socket.onmessage = current((event) => this.#receive(event.data, socket));
    socket.onclose = current((event) => this.#inOrder(socket, undefined, () => this.#closed(event)));
    this.#timers.connect = setTimeout(() => {
      this.#drop("no welcome in time");
      this.#again("no welcome in time");
    }, CONNECT_TIMEOUT_MS);
  }

  #closed({ code, reason }) {
    const words = reason || (code === 1006 ? "connection lost" : `closed with ${code}`);
    if (this.#onlineAt && Date.now() - this.#onlineAt > STABLE_AFTER_MS) this.#refusals = 0;
    this.#drop(words);
    const renewable = code === CREDENTIALS_CLOSE_CODE && this.#options.token && this.#refusals++ === 0;
    if (FINAL_CLOSE_CODES.has(code) && !renewable) {
      this.#setState({ phase: "closed", reason: words, welcome: undefined });
    } else {
      this.#again(words, code);
    }
  }

  /** Ends the socket, if there is one, without a word to its handlers. */
  #drop(reason) {
    for (const name of Object.keys(this.#timers)) this.#clearTimer(name);
    const socket = this.#socket;
    this.#socket = null;
    this.#opening = null;
    this.#verifying = null;
    this.#pings.clear();
    for (const stream of this.#streams.values()) stream.status = "wanted";
    if (socket && socket.readyState <= 1) socket.close(1000, reason);
  }

  #again(reason, code) {
    if (this.#onlineAt && Date.now() - this.#onlineAt > STABLE_AFTER_MS) this.#failures = 0;
    this.#failures = Math.max(this.#failures + 1, code === RATE_CLOSE_CODE ? RATE_ATTEMPTS : 1);
    // The same edge once more, then the others in turn; an edge that drains is left at once.
    if (this.#failures > 1 || code === DRAIN_CLOSE_CODE) this.#urlIndex = (this.#urlIndex + 1) % this.#urls.length;
    const delay = backoff(this.#failures, this.#options.random);
    const url = this.#urls[this.#urlIndex];
    const [attempt, retryAt] = [this.#failures, Date.now() + delay];
    this.#setState({ phase: "waiting", url, attempt, reason, retryAt, draining: false, welcome: undefined });
    this.#timers.retry = setTimeout(() => this.#open(attempt), delay);
  }

  #setState(change) {
    this.#state = { ...this.#state, ...change };
    this.#options.onState?.(this.#state);
  }

  #clearTimer(name) {
    clearTimeout(this.#timers[name]);
    this.#timers[name] = null;
  }

  #send(message) {
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(message));
  }

  // What the edge says

  #receive(text, socket) {
    this.#heardAt = Date.now();
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      this.stats.errors += 1;
      return;
    }
    if (message.event === undefined) this.stats.bytes += text.length;
    const signed = this.#verifier && message.event === undefined && message.signature !== undefined;
    const verdict = signed ? this.#verifier.verify(text, message) : undefined;
    this.#inOrder(socket, verdict, (verified) => {
      if (signed) this.#note(message, verified);
      this.#handle(message);
    });
  }

  /**
   * Does something when everything before it is done and, where there is a verdict to wait for, that is there. Signatures are
   * verified side by side, and what they say is handed on in order; without any, nothing waits.
   */
  #inOrder(socket, verdict, act) {
    if (!verdict && !this.#verifying) {
      act(undefined);
      return;
    }
    const before = this.#verifying;
    const done = (async () => {
      const verified = await verdict;
      await before;
      try {
        // What a given-up socket has said is not this connection's.
        if (this.#socket === socket) act(verified);
      } catch (error) {
        // A handler's, to be seen as if nothing had waited; what comes next goes on.
        queueMicrotask(() => {
          throw error;
        });
      }
      if (this.#verifying === done) this.#verifying = null;
    })();
    this.#verifying = done;
  }

  #note(message, verified) {
    if (verified === undefined) {
      this.stats.unverifiable += 1;
      return;
    }
    message.verified = verified;
    this.stats[verified ? "verified" : "forged"] += 1;
  }

  #handle(message) {
    if (message.event === undefined) {
      this.#data(message);
      return;
    }
    switch (message.event) {
      case "welcome":
        return this.#welcome(message);
      case "subscribed":
        return this.#subscribed(message);
      case "pong":
        return this.#pong(message.id);
      case "reset":
        return this.#reset(message);
      case "warning":
        return this.#warned(message);
      case "draining":
        return this.#draining(message.reconnectAfter);
      case "error":
        this.stats.errors += 1;
        return this.#options.onError?.(message);
      default:
        // heartbeat, unsubscribed, and what later versions add.
    }
  }

  #welcome(welcome) {
    this.#clearTimer("connect");
    this.stats.connections += 1;
    this.#onlineAt = Date.now();
    this.#setState({ phase: "online", attempt: 0, reason: undefined, welcome });
    this.#ask();
    this.#ping();
    this.#timers.ping = setInterval(() => this.#ping(), PING_INTERVAL_MS);
  }

  #data(message) {
    const stream = this.#streams.get(message.stream);
    // Before `subscribed` these are leftovers of a subscription that was given up.
    if (!stream || stream.status !== "live") return;
    const { sequence, previous } = message;
    const last = stream.sequence;
    if (last !== null && !message.snapshot) {
      if (sequence <= last && sequence <= stream.replayUntil) {
        this.stats.replayed += 1;
        return;
      }
      if (sequence <= last) {
        stream.duplicates += 1;
        this.stats.duplicates += 1;
        return;
      }
      if (previous === null) {
        this.stats.unlinked += 1;
      } else if (previous > last) {
        stream.gaps += 1;
        this.stats.gaps += 1;
        this.#tell(stream, { kind: "gap", after: last, before: previous });
      }
    }
    stream.sequence = sequence;
    this.stats.events += 1;
    for (const subscriber of stream.subscribers) subscriber.onMessage(message);
  }

  #reset({ stream: name, epoch }) {
    const stream = this.#streams.get(name);
    if (!stream) return;
    const after = stream.sequence;
    stream.sequence = null;
    stream.replayUntil = -1;
    stream.epoch = epoch;
    this.#tell(stream, { kind: "reset", after, before: null });
  }

  /** Shows a new token before the one in use expires. */
  #warned({ code }) {
    if (code !== "token_expired" || !this.#options.token) return;
    const socket = this.#socket;
    this.#token().then(
      (token) => this.#socket === socket && this.#send({ action: "authenticate", id: this.#nextId++, token }),
      // The connection will be closed, and the next one asks again.
      () => undefined,
    );
  }

  #draining(reconnectAfter) {
    // Until then the edge still delivers. Up to half as long again, so that its clients do not arrive together.
    const delay = Math.max(0, Number(reconnectAfter) || 0) * (1 + this.#options.random() / 2);
    this.#setState({ draining: true });
    this.#clearTimer("drain");
    this.#timers.drain = setTimeout(() => {
      this.#drop("the edge drains");
      this.#urlIndex = (this.#urlIndex + 1) % this.#urls.length;
      this.#open(0);
    }, delay);
  }

  #tell(stream, cause) {
    for (const subscriber of stream.subscribers) subscriber.onBreak?.({ stream: stream.name, ...cause });
  }

  // Subscriptions

  /** Asks for every stream that is wanted and not yet asked for. */
  #ask() {
    if (this.#state.phase !== "online") return;
    const wanted = [...this.#streams.values()].filter((stream) => stream.status === "wanted");
    for (let i = 0; i < wanted.length; i += STREAMS_PER_REQUEST) {
      const part = wanted.slice(i, i + STREAMS_PER_REQUEST);
      const id = this.#nextId++;
      for (const stream of part) {
        stream.status = "asked";
        stream.request = id;
      }
      this.#send({ action: "subscribe", id, streams: part.map(({ name }) => name) });
    }
  }

  #leave(names, subscriber) {
    const left = [];
    for (const name of names) {
      const stream = this.#streams.get(name);
      if (!stream?.subscribers.delete(subscriber) || stream.subscribers.size > 0) continue;
      this.#streams.delete(name);
      if (stream.status === "asked" || stream.status === "live") left.push(name);
    }
    if (left.length) this.#send({ action: "unsubscribe", id: this.#nextId++, streams: left });
  }

  #subscribed({ id, streams = [], positions = {}, rejected = [] }) {
    for (const name of streams) {
      const stream = this.#streams.get(name);
      // An answer to an older request: the stream was left and asked for again since.
      if (!stream || stream.status !== "asked" || stream.request !== id) continue;
      stream.status = "live";
      this.#resumeAt(stream, positions[name]);
    }
    for (const { stream: name, code, message } of rejected) {
      const stream = this.#streams.get(name);
      if (!stream || stream.request !== id) continue;
      const passing = PASSING_CODES.has(code);
      stream.status = passing ? "wanted" : "rejected";
      if (passing && this.#timers.resubscribe === null) {
        this.#timers.resubscribe = setTimeout(() => {
          this.#timers.resubscribe = null;
          this.#ask();
        }, RESUBSCRIBE_DELAY_MS);
      }
      this.#tell(stream, { kind: "rejected", after: stream.sequence, before: null, code, message });
    }
  }

  /** Everything after `position` will come: what lies between the last event seen and it will not. */
  #resumeAt(stream, position) {
    if (!position) return;
    const last = stream.sequence;
    if (stream.epoch !== null && stream.epoch !== position.epoch) {
      this.#tell(stream, { kind: "reset", after: last, before: position.sequence });
    } else if (last !== null && position.sequence > last) {
      this.stats.missed += 1;
      this.#tell(stream, { kind: "missed", after: last, before: position.sequence });
    } else if (last !== null && position.sequence < last) {
      // This edge is behind the one before: it will send events that were delivered already. They are dropped, and are
      // no fault of anyone.
      stream.epoch = position.epoch;
      stream.replayUntil = last;
      return;
    }
    stream.epoch = position.epoch;
    stream.sequence = position.sequence;
  }

  // Signs of life

  #ping() {
    if (Date.now() - this.#heardAt > SILENCE_LIMIT_MS) {
      this.#drop("silence");
      this.#again("no sign of life from the edge");
      return;
    }
    const id = this.#nextId++;
    if (this.#pings.size === PINGS_IN_FLIGHT) this.#pings.delete(this.#pings.keys().next().value);
    this.#pings.set(id, performance.now());
    this.#send({ action: "ping", id });
  }

  #pong(id) {
    const sent = this.#pings.get(id);
    if (sent === undefined) return;
    this.#pings.delete(id);
    this.#options.onRoundTrip?.(performance.now() - sent);
  }
}

/**
 * How long to wait before an attempt: doubles from 250 ms to 10 s, drawn from the upper half.
 *
 * @param {number} attempt 1 for the first
 * @param {() => number} random in [0, 1)
 * @returns {number} ms
 */
export function backoff(attempt, random) {
  const ceiling = Math.min(LAST_DELAY_MS, FIRST_DELAY_MS * 2 ** Math.min(attempt - 1, 16));
  return ceiling / 2 + (ceiling / 2) * random();
}
