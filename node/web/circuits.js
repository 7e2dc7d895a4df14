// The circuit breakers of the demo's peers, as their operators see them.

import { byId, setData, setText } from "./dom.js";

const EVERY_MS = 2_000;

/** @typedef {{ peer: string, target: string, state: string }} Circuit */

export class Circuits {
  #controls;
  #askFrame;
  #line = byId("circuits");
  /** @type {Circuit[]} */
  #circuits = [];

  /**
   * @param {import("./controls.js").Controls} controls
   * @param {() => void} askFrame
   */
  constructor(controls, askFrame) {
    this.#controls = controls;
    this.#askFrame = askFrame;
    void this.#follow();
  }

  paint() {
    const open = this.#circuits.filter(({ state }) => state !== "closed");
    const named = open.map(({ peer, target, state }) => `${target} of ${peer} ${state}`);
    const closed = this.#circuits.length - open.length;
    const words = [...named, closed ? `${closed} closed` : ""].filter(Boolean).join(", ");
    setText(this.#line, words ? `Circuit breakers: ${words}` : "");
    setData(this.#line, "open", open.length);
  }

  async #follow() {
    try {
      if (!document.hidden) this.#circuits = await this.#controls.circuits();
    } catch {
      // The demo is gone; its edges, and what they say, are the page's other parts.
      this.#circuits = [];
    }
    this.#askFrame();
    setTimeout(() => this.#follow(), EVERY_MS);
  }
}
