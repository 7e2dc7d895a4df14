// A WebSocket client that nobody here wrote (npm `ws`), and what it makes of every frame by the document.

import WebSocket from "ws";

import { Changes, take } from "./changes.mjs";

/** All frames of all connections, each held against the document. */
export class Traffic {
  /** Messages that went over the wire. */
  seen = new Set();
  /** Frames that are no message, or more than one. */
  faults = [];

  constructor(document) {
    this.document = document;
  }

  /** A frame that an edge sent. */
  received(text, isBinary) {
    if (isBinary) return this.faults.push("an edge sent a binary frame");
    this.#is(text, this.document.ofEdges);
  }

  /** A frame that a client sent. */
  sent(text) {
    this.#is(text, this.document.ofClients);
  }

  /** A frame that a client sent though the document does not allow it. */
  sentWrongly(text) {
    const names = this.document.match(parsed(text), this.document.ofClients);
    if (names.length) this.faults.push(`the document takes for ${names}: ${text}`);
  }

  closed(code) {
    if (!this.document.closeCodes.has(code)) this.faults.push(`closed with ${code}, which the document does not list`);
  }

  refused(body) {
    if (!this.document.isHandshakeError(parsed(body))) this.faults.push(`a handshake was refused with ${body}`);
  }

  #is(text, candidates) {
    const names = this.document.match(parsed(text), candidates);
    if (names.length === 1) this.seen.add(names[0]);
    else this.faults.push(`is ${names.length ? names.join(" and ") : "no message"}: ${text}`);
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** One connection, with the messages that it received and nobody asked for yet. */
export class Connection {
  messages = [];
  #traffic;
  #nextId = 1;
  /** Whether it is this side that ends it without a word. */
  #isCut = false;
  #changes = new Changes();

  /** Tries to connect: there is a `welcome` then, or a `refusal` with status, headers and error. */
  static async open(traffic, url, options) {
    const connection = new Connection(traffic, url, options);
    await connection.#until("welcome or a refusal", () => connection.refusal ?? connection.messages[0]);
    connection.welcome = connection.messages.shift();
    return connection;
  }

  constructor(traffic, url, { headers, protocols = [] } = {}) {
    this.#traffic = traffic;
    this.socket = new WebSocket(url, protocols, { headers });
    this.socket.on("message", (bytes, isBinary) => {
      traffic.received(bytes.toString(), isBinary);
      this.#note(() => this.messages.push(JSON.parse(bytes.toString())));
    });
    this.socket.on("close", (code, reason) => {
      if (!this.#isCut) traffic.closed(code);
      this.#note(() => (this.closed = { code, reason: reason.toString() }));
    });
    this.socket.on("unexpected-response", async (request, response) => {
      const body = Buffer.concat(await response.toArray()).toString();
      traffic.refused(body);
      this.#note(() => (this.refusal = { status: response.statusCode, headers: response.headers, ...parsed(body) }));
      this.cut();
      request.destroy();
    });
    this.socket.on("error", (error) => this.#note(() => (this.failed = error)));
  }

  #note(happened) {
    happened();
    this.#changes.notify();
  }

  send(frame) {
    const text = typeof frame === "string" ? frame : JSON.stringify(frame);
    this.#traffic.sent(text);
    this.socket.send(text);
  }

  /** Sends what the document does not allow. */
  sendWrongly(frame) {
    this.#traffic.sentWrongly(frame.toString());
    this.socket.send(frame);
  }

  /** The answer to a request, by its id. */
  ask(request) {
    const id = this.#nextId++;
    this.send({ ...request, id });
    return this.next(`the answer to ${JSON.stringify(request)}`, (message) => message.id === id);
  }

  /** The next message for which `holds`; those before it are passed over. */
  next(what, holds) {
    return this.#until(what, () => take(this.messages, holds));
  }

  /** The next event of a stream. */
  event(stream) {
    return this.next(`an event of ${stream}`, (message) => message.stream === stream && message.event === undefined);
  }

  /** How the edge closes the connection. */
  close() {
    return this.#until("the close", () => this.closed);
  }

  /** Closes the connection from here. */
  end() {
    this.socket.close(1000);
    return this.close();
  }

  /** Ends the connection without a word. */
  cut() {
    this.#isCut = true;
    this.socket.terminate();
  }

  #until(what, look) {
    return this.#changes.until(what, look, () => this.closed && `closed, ${JSON.stringify(this.closed)} ${this.failed ?? ""}`);
  }
}
