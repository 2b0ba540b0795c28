// How long the client waits.

import type {Ended} from './ended.js';

/** The upper bound of the first delay; the bound doubles at each failure. */
export const FIRST_RETRY_MS = 5_000;
/** The same, where the gateway says "now" or "with a new token". */
export const QUICK_RETRY_MS = 1_000;
export const MAX_RETRY_MS = 60_000;

/**
 * The delay before the next attempt, in ms: random between a tenth of the bound and the bound, so
 * that the clients of a node that has ended don't all return at the same time.
 */
export function delay(ended: Ended, first: number, failures: number, most = MAX_RETRY_MS): number {
  const bound = Math.min(most, first * 2 ** (failures - 1));
  return Math.max(ended.notBefore, Math.round(bound * (0.1 + 0.9 * Math.random())));
}

/** Resolves when `ms` have passed or `signal` is aborted: with whether `signal` is. */
export function sleep(ms: number, signal: AbortSignal): Promise<boolean> {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', end);
      resolve(signal.aborted);
    };
    const timer = setTimeout(end, signal.aborted ? 0 : ms);
    signal.addEventListener('abort', end);
  });
}
