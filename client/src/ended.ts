// How a link ends, and what the client does next.

/** The client's next action: try again at once or later, with another token, or not at all. */
export type Next = 'NOW' | 'LATER' | 'NEW_TOKEN' | 'NEVER';

/**
 * By close code or HTTP status; LATER after all others. A copy of the table in
 * gateway/connections/closes.py: a test compares the two. 204 tells the client of an event stream to
 * stay away (HTML standard §9.2).
 */
const AFTER: Record<number, Next> = {
  204: 'NEVER',
  401: 'NEW_TOKEN',
  403: 'NEVER',
  4000: 'NOW',
  4001: 'NOW',
  4002: 'NEW_TOKEN',
  4003: 'NEVER',
};
/** HTTP statuses are below; close codes are not. */
const FIRST_CLOSE_CODE = 1_000;

/** How a link ended: with a close code, an HTTP status, or 0 for neither. */
export class Ended extends Error {
  /** The HTTP status, or null. */
  readonly status: number | null;
  readonly next: Next;

  /** `notBefore`: the gateway asks to stay away for so many milliseconds. */
  constructor(
    reason: string,
    code = 0,
    readonly notBefore = 0,
  ) {
    super(reason);
    this.status = code && code < FIRST_CLOSE_CODE ? code : null;
    this.next = AFTER[code] || 'LATER';
  }
}

/** Nothing came, although something was due. */
export class Silent extends Ended {}

/** Whatever was thrown, as the end of a link. */
export function asEnded(thrown: unknown): Ended {
  return thrown instanceof Ended ? thrown : new Ended((thrown as Error)?.message || String(thrown));
}
