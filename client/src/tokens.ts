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
  /** A token was accepted; a token at hand may be old when another is needed. */
  accepted(): void;
  next(): Promise<string | undefined>;
  /** A token other than `older`; undefined where the page has none, or a fixed token. */
  newer(older: string | undefined): Promise<string | undefined>;
  /** The next token, which stays the next. */
  peek(): Promise<string | undefined>;
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
  const peek = async () => (atHand = await ask());

  const next = async () => {
    const token = atHand || (await ask());
    atHand = undefined;
    return token;
  };

  return {
    accepted() {
      atHand = undefined;
      asked = false;
    },
    peek,
    next,
    async newer(older) {
      const token = await next().catch(() => older);
      return token === older ? undefined : token;
    },
    async another(spent) {
      if (typeof source !== 'function' || asked) return false;
      asked = true;
      try {
        return (await peek()) !== spent;
      } catch {
        return true; // the page's backend is away: the next attempt asks the page again
      }
    },
  };
}

/**
 * Call `attempt` ahead of a token's end, and again until an attempt succeeds. Returns false without,
 * or where the token's end can't be read or the clock here is wrong: then the gateway says when the
 * token has expired.
 */
export async function renewAhead(
  token: string | undefined,
  signal: AbortSignal,
  attempt: () => Promise<boolean>,
): Promise<boolean> {
  const lifeMs = claimsIn(token).exp! * 1_000 - Date.now(); // NaN for a text that is no JWT
  if (!(lifeMs > 0 && lifeMs < MAX_TIMER_MS)) return false;
  const leftMs = Math.min(AHEAD_MS, lifeMs / 2);
  return !(await sleep(lifeMs - leftMs, signal)) && renew(leftMs, signal, attempt);
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

/** Whose a JWT is: the user and the device, to compare; the same for all texts that are none. */
export function userOf(token: string | undefined): string {
  const {sub, device} = claimsIn(token);
  return JSON.stringify([sub, device]);
}

/** The claims in a JWT (RFC 7519 §4.1): `exp` is in epoch seconds. */
function claimsIn(token = ''): {exp?: number; sub?: string; device?: string} {
  try {
    return JSON.parse(atob(token.split('.')[1]!.replace(/-/g, '+').replace(/_/g, '/')));
  } catch {
    return {};
  }
}
