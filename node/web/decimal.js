// Exact arithmetic on decimal texts. Prices and quantities arrive as texts such as "36200.50"; they are compared, keyed
// and subtracted as texts, because a binary float cannot hold most of them.

const DECIMAL = /^(-?)(\d+)(?:\.(\d+))?$/;

/**
 * The one spelling of a number: no leading zeros, no trailing zeros in the fraction, no "-0".
 *
 * @param {string} text
 * @returns {string | null} null if the text is no plain decimal
 */
export function canonical(text) {
  const parts = DECIMAL.exec(text);
  if (!parts) return null;
  const whole = parts[2].replace(/^0+(?=\d)/, "");
  const fraction = (parts[3] ?? "").replace(/0+$/, "");
  const digits = fraction ? `${whole}.${fraction}` : whole;
  return parts[1] && digits !== "0" ? `-${digits}` : digits;
}

/**
 * Compares two canonical decimals: below zero if a is smaller, zero if they are equal.
 *
 * @param {string} a
 * @param {string} b
 * @returns {number}
 */
export function compare(a, b) {
  if (a === b) return 0;
  const aNegative = a.startsWith("-");
  const bNegative = b.startsWith("-");
  if (aNegative !== bNegative) return aNegative ? -1 : 1;
  return aNegative ? compareMagnitude(b.slice(1), a.slice(1)) : compareMagnitude(a, b);
}

function compareMagnitude(a, b) {
  const aPoint = a.indexOf(".");
  const bPoint = b.indexOf(".");
  const aWhole = aPoint < 0 ? a.length : aPoint;
  const bWhole = bPoint < 0 ? b.length : bPoint;
  // Without leading zeros the longer whole part is the larger number; of equal length, texts order as numbers do.
  // "." sorts before every digit, so a fraction needs no care of its own.
  if (aWhole !== bWhole) return aWhole - bWhole;
  return a < b ? -1 : a > b ? 1 : 0;
}

/**
 * Digits after the point, as written.
 *
 * @param {string} text
 * @returns {number}
 */
export function decimals(text) {
  const point = text.indexOf(".");
  return point < 0 ? 0 : text.length - point - 1;
}

/**
 * a − b, exactly, with as many digits after the point as the longer of the two.
 *
 * @param {string} a
 * @param {string} b
 * @returns {string}
 */
export function subtract(a, b) {
  const places = Math.max(decimals(a), decimals(b));
  return unscaled(scaled(a, places) - scaled(b, places), places);
}

function scaled(text, places) {
  const point = text.indexOf(".");
  const digits = point < 0 ? text : text.slice(0, point) + text.slice(point + 1);
  return BigInt(digits + "0".repeat(places - decimals(text)));
}

function unscaled(value, places) {
  const sign = value < 0n ? "-" : "";
  const digits = (value < 0n ? -value : value).toString().padStart(places + 1, "0");
  return places === 0 ? sign + digits : `${sign}${digits.slice(0, -places)}.${digits.slice(-places)}`;
}
