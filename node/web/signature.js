// Verifies events that the exchange has signed: a detached JWS (RFC 7515, RFC 7797) with Ed25519 over the text
// {"stream":…,"epoch":…,"sequence":…,"data":…}, where `data` is cut out of the frame as it came, since JSON.parse loses it.
//
//     const verifier = new Verifier("https://exchange.example/.well-known/jwks.json");
//     await verifier.verify(text, JSON.parse(text));   // true, false, or undefined: not signed, or nobody can say
//
// The keys should come from the exchange itself: who serves both events and keys could forge both.

// A key that is not known may be a new one: the address is asked again, but never more often than this.
const REFETCH_MS = 60_000;

// What an answer of the address may take.
const FETCH_TIMEOUT_MS = 8_000;

// The longest signature, as the edge's own limit.
const MAX_SIGNATURE = 512;

// Nothing else gets into the signed text, so that it can be read in one way only.
const STREAM = /^[a-z0-9_.@-]+$/;
const EPOCH = /^[0-9a-f]{16}$/;
const COMPACT = /^([A-Za-z0-9_-]+)\.\.([A-Za-z0-9_-]+)$/;

const BEFORE_DATA = ',"data":';
const BEFORE_SIGNATURE = ',"signature":"';
const END = '"}';

/**
 * @typedef {{ kty: string, crv?: string, x?: string, kid?: string, use?: string, alg?: string }} Jwk
 * @typedef {{ keys: Jwk[] }} Jwks
 */

export class Verifier {
  #source;
  #fetch;
  #subtle;
  /** @type {Promise<Map<string, CryptoKey | null>> | null} keys by their ids; null: of a kind that verifies nothing here */
  #keys = null;
  #loadedAt = 0;

  /**
   * @param {string | URL | Jwks} source the exchange's public keys: an address, or the set itself
   * @param {{ fetch?: typeof fetch, subtle?: SubtleCrypto }} [parts]
   */
  constructor(source, { fetch = globalThis.fetch, subtle = globalThis.crypto?.subtle } = {}) {
    this.#source = source;
    this.#fetch = fetch;
    this.#subtle = subtle;
  }

  /**
   * @param {string} text    the frame as it came
   * @param {any} message    the frame, parsed
   * @returns {Promise<boolean | undefined>} undefined if the message is not signed, if this browser knows no Ed25519 (Chromium
   *   does since 137, and only on pages from https or localhost), or if there are no keys to be had
   */
  async verify(text, message) {
    if (message.signature === undefined) return undefined;
    const parts = partsOf(text, message);
    if (!parts) return false;
    try {
      let keys = await this.#load();
      if (!keys.has(parts.kid) && this.#mayReload()) keys = await this.#load(true);
      const key = keys.get(parts.kid);
      if (!key) return false;
      return await this.#subtle.verify("Ed25519", key, parts.signature, parts.signed);
    } catch {
      return undefined;
    }
  }

  #mayReload() {
    return !isSet(this.#source) && Date.now() - this.#loadedAt > REFETCH_MS;
  }

  /** One question for all events that wait; the old keys stay where a new question has no answer. */
  #load(again = false) {
    if (this.#keys && !again) return this.#keys;
    this.#loadedAt = Date.now();
    const before = this.#keys;
    const keys = this.#import().catch((error) => {
      if (before) return before;
      // The next event asks again, after a pause.
      setTimeout(() => {
        if (this.#keys === keys) this.#keys = null;
      }, REFETCH_MS / 10);
      throw error;
    });
    this.#keys = keys;
    return keys;
  }

  async #import() {
    const set = isSet(this.#source) ? this.#source : await this.#ask();
    const keys = new Map();
    for (const jwk of set.keys) {
      if (typeof jwk.kid !== "string") continue;
      const usable = jwk.kty === "OKP" && jwk.crv === "Ed25519" && (jwk.use ?? "sig") === "sig" && (jwk.alg ?? "EdDSA") === "EdDSA";
      if (!usable) {
        if (!keys.has(jwk.kid)) keys.set(jwk.kid, null);
        continue;
      }
      // No more than the key itself: browsers differ in what else they accept.
      const { kty, crv, x } = jwk;
      keys.set(jwk.kid, await this.#subtle.importKey("jwk", { kty, crv, x }, "Ed25519", false, ["verify"]));
    }
    return keys;
  }

  async #ask() {
    const response = await this.#fetch.call(undefined, /** @type {string | URL} */ (this.#source), { signal: AbortSignal.timeout(FETCH_TIMEOUT_MS) });
    if (!response.ok) throw new Error(`the keys' address answers ${response.status}`);
    return response.json();
  }
}

function isSet(source) {
  return Array.isArray(source?.keys);
}

/** What is to be verified; null if the frame is not signed as it must be. */
function partsOf(text, message) {
  const { stream, epoch, sequence, signature } = message;
  const data = dataText(text, signature);
  const compact = typeof signature === "string" && signature.length <= MAX_SIGNATURE ? COMPACT.exec(signature) : null;
  const plain = STREAM.test(stream) && EPOCH.test(epoch) && Number.isSafeInteger(sequence) && sequence >= 0;
  if (data === null || !compact || !plain) return null;
  const kid = keyId(compact[1]);
  const bytes = kid === null ? null : fromBase64(compact[2]);
  if (kid === null || !bytes) return null;
  const signed = `${compact[1]}.{"stream":"${stream}","epoch":"${epoch}","sequence":${sequence},"data":${data}}`;
  return { kid, signature: bytes, signed: new TextEncoder().encode(signed) };
}

/**
 * The exact text of `data` in a signed frame: it stands directly before the signature, which has no quote inside and ends the
 * frame, and nothing before it holds its name.
 *
 * @returns {string | null}
 */
export function dataText(text, signature) {
  const begin = text.indexOf(BEFORE_DATA);
  const tail = BEFORE_SIGNATURE + signature + END;
  if (begin < 0 || !text.endsWith(tail)) return null;
  const [from, to] = [begin + BEFORE_DATA.length, text.length - tail.length];
  return from < to ? text.slice(from, to) : null;
}

/** The key that a header names, if everything else in it is as it must be (RFC 7797 §6). */
function keyId(encoded) {
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(fromBase64(encoded) ?? undefined));
  } catch {
    return null;
  }
  const { alg, kid, b64, crit } = header ?? {};
  const understood = alg === "EdDSA" && b64 === false && Array.isArray(crit) && crit.length === 1 && crit[0] === "b64";
  return understood && typeof kid === "string" ? kid : null;
}

function fromBase64(text) {
  try {
    const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    return Uint8Array.from(binary, (character) => character.charCodeAt(0));
  } catch {
    return null;
  }
}
