// Asks the demo itself, which answers whatever becomes of its edges. No exchange has this.

// What an answer may take: the demo runs on this machine.
const TIMEOUT_MS = 5_000;

export class Controls {
  #address;

  /** @param {string} address as in "http://127.0.0.1:8083" */
  constructor(address) {
    this.#address = address;
  }

  /** Where the exchange publishes the keys that it signs events with. */
  get jwks() {
    return `${this.#address}/.well-known/jwks.json`;
  }

  /** @param {string} user @returns {Promise<string>} a token that is good for a few minutes */
  async token(user) {
    const { token } = await this.#post("/demo/token", { user });
    return token;
  }

  /**
   * Kills a peer as a crash would.
   *
   * @param {{ edge?: string, leader_of?: string }} victim an edge by its name, or the ingest peer that leads a stream
   * @returns {Promise<{ killed: string }>}
   */
  async kill(victim) {
    return this.#post("/demo/kill", victim);
  }

  /** How the circuit breakers of all peers are. @returns {Promise<import("./circuits.js").Circuit[]>} */
  async circuits() {
    const { circuits } = await this.#ask("/demo/circuits", {});
    return circuits;
  }

  #post(path, body) {
    return this.#ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  }

  async #ask(path, request) {
    const response = await fetch(this.#address + path, { ...request, signal: AbortSignal.timeout(TIMEOUT_MS) });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error ?? `the demo answers ${response.status}`);
    return answer;
  }
}
