// Shows an edge a new token before the one in use expires.

// So long before the end a new token is asked for, before the edge has to warn (60 s); of a token that lives shorter, when half
// of the rest is over.
const REFRESH_BEFORE_MS = 90_000;

// Pause before another token is asked for, after one that was not to be had or not accepted. Also the least time between two:
// a source that gives the same token again and again is not asked without end.
const PAUSE_MS = 5_000;

// The longest time that a timer can wait is 2^31 - 1 ms.
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/**
 * Gives the token to sign in with; null where nobody is.
 *
 * @typedef {() => string | null | Promise<string | null>} Source
 */

export class Tokens {
  /** The id of the requests made here; others are numbers. */
  static ID = "token";

  #source;
  #send;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** Marks the connection that tokens are shown on. @type {object | null} */
  #session = null;
  #asking = false;

  /**
   * @param {Source} source
   * @param {(message: object) => void} send to the edge
   */
  constructor(source, send) {
    this.#source = source;
    this.#send = send;
  }

  /** A token to sign in with. */
  async next() {
    return this.#source();
  }

  /** An edge has accepted a token. @param {string} token */
  begin(token) {
    this.end();
    this.#session = {};
    const expiresAt = expiryOf(token);
    if (expiresAt !== null) this.#schedule(expiresAt);
  }

  /** The connection is lost. */
  end() {
    clearTimeout(this.#timer);
    this.#session = null;
    this.#asking = false;
  }

  /** The edge has accepted a new token. @param {number} [expiresAt] ms since 1970 */
  authenticated(expiresAt) {
    if (expiresAt !== undefined) this.#schedule(expiresAt);
  }

  /** The edge has not accepted it. */
  refused() {
    this.#wait(PAUSE_MS);
  }

  /** Asks for a new token and shows it. The old one is good until the edge says otherwise. */
  async refresh() {
    const session = this.#session;
    if (!session || this.#asking) return;
    clearTimeout(this.#timer);
    this.#asking = true;
    try {
      const token = await this.#source();
      if (this.#session === session && token !== null) this.#send({ action: "authenticate", id: Tokens.ID, token });
    } catch {
      if (this.#session === session) this.#wait(PAUSE_MS);
    }
    if (this.#session === session) this.#asking = false;
  }

  #schedule(expiresAt) {
    const left = expiresAt - Date.now();
    this.#wait(Math.max(PAUSE_MS, left - Math.min(REFRESH_BEFORE_MS, left / 2)));
  }

  #wait(ms) {
    clearTimeout(this.#timer);
    if (this.#session) this.#timer = setTimeout(() => void this.refresh(), Math.min(ms, LONGEST_TIMER_MS));
  }
}

/**
 * When a token expires, in ms since 1970; null if it is no JWT that says so. Nothing is verified: that is for the edge.
 *
 * @param {string} token
 * @returns {number | null}
 */
export function expiryOf(token) {
  try {
    const [, claims] = token.split(".");
    const { exp } = JSON.parse(atob(claims.replaceAll("-", "+").replaceAll("_", "/")));
    return Number.isFinite(exp) ? exp * 1000 : null;
  } catch {
    return null;
  }
}
