// Signatures are verified side by side, and what they say is handed on in the order in which the events came.

export class InOrder {
  /** Ends when everything so far is done; null if nothing waits. @type {Promise<void> | null} */
  #waiting = null;
  #ended = false;

  /** What still waits will not be done. */
  end() {
    this.#ended = true;
  }

  get ended() {
    return this.#ended;
  }

  /**
   * Does something when everything before it is done and, where there is a verdict to wait for, that is there. Without any,
   * nothing waits.
   *
   * @template T
   * @param {Promise<T> | undefined} verdict
   * @param {(verdict: T | undefined) => void} act
   */
  run(verdict, act) {
    if (this.#ended) return;
    if (!verdict && !this.#waiting) {
      act(undefined);
      return;
    }
    const before = this.#waiting;
    const done = (async () => {
      const said = await verdict;
      await before;
      try {
        if (!this.#ended) act(said);
      } catch (error) {
        // A handler's, to be seen as if nothing had waited; what comes next goes on.
        queueMicrotask(() => {
          throw error;
        });
      }
    })().then(() => {
      if (this.#waiting === done) this.#waiting = null;
    });
    this.#waiting = done;
  }
}
