// Waiting for a condition on what comes from outside.

import assert from "node:assert/strict";

/** Far longer than anything takes: what is not there by then does not come. */
export const DEADLINE_MS = 20_000;

export class Changes {
  #wake = () => {};

  /** Something has changed. */
  notify() {
    this.#wake();
  }

  /** Waits until `look()` finds something, and returns it. `over()` says why nothing more will come, if so; `what` names it. */
  async until(what, look, over) {
    const deadline = Date.now() + DEADLINE_MS;
    for (;;) {
      const found = look();
      if (found !== undefined) return found;
      const left = deadline - Date.now();
      const why = over() ?? (left > 0 ? undefined : `not within ${DEADLINE_MS} ms`);
      assert.ok(why === undefined, `${what} did not come: ${why}`);
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }
}

/** Takes the first message for which `holds` out of a list, and those before it. */
export function take(messages, holds) {
  const at = messages.findIndex(holds);
  return at < 0 ? undefined : messages.splice(0, at + 1).at(-1);
}
