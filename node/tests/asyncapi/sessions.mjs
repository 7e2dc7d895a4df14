// The sessions of docs/protocol.md, run with the very commands that they name.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { delimiter, dirname, resolve } from "node:path";

import { Changes, take } from "./changes.mjs";

const FILE = new URL("../../../docs/protocol.md", import.meta.url);
/** Ports of the demo's edges where nothing else is said, in the order in which it lists them. */
const FIRST_PORT = 8080;

/** What is another number in each run, but the same one everywhere in it. */
const RENAMED = new Set(["epoch", "sequence", "previous"]);
/** What is another one each time, and compared by its type alone. */
const VARIES = new Set(["connection", "data", "expiresAt", "replayed", "signature", "timestamp"]);

/** Codes of an `error` for what is no request at all. */
const MISTAKES = new Set(["bad_request", "unknown_action"]);

/** Runs all sessions against the edges; `traffic` sees every frame. */
export async function runSessions(traffic, edges) {
  const run = new Run(traffic, edges);
  const blocks = (await readFile(FILE, "utf8")).matchAll(/^```\n(.*?)^```$/gms);
  try {
    for (const line of [...blocks].flatMap(([, lines]) => lines.trimEnd().split("\n"))) await run.line(line);
  } finally {
    run.end();
  }
  return run.lines;
}

class Run {
  lines = 0;
  #traffic;
  #edges;
  /** What stands on the page → what there is in this run. */
  #names = new Map();
  /** Commands before the one that connects. */
  #before = "";
  #session;
  /** The request that is not answered yet. */
  #sent;

  constructor(traffic, edges) {
    this.#traffic = traffic;
    this.#edges = edges;
  }

  end() {
    this.#session?.end();
  }

  async line(line) {
    const [sign, rest] = [line.slice(0, 2), line.slice(2)];
    if (sign === "$ ") this.#command(rest);
    else if (sign === "> ") this.#send(rest);
    else if (sign === "< ") await this.#expect(rest);
    else assert.equal(await this.#session.closed(), line);
    this.lines += 1;
  }

  #command(command) {
    if (!command.startsWith("websockets ")) return (this.#before += `${command}\n`);
    const url = /ws:\/\/127\.0\.0\.1:(\d+)\/ws/;
    const connect = command.replace(url, (_, port) => this.#edges[port - FIRST_PORT]);
    this.#session?.end();
    this.#session = new Session(this.#before + connect, this.#traffic);
    this.#before = "";
  }

  #send(text) {
    // A text is a number or an epoch of the page as a whole, or not at all.
    const renamed = text.replace(/"[0-9a-f]{16}"|\b\d+\b/g, (value) => {
      const name = JSON.parse(value);
      return JSON.stringify(this.#names.get(name) ?? name);
    });
    this.#session.send(renamed);
    this.#sent = renamed;
  }

  async #expect(text) {
    const expected = JSON.parse(text);
    const found = await this.#session.next(text, (message) =>
      expected.event ? message.event && message.event !== "heartbeat" : message.stream === expected.stream,
    );
    if (this.#sent !== undefined && expected.event) {
      if (MISTAKES.has(expected.code)) this.#traffic.sentWrongly(this.#sent);
      else this.#traffic.sent(this.#sent);
      this.#sent = undefined;
    }
    this.#compare(expected, found, "", `${JSON.stringify(found)}\nis not as on the page:\n${text}`);
  }

  #compare(expected, found, key, words) {
    if (RENAMED.has(key) && expected !== null && found !== null) {
      if (!this.#names.has(expected)) this.#names.set(expected, found);
      assert.equal(found, this.#names.get(expected), `${key} in ${words}`);
    } else if (VARIES.has(key)) {
      assert.equal(typeof found, typeof expected, `${key} in ${words}`);
    } else if (typeof expected === "object" && expected !== null && found !== null) {
      assert.deepEqual(Object.keys(found), Object.keys(expected), words);
      for (const name of Object.keys(expected)) this.#compare(expected[name], found[name], name, words);
    } else {
      assert.equal(found, expected, `${key} in ${words}`);
    }
  }
}

/** The command-line client of Python's `websockets`. */
class Session {
  #process;
  #traffic;
  #output = "";
  #messages = [];
  #changes = new Changes();

  constructor(command, traffic) {
    const tickmesh = resolve(dirname(process.env.TICKMESH_BINARY));
    const env = { ...process.env, PATH: tickmesh + delimiter + process.env.PATH, PYTHONUNBUFFERED: "1" };
    this.#traffic = traffic;
    this.#process = spawn("bash", ["-c", `set -e\n${command}`], { env, stdio: ["pipe", "pipe", "inherit"] });
    this.#process.stdout.setEncoding("utf8").on("data", (text) => this.#read(text));
    this.#process.on("exit", () => this.#changes.notify());
    // It may be gone already; then nothing that is expected comes.
    this.#process.stdin.on("error", () => {});
  }

  #read(text) {
    const lines = (this.#output + text).split("\n");
    this.#output = lines.pop();
    for (const line of lines) {
      // It moves the cursor, so that what comes does not disturb what is being typed.
      const plain = line.replace(/\x1b(?:\[[0-9]*[A-Za-z]|[78])|\r/g, "");
      const [, sign, rest] = /^(?:> )*(< |Connection closed: )(.*)$/.exec(plain) ?? [];
      if (sign === "< ") {
        this.#traffic.received(rest, false);
        this.#messages.push(JSON.parse(rest));
      } else if (sign) {
        this.#traffic.closed(Number.parseInt(rest, 10));
        this.close = sign + rest;
      }
    }
    this.#changes.notify();
  }

  send(text) {
    this.#process.stdin.write(`${text}\n`);
  }

  next(what, holds) {
    return this.#until(what, () => take(this.#messages, holds));
  }

  closed() {
    return this.#until("the close", () => this.close);
  }

  /** Types the end of the input. */
  end() {
    this.#process.stdin.end();
  }

  #until(what, look) {
    return this.#changes.until(what, look, () => this.#process.exitCode ?? undefined);
  }
}
