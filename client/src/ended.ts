// How a link ends, and what the client does next.

/** The client's next action: try again at once or later, with another token, or not at all. */
export type Next = 'NOW' | 'LATER' | 'NEW_TOKEN' | 'NEVER';

/** By close code. A copy of the table in gateway/connections/closes.py: a test compares the two. */
const AFTER_CLOSE: Record<number, Next> = {
  1001: 'LATER',
  1002: 'LATER',
  1007: 'LATER',
  1008: 'LATER',
  1009: 'LATER',
  4000: 'NOW',
  4001: 'NOW',
  4002: 'NEW_TOKEN',
  4003: 'NEVER',
};

/** By HTTP status. 204 tells the client of an event stream to stay away (HTML standard §9.2). */
const AFTER_STATUS: Record<number, Next> = {204: 'NEVER', 401: 'NEW_TOKEN', 403: 'NEVER'};

interface How {
  code?: number;
  status?: number;
  notBefore?: number;
  silent?: boolean;
}

/** How a link ended: with a close code, an HTTP status, or neither. */
export class Ended extends Error {
  readonly status: number | null;
  /** The gateway asks to stay away for so many milliseconds. */
  readonly notBefore: number;
  /** Nothing came, although something was due. */
  readonly silent: boolean;
  readonly next: Next;

  constructor(reason: string, {code = 0, status = 0, notBefore = 0, silent = false}: How = {}) {
    super(reason);
    this.status = status || null;
    this.notBefore = notBefore;
    this.silent = silent;
    this.next = AFTER_CLOSE[code] || AFTER_STATUS[status] || 'LATER';
  }
}

/** Whatever was thrown, as the end of a link. */
export function asEnded(thrown: unknown): Ended {
  if (thrown instanceof Ended) return thrown;
  return new Ended(thrown instanceof Error ? thrown.message : String(thrown));
}
