// `tickmesh demo` on free ports. TICKMESH_BINARY names the command.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { setTimeout as pause } from "node:timers/promises";

const BINARY = process.env.TICKMESH_BINARY;
const START_MS = 60_000;
const LOOK_MS = 100;

export class Demo {
  output = "";

  static async start() {
    assert.ok(BINARY, "TICKMESH_BINARY is not set");
    const demo = new Demo(spawn(BINARY, ["demo", "--port", "0"], { stdio: ["ignore", "pipe", "inherit"] }));
    const deadline = Date.now() + START_MS;
    while (!(await demo.#isReady())) {
      assert.ok(Date.now() < deadline && demo.process.exitCode === null, `the demo is not ready:\n${demo.output}`);
      await pause(LOOK_MS);
    }
    return demo;
  }

  constructor(process) {
    this.process = process;
    this.exit = once(process, "exit");
    process.stdout.on("data", (text) => (this.output += text));
  }

  /** The endpoints of the edges, the home region's first. */
  get edges() {
    return [...this.output.matchAll(/^ *edge .* (ws:\S+)$/gm)].map(([, url]) => url);
  }

  async #isReady() {
    const edges = this.edges;
    if (!/Ctrl-C/.test(this.output)) return false;
    const answers = edges.map((url) => fetch(url.replace(/^ws(.*)ws$/, "http$1readyz")).then(({ ok }) => ok, () => false));
    return (await Promise.all(answers)).every(Boolean);
  }

  /** Ends it as an operator would. */
  async end() {
    this.process.kill("SIGTERM");
    const [code] = await this.exit;
    return code;
  }
}

/** A token that the demo accepts. */
export function token(...options) {
  return execFileSync(BINARY, ["token", ...options], { encoding: "utf8" }).trim();
}
