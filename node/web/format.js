// Numbers, times and names as a reader wants them. Prices and quantities stay texts: nothing is rounded unless it says so.

import { decimals } from "./decimal.js";

const DASH = "–";

/** @param {string} whole digits, with a sign or without */
function grouped(whole) {
  return whole.replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

/**
 * "36200.5" with 2 places → "36,200.50". More digits than `places` are kept: a price is never rounded.
 *
 * @param {string | null | undefined} text
 * @param {number} [places] at least so many digits after the point
 * @returns {string}
 */
export function price(text, places = 0) {
  if (text === null || text === undefined || text === "") return DASH;
  const [whole, fraction = ""] = String(text).split(".");
  const padded = fraction.padEnd(places, "0");
  return padded ? `${grouped(whole)}.${padded}` : grouped(whole);
}

/**
 * A float for display only (sums, averages): 1234567.891 with 2 places → "1,234,567.89".
 *
 * @param {number} value
 * @param {number} places
 * @returns {string}
 */
export function amount(value, places) {
  if (!Number.isFinite(value)) return DASH;
  return price(value.toFixed(places));
}

/**
 * Large amounts in few characters: 1234567 → "1.23M".
 *
 * @param {string | number | null | undefined} value
 * @returns {string}
 */
export function compact(value) {
  const number = value === null || value === undefined || value === "" ? NaN : Number(value);
  if (!Number.isFinite(number)) return DASH;
  const size = Math.abs(number);
  if (size >= 1e9) return `${(number / 1e9).toFixed(2)}B`;
  if (size >= 1e6) return `${(number / 1e6).toFixed(2)}M`;
  if (size >= 1e4) return `${(number / 1e3).toFixed(1)}K`;
  return amount(number, size >= 100 ? 1 : size >= 1 ? 2 : 4);
}

/**
 * The change from `open` to `price` in per cent, with its sign: "+1.25%".
 *
 * @param {string | undefined} last
 * @param {string | undefined} open
 * @returns {string}
 */
export function changePercent(last, open) {
  const ratio = Number(last) / Number(open) - 1;
  if (!Number.isFinite(ratio)) return DASH;
  const text = (ratio * 100).toFixed(2);
  // A change that rounds to nothing has no direction.
  if (Number(text) === 0) return "0.00%";
  return `${ratio > 0 ? "+" : "−"}${text.replace("-", "")}%`;
}

/**
 * A change as the market sent it, with its sign and a real minus: "-12.5" → "−12.5".
 *
 * @param {string | undefined} text
 * @param {number} [places]
 * @returns {string}
 */
export function signed(text, places = 0) {
  if (text === null || text === undefined || text === "") return DASH;
  const bare = String(text).replace(/^[+-]/, "");
  const sign = /^-/.test(text) ? "−" : Number(bare) === 0 ? "" : "+";
  return sign + price(bare, places);
}

/**
 * -1, 0 or 1: which way a market moved since it opened.
 *
 * @param {string | undefined} last
 * @param {string | undefined} open
 */
export function direction(last, open) {
  const difference = Number(last) - Number(open);
  return Number.isFinite(difference) ? Math.sign(difference) : 0;
}

/**
 * Milliseconds, as short as they are honest: the engine's clock gives whole milliseconds.
 *
 * @param {number | null} ms
 * @returns {string}
 */
export function latency(ms) {
  if (ms === null || !Number.isFinite(ms)) return DASH;
  if (ms < 1) return "<1 ms";
  return ms < 10 ? `${ms.toFixed(1)} ms` : ms < 10_000 ? `${Math.round(ms)} ms` : `${Math.round(ms / 1000)} s`;
}

/** @param {number | null | undefined} value */
export function integer(value) {
  return value === null || value === undefined || !Number.isFinite(value) ? DASH : grouped(String(Math.round(value)));
}

/**
 * Local time of day: "14:03:09", with milliseconds on demand.
 *
 * @param {number} ms since 1970 UTC
 * @param {boolean} [withMilliseconds]
 * @returns {string}
 */
export function clock(ms, withMilliseconds = false) {
  const date = new Date(ms);
  if (Number.isNaN(date.getTime())) return DASH;
  const two = (n) => String(n).padStart(2, "0");
  const text = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return withMilliseconds ? `${text}.${String(date.getMilliseconds()).padStart(3, "0")}` : text;
}

/**
 * "btc_usdt" → { base: "BTC", quote: "USDT" }; a name without "_" has no quote.
 *
 * @param {string} symbol
 */
export function pair(symbol) {
  const [base, quote = ""] = symbol.toUpperCase().split("_");
  return { base, quote };
}

/** Remembers the most digits after the point seen, so that a column of numbers lines up. */
export class Places {
  // Beyond this a column no longer fits its panel; no market quotes finer.
  static LIMIT = 10;

  value = 0;

  /** @param {string} text */
  see(text) {
    const seen = decimals(text);
    if (seen > this.value) this.value = Math.min(seen, Places.LIMIT);
  }
}
