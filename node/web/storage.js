// What the page remembers between visits. A browser may refuse storage: then it remembers nothing, and works.

const PREFIX = "tickmesh.";

/** @param {string} key @returns {string | null} */
export function load(key) {
  try {
    return localStorage.getItem(PREFIX + key);
  } catch {
    return null;
  }
}

/** @param {string} key @param {string} value */
export function save(key, value) {
  try {
    localStorage.setItem(PREFIX + key, value);
  } catch {
    // Not remembered.
  }
}
