// A client whose edges are played by the test.

import { TickmeshClient } from "../../web/tickmesh.js";

export const URLS = ["ws://eu/ws", "ws://us/ws", "ws://ap/ws"];

/** A socket whose other end is the test. */
export class FakeSocket {
  /** @type {FakeSocket[]} */
  static all = [];
  readyState = 0;
  sent = [];

  constructor(url, protocols) {
    this.url = url;
    this.protocols = protocols;
    FakeSocket.all.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.readyState = 3;
  }

  say(message) {
    this.onmessage({ data: typeof message === "string" ? message : JSON.stringify(message) });
  }

  welcome(node = "eu-1", limits = {}) {
    this.readyState = 1;
    this.say({ event: "welcome", connection: "c1", node, region: "eu-west", limits });
  }

  /** Answers the newest subscribe. */
  confirm(positions = {}, rejected = []) {
    const { id, streams } = this.asked("subscribe").at(-1);
    const refused = new Set(rejected.map(({ stream }) => stream));
    this.say({ event: "subscribed", id, streams: streams.filter((name) => !refused.has(name)), positions, rejected });
  }

  /** Answers the newest resume: `replayed` events by stream were sent. */
  resumed(replayed = {}, positions = {}, rejected = []) {
    const { id, positions: asked } = this.asked("resume").at(-1);
    const refused = new Set(rejected.map(({ stream }) => stream));
    const from = (position) => (typeof position === "number" ? { epoch: EPOCH, sequence: position } : position);
    const streams = Object.entries(asked)
      .filter(([stream]) => !refused.has(stream))
      .map(([stream, position]) => ({ stream, from: from(position), replayed: replayed[stream] ?? 0 }));
    this.say({ event: "resumed", id, streams, positions, rejected });
  }

  event(stream, sequence, previous, more = {}) {
    this.say({ stream, sequence, previous, data: {}, ...more });
  }

  lose(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose({ code, reason });
  }

  asked(action) {
    return this.sent.filter((message) => message.action === action);
  }
}

export const EPOCH = "0000000000000007";
export const at = (sequence, epoch = EPOCH) => ({ epoch, sequence });

/** The newest socket. */
export const last = () => FakeSocket.all.at(-1);

export function start(names = ["trades.a"], options = {}) {
  const seen = [];
  const breaks = [];
  const states = [];
  const client = new TickmeshClient({
    urls: URLS, WebSocket: FakeSocket, random: () => 0.5, onState: (state) => states.push(state), ...options,
  });
  const subscription = client.subscribe(names, (message) => seen.push(message.sequence), { onBreak: (cause) => breaks.push(cause) });
  client.connect();
  return { client, subscription, seen, breaks, states };
}

/** What waits for a promise has been done. */
export const settled = () => new Promise((resolve) => setImmediate(resolve));
