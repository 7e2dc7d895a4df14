// Client of a tickmesh edge, protocol v1: one WebSocket, many streams, several edges to fall back on. No dependency, no build
// step; runs in a browser, and in Node from version 22 on, or before that with the WebSocket class of the package `ws`.
//
//     import { TickmeshClient } from "./tickmesh.js";   // with the files beside it; any edge with a page serves them
//
//     const client = new TickmeshClient({ urls: ["wss://eu.example.com/ws", "wss://us.example.com/ws"] });
//     const subscription = client.subscribe(["trades.btc_usdt"], ({ sequence, data }) => console.log(sequence, data.price), {
//       onBreak: (cause) => console.warn(cause),
//     });
//     client.connect();
//     subscription.unsubscribe();
//
// What it promises to a handler: the events of a stream in the order of their sequence, each once, and no gap it is not told
// of (`onBreak`, and the counters of `client.stats`). After a lost connection it goes to the next edge, later and later, and
// resumes each stream where it stood. `client.positions`, kept somewhere and given back as `positions`, lets another process
// go on. With `token` it signs in, and shows a new token before the one in use expires. With `jwks`, the exchange's public keys,
// each event says whether its signature is good: `verified`.
//
// Types are in JSDoc: TypeScript reads them with `allowJs`, editors without anything.

import { Connection } from "./connection.js";
import { Link } from "./link.js";
import { Verifier } from "./signature.js";
import { Stream, inRequests } from "./stream.js";
import { Tokens } from "./tokens.js";

/**
 * @typedef {import("./link.js").Position} Position
 * @typedef {import("./connection.js").Phase} Phase
 * @typedef {import("./connection.js").State} State
 * @typedef {import("./connection.js").Welcome} Welcome
 * @typedef {import("./stream.js").Message} Message
 * @typedef {import("./stream.js").Break} Break
 * @typedef {import("./stream.js").Rejection} Rejection
 */

// An edge that could not reach anyone who knows a stream answers `unavailable`: ask again after so long.
const ASK_AGAIN_MS = 1_000;

// Rejections that pass.
const PASSING_CODES = new Set(["unavailable", "rate_limited", "overloaded", "internal"]);

// Rejections by which the edge tells that events are lost; the stream goes on.
const LOST_CODES = new Set(["resume_gap", "epoch_changed"]);

export class TickmeshClient {
  #connection;
  #options;
  /** @type {Map<string, Stream>} */
  #streams = new Map();
  /** Where streams of another process stood that are not subscribed yet. @type {Map<string, Position | number | null>} */
  #kept;
  #nextId = 1;
  /** @type {ReturnType<typeof setTimeout> | null} */
  #askingAgain = null;
  /** Whether the edge is being asked for the epochs of streams. */
  #askingEpochs = false;
  /** @type {Verifier | null} */
  #verifier;

  /**
   * Since the client was made. `resumed`: streams that went on after a lost connection with nothing missing; `replayed`: events
   * they had missed and were given; `gaps`: how often events were lost; `duplicates`: events that came again and were dropped;
   * `verified`, `forged`, `unverifiable`: signed events by what became of their signatures.
   */
  stats = {
    events: 0, bytes: 0, resumed: 0, replayed: 0, gaps: 0, duplicates: 0, connections: 0, errors: 0,
    verified: 0, forged: 0, unverifiable: 0,
  };

  /**
   * @param {object} options
   * @param {string[]} options.urls edges, the preferred one first
   * @param {(state: State) => void} [options.onState]
   * @param {(ms: number) => void} [options.onRoundTrip]
   * @param {(error: { code: string, message: string }) => void} [options.onError] `error` messages of the edge
   * @param {any} [options.WebSocket] the class, where there is no global one
   * @param {() => number} [options.random] in [0, 1)
   * @param {import("./tokens.js").Source} [options.token] gives the token to sign in with, or null; asked at each connection,
   *   and again before one expires
   * @param {string | URL | import("./signature.js").Jwks} [options.jwks] public keys to verify signed events with: an
   *   address, or the set itself; best had from the exchange and not from the edge
   * @param {Record<string, Position | number | null>} [options.positions] where streams stood: they are resumed from there
   * @param {string[]} [options.protocols] subprotocols, if no token is given
   */
  constructor(options) {
    checkUrls(options.urls);
    this.#options = options;
    this.#kept = new Map(Object.entries(options.positions ?? {}));
    this.#verifier = options.jwks ? new Verifier(options.jwks) : null;
    this.#connection = new Connection(
      { WebSocket: globalThis.WebSocket, random: Math.random, ...options },
      {
        onText: (text, order) => this.#receive(text, order),
        onDrop: () => this.#interrupt(),
        onState: (state) => options.onState?.(state),
        onRoundTrip: (ms) => options.onRoundTrip?.(ms),
      },
    );
  }

  /** @returns {State} */
  get state() {
    return this.#connection.state;
  }

  /** Where all streams stand that can be resumed, as `positions` takes it. @returns {Record<string, Position | number | null>} */
  get positions() {
    const known = [...this.#streams.values()].filter(({ link }) => link.isKnown);
    return Object.fromEntries([...this.#kept, ...known.map(({ name, link }) => [name, link.toJSON()])]);
  }

  /** Begins; comes back by itself until close(). */
  connect() {
    this.#connection.connect();
  }

  /** Ends the connection and all attempts. Subscriptions are kept for the next connect(). */
  close() {
    this.#connection.close();
  }

  /**
   * Goes to other edges at once, with all subscriptions.
   *
   * @param {string[]} urls the preferred one first
   */
  moveTo(urls) {
    checkUrls(urls);
    this.#connection.moveTo(urls);
  }

  /** Does not wait for the next attempt: the network is back, or a person asks. */
  retryNow() {
    this.#connection.retryNow();
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
      const stream = this.#streams.get(name) ?? this.#add(name);
      stream.subscribers.add(subscriber);
    }
    this.#ask();
    return { unsubscribe: () => this.#leave(names, subscriber) };
  }

  /**
   * Where a stream stands; undefined if nobody subscribed to it.
   *
   * @param {string} name
   * @returns {{ status: string, sequence: number | null, epoch: string | null, gaps: number, duplicates: number } | undefined}
   */
  stream(name) {
    const stream = this.#streams.get(name);
    if (!stream) return undefined;
    const { status, link, gaps, duplicates } = stream;
    return { status, sequence: link.last?.sequence ?? null, epoch: link.last?.epoch ?? null, gaps, duplicates };
  }

  // What the edge says

  #receive(text, order) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      this.stats.errors += 1;
      return;
    }
    if (message.event === undefined) this.stats.bytes += text.length;
    const signed = this.#verifier && message.event === undefined && message.signature !== undefined;
    const verdict = signed ? this.#verifier?.verify(text, message) : undefined;
    order.run(verdict, (verified) => {
      if (signed) this.#note(message, verified);
      this.#handle(message);
    });
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
      case "resumed":
        return this.#resumed(message);
      case "streams":
        return this.#learnEpochs(message);
      case "pong":
        return this.#connection.pong(message.id);
      case "reset":
        return this.#reset(message);
      case "warning":
        return message.code === "token_expired" ? void this.#connection.tokens?.refresh() : undefined;
      case "authenticated":
        return this.#connection.tokens?.authenticated(message.expiresAt);
      case "draining":
        return this.#connection.draining(message.reconnectAfter);
      case "error":
        return this.#error(message);
      default:
        // heartbeat, unsubscribed, and what later versions add.
    }
  }

  #welcome(welcome) {
    this.stats.connections += 1;
    this.#connection.welcomed(welcome);
    this.#ask();
    this.#connection.watch();
  }

  #data(message) {
    const stream = this.#streams.get(message.stream);
    if (!stream?.takesEvents) return;
    const after = stream.link.last?.sequence ?? null;
    const verdict = stream.link.advance(message);
    if (verdict === "duplicate") {
      stream.duplicates += 1;
      this.stats.duplicates += 1;
      return;
    }
    if (verdict === "gap") this.#gap(stream, { after, before: message.previous, sequence: message.sequence });
    this.stats.events += 1;
    if (stream.link.last?.epoch === null) this.#askEpochs();
    for (const subscriber of stream.subscribers) subscriber.onMessage(message);
  }

  #reset({ stream: name, epoch }) {
    const stream = this.#streams.get(name);
    if (!stream) return;
    const after = stream.link.last?.sequence ?? null;
    stream.link.reset(epoch);
    stream.tell({ kind: "reset", after });
  }

  #error(error) {
    this.stats.errors += 1;
    if (error.id === Tokens.ID) this.#connection.tokens?.refused();
    // A request that was refused as a whole.
    for (const stream of this.#streams.values()) if (stream.isAsked(error.id)) this.#reject(stream, error);
    this.#options.onError?.(error);
  }

  #gap(stream, cause) {
    stream.gaps += 1;
    this.stats.gaps += 1;
    stream.tell({ kind: "gap", ...cause });
  }

  // Subscriptions

  #add(name) {
    const stream = new Stream(name);
    const kept = this.#kept.get(name);
    if (kept !== undefined) stream.link.begin(kept);
    this.#kept.delete(name);
    this.#streams.set(name, stream);
    return stream;
  }

  #interrupt() {
    if (this.#askingAgain !== null) clearTimeout(this.#askingAgain);
    this.#askingAgain = null;
    this.#askingEpochs = false;
    for (const stream of this.#streams.values()) {
      stream.status = "wanted";
      stream.link.interrupt();
    }
  }

  /** Asks for every stream that is wanted and not yet asked for: resumes what was here before. */
  #ask() {
    if (!this.#connection.isOnline) return;
    const wanted = [...this.#streams.values()].filter(({ status }) => status === "wanted");
    const bytes = this.state.welcome?.limits?.message_bytes;
    for (const part of inRequests(wanted.filter(({ link }) => link.isKnown), bytes)) {
      this.#request(part, "resuming", {
        action: "resume", positions: Object.fromEntries(part.map(({ name, link }) => [name, link.toJSON()])),
      });
    }
    for (const part of inRequests(wanted.filter(({ link }) => !link.isKnown), bytes)) {
      this.#request(part, "subscribing", { action: "subscribe", streams: part.map(({ name }) => name) });
    }
  }

  #request(streams, status, message) {
    const id = this.#nextId++;
    for (const stream of streams) Object.assign(stream, { status, request: id });
    this.#connection.send({ id, ...message });
  }

  #leave(names, subscriber) {
    const left = [];
    for (const name of names) {
      const stream = this.#streams.get(name);
      if (!stream?.subscribers.delete(subscriber) || stream.subscribers.size > 0) continue;
      this.#streams.delete(name);
      if (stream.status !== "wanted" && stream.status !== "rejected") left.push(stream);
    }
    for (const part of inRequests(left)) {
      this.#connection.send({ action: "unsubscribe", id: this.#nextId++, streams: part.map(({ name }) => name) });
    }
  }

  #subscribed({ id, streams = [], positions = {}, rejected = [] }) {
    for (const stream of this.#answered(id, streams)) {
      stream.status = "live";
      stream.link.begin(positions[stream.name]);
    }
    for (const rejection of rejected) {
      for (const stream of this.#answered(id, [rejection.stream])) this.#reject(stream, rejection);
    }
  }

  /** What was missed has been handed on already. */
  #resumed({ id, streams = [], positions = {}, rejected = [] }) {
    for (const { stream: name, from, replayed } of streams) {
      for (const stream of this.#answered(id, [name])) {
        stream.status = "live";
        if (from) stream.link.learn(from.epoch);
        this.stats.resumed += 1;
        this.stats.replayed += replayed;
      }
    }
    for (const rejection of rejected) {
      for (const stream of this.#answered(id, [rejection.stream])) {
        if (LOST_CODES.has(rejection.code)) this.#goOn(stream, rejection, positions[stream.name] ?? null);
        else this.#reject(stream, rejection);
      }
    }
  }

  /** The edge tells that events of a stream are lost, and where it goes on. */
  #goOn(stream, { code, message, oldest }, position) {
    const last = stream.link.last;
    const after = last?.sequence ?? null;
    stream.status = "live";
    stream.link.begin(position);
    this.#gap(stream, { after, before: position?.sequence ?? null, sequence: null, code, message, oldest });
    const renumbered = position && last && last.epoch !== null && last.epoch !== position.epoch;
    if (renumbered) stream.tell({ kind: "reset", after });
  }

  #reject(stream, { code, message }) {
    const passing = PASSING_CODES.has(code);
    stream.status = passing ? "wanted" : "rejected";
    if (passing && this.#askingAgain === null) {
      this.#askingAgain = setTimeout(() => {
        this.#askingAgain = null;
        this.#ask();
      }, ASK_AGAIN_MS);
    }
    stream.tell({ kind: "rejected", after: stream.link.last?.sequence ?? null, code, message });
  }

  /** The streams of these names that wait for just this answer: others were left, and asked for again since. */
  #answered(id, names) {
    return names.map((name) => this.#streams.get(name)).filter((stream) => stream?.isAsked(id));
  }

  /** A stream that was empty has events now. An edge elsewhere must not take its number for one of another epoch. */
  #askEpochs() {
    if (this.#askingEpochs) return;
    this.#askingEpochs = true;
    this.#connection.send({ action: "streams", id: this.#nextId++ });
  }

  #learnEpochs({ positions = {} }) {
    this.#askingEpochs = false;
    for (const [name, position] of Object.entries(positions)) this.#streams.get(name)?.link.learn(position.epoch);
  }
}

function checkUrls(urls) {
  if (!urls?.length) throw new TypeError("urls must name at least one edge");
}
