// The few things every view does to the page.

/** @param {string} id @returns {HTMLElement} */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`the page has no element "${id}"`);
  return node;
}

/**
 * An element with classes and attributes.
 *
 * @param {string} tag
 * @param {string} [className]
 * @param {Record<string, string>} [attributes]
 * @param {...(Node | string)} children
 */
export function make(tag, className = "", attributes = {}, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Writes only what differs. @param {Node} node @param {string} text */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Writes only what differs. @param {HTMLElement} node @param {string} name @param {string | number} value */
export function setData(node, name, value) {
  const text = String(value);
  if (node.dataset[name] !== text) node.dataset[name] = text;
}

// Between two paints, in ms: every second frame of a usual screen. Faster than an eye reads a number, and half the work.
const PAINT_INTERVAL_MS = 30;

/** Paints all views together, in an animation frame, and only after somebody asked. */
export class Frames {
  #views = [];
  #asked = false;
  #paintedAt = 0;

  /** @param {{ paint(): void }} view paints what has changed since it last did, and nothing else */
  add(view) {
    this.#views.push(view);
  }

  ask = () => {
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(this.#frame);
  };

  #frame = (now) => {
    if (now - this.#paintedAt < PAINT_INTERVAL_MS) {
      requestAnimationFrame(this.#frame);
      return;
    }
    this.#paintedAt = now;
    this.#asked = false;
    for (const view of this.#views) view.paint();
  };
}
