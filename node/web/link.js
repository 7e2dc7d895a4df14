// Where one stream stands, and what an event is there: the next one, one that has come before, or one after a gap.
//
// A worked example, standing at 7. {8, previous 7} is the next. {8, previous 7} again is a duplicate. {12, previous 11} is the
// first one after a gap: at least 11 is missing. Numbers need not be dense: {15, previous 12} is the next after 12. After
// `reset` the numbers are those of another epoch, and nothing was before its first event: {0, previous null}.

/** @typedef {{ epoch: string, sequence: number }} Position */

export class Link {
  /**
   * The last event that was handed on, or that is said to be before all that come; null if there is none, undefined if nobody
   * has said anything. The epoch is null until an edge has told it.
   *
   * @type {{ epoch: string | null, sequence: number } | null | undefined}
   */
  last;
  /** The epoch of the next event, if it is another. The position stays in the old one: from there it can be resumed. @type {string | null} */
  #nextEpoch = null;

  /** Whether the stream can be resumed. */
  get isKnown() {
    return this.last !== undefined;
  }

  /**
   * Everything after a position will come; null: from the first event on.
   *
   * @param {Position | number | null} [position] a number is a sequence in whatever epoch the stream is
   */
  begin(position = null) {
    this.last = typeof position === "number" ? { epoch: null, sequence: position } : position && { ...position };
    this.#nextEpoch = null;
  }

  /** What follows is numbered anew. @param {string} epoch */
  reset(epoch) {
    this.#nextEpoch = epoch;
  }

  /** The connection is lost: the next one begins at the position. */
  interrupt() {
    this.#nextEpoch = null;
  }

  /** An edge says in which epoch the stream is. @param {string} epoch */
  learn(epoch) {
    if (this.last?.epoch === null) this.last.epoch = epoch;
  }

  /**
   * Judges an event and moves to it, unless it is a duplicate. A snapshot stands for everything before it, wherever that was;
   * a conflated event for those left out before it.
   *
   * @param {{ sequence: number, previous: number | null, epoch?: string, snapshot?: boolean, conflated?: boolean }} event
   * @returns {"next" | "gap" | "duplicate"}
   */
  advance({ sequence, previous, epoch, snapshot, conflated }) {
    const last = this.#nextEpoch === null ? (this.last ?? null) : null;
    if (last && sequence <= last.sequence && !snapshot) return "duplicate";
    this.last = { epoch: this.#nextEpoch ?? epoch ?? last?.epoch ?? null, sequence };
    this.#nextEpoch = null;
    return snapshot || conflated || previous === (last?.sequence ?? null) ? "next" : "gap";
  }

  /** As `resume` wants it. @returns {Position | number | null} */
  toJSON() {
    if (!this.last) return null;
    const { epoch, sequence } = this.last;
    return epoch === null ? sequence : { epoch, sequence };
  }
}
