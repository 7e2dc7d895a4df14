// One stream that a client wants: who takes its events, what was asked for, and where it stands.

import { Link } from "./link.js";

/**
 * @typedef {object} Message
 * @property {string} stream
 * @property {number} sequence
 * @property {number | null} previous sequence of the event before; null where the edge knows none
 * @property {any} data
 * @property {boolean} [snapshot]  all events up to this one added up: it replaces what was before
 * @property {boolean} [conflated] the newest one, for a client that read slowly: those before it were left out
 * @property {string} [epoch]      of a signed event: what the sequence counts in
 * @property {string} [signature]  of a signed event: a detached JWS over stream, epoch, sequence and data
 * @property {boolean} [verified]  with `jwks`: whether the signature is good; absent where the event has none, or where nobody
 *   can say (no Ed25519 in this browser, no keys to be had), which `client.stats.unverifiable` counts
 *
 * @typedef {object} Break something a handler should know before the next event of the stream
 * @property {string} stream
 * @property {"gap" | "reset" | "rejected"} kind
 *   gap: events are lost; reset: numbered anew, all that was known is void; rejected: the edge refuses the stream
 * @property {number | null} after      last sequence handed on before
 * @property {number | null} [before]   gap: `previous` of the event that shows it, or where the stream goes on if the edge told it
 * @property {number | null} [sequence] gap: of the event that shows it; null if the edge told it
 * @property {string} [code]            rejected, or a gap that the edge told: why
 * @property {string} [message]
 * @property {import("./link.js").Position} [oldest] a gap that the edge told: the oldest event that could still be had
 *
 * @typedef {{ stream: string, code: string, message: string, oldest?: import("./link.js").Position }} Rejection
 * @typedef {{ onMessage: (message: Message) => void, onBreak?: (cause: Break) => void }} Subscriber
 */

// The edge's own limits of one request: names, and bytes where `welcome` does not say.
const STREAMS_PER_REQUEST = 1024;
const BYTES_PER_REQUEST = 65_536;

// What a request has besides its streams.
const BYTES_AROUND = 128;

export class Stream {
  /** @type {Set<Subscriber>} */
  subscribers = new Set();
  /** @type {"wanted" | "subscribing" | "resuming" | "live" | "rejected"} */
  status = "wanted";
  link = new Link();
  gaps = 0;
  duplicates = 0;
  /** Id of the last request; the answer to an older one is not to be mistaken for its answer. */
  request = 0;

  /** @param {string} name */
  constructor(name) {
    this.name = name;
  }

  /** Whether it waits for the answer to just this request. @param {number} id */
  isAsked(id) {
    return this.request === id && (this.status === "subscribing" || this.status === "resuming");
  }

  /** Whether its events are to be handed on: before `subscribed` they are leftovers of a subscription that was given up. */
  get takesEvents() {
    return this.status === "live" || this.status === "resuming";
  }

  /** @param {Omit<Break, "stream">} cause */
  tell(cause) {
    for (const subscriber of this.subscribers) subscriber.onBreak?.({ stream: this.name, ...cause });
  }
}

/**
 * Divides streams into what goes into one request each.
 *
 * @param {Stream[]} streams
 * @param {number} [bytes] the edge's limit
 */
export function* inRequests(streams, bytes = BYTES_PER_REQUEST) {
  const room = bytes - BYTES_AROUND;
  const encoder = new TextEncoder();
  /** @type {Stream[]} */
  let part = [];
  let size = 0;
  for (const stream of streams) {
    const own = encoder.encode(JSON.stringify([stream.name, stream.link])).length;
    if (part.length === STREAMS_PER_REQUEST || (part.length > 0 && size + own > room)) {
      yield part;
      part = [];
      size = 0;
    }
    part.push(stream);
    size += own;
  }
  if (part.length > 0) yield part;
}
