// The tokens of one connection.

import {sleep} from './delays.js';

/** A token, a function that gives one, or undefined: the cookie `pushgate_token` has to do. */
export type TokenSource = string | (() => string | Promise<string>) | undefined;

/** How long before its end a token is renewed; half of its time, where that is less. */
const AHEAD_MS = 30_000;
/** The longest time that timers take (2³¹ ms). */
const MAX_TIMER_MS = 2_147_483_647;
/** With less time left, another try to renew a token would come too late. */
const LEAST_LEFT_MS = 1_000;

export interface Tokens {
  /** A token was accepted. */
  accepted(): void;
  next(): Promise<string | undefined>;
  /**
   * Whether there may be a token other than `spent`. Asked only once after an accepted token: when
   * the next token is refused too, the client gives up.
   */
  another(spent: string | undefined): Promise<boolean>;
}

export function tokensOf(source: TokenSource): Tokens {
  /** The next token, if the page was asked for a token already. */
  let atHand: string | undefined;
  /** The page was asked for another token since a token was last accepted. */
  let asked = false;
  const ask = () => (typeof source === 'function' ? source() : source);

  return {
    accepted() {
      asked = false;
    },
    async next() {
      const token = atHand || (await ask());
      atHand = undefined;
      return token;
    },
    async another(spent) {
      if (typeof source !== 'function' || asked) return false;
      asked = true;
      try {
        atHand = await ask();
      } catch {
        return true; // the page's backend is away: the next attempt asks the page again
      }
      return atHand !== spent;
    },
  };
}

/**
 * In how many ms a token has to be renewed, and how long it lives from then on; null where that
 * can't be read, or the clock here is wrong: then the gateway says when the token has expired.
 */
export function renewalOf(token: string | undefined): {inMs: number; leftMs: number} | null {
  const lifeMs = expiryOf(token) - Date.now();
  if (!(lifeMs > 0 && lifeMs < MAX_TIMER_MS)) return null;
  const leftMs = Math.min(AHEAD_MS, lifeMs / 2);
  return {inMs: lifeMs - leftMs, leftMs};
}

/** Try until a try succeeds, each time when half of the time that is left has passed. */
export async function renew(
  leftMs: number,
  signal: AbortSignal,
  attempt: () => Promise<boolean>,
): Promise<boolean> {
  const end = performance.now() + leftMs;
  while (!(await attempt())) {
    const left = end - performance.now();
    if (left < LEAST_LEFT_MS || (await sleep(left / 2, signal))) return false;
  }
  return true;
}

/** When a JWT expires (RFC 7519 §4.1.4), in epoch milliseconds; NaN for a text that is none. */
function expiryOf(token = ''): number {
  return claimsIn(token).exp! * 1_000;
}

/** Whose a JWT is: the user and the device, to compare; the same for all texts that are none. */
export function userOf(token = ''): string {
  const {sub, device} = claimsIn(token);
  return JSON.stringify([sub, device]);
}

function claimsIn(token: string): {exp?: number; sub?: string; device?: string} {
  try {
    return JSON.parse(atob(token.split('.')[1]!.replace(/-/g, '+').replace(/_/g, '/')));
  } catch {
    return {};
  }
}
