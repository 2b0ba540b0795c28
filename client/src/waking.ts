// Notices that the page was away, asleep or without a network: its link may be dead unseen.

import {sleep} from './delays.js';

const TICK_MS = 10_000;
/** A wall clock that is so far ahead of the steady clock has passed a sleep. */
const SLEPT_MS = 5_000;
/** A tick that comes so late is of a page that was frozen. Hidden pages have a tick a minute. */
const FROZEN_MS = 120_000;

/** Call `woke` where the link may be dead, and `seen` when the page becomes visible. */
export function watchWaking(signal: AbortSignal, woke: () => void, seen: () => void): void {
  let wall = Date.now();
  let steady = performance.now();
  const check = () => {
    const steadyMs = performance.now() - steady;
    const wallMs = Date.now() - wall;
    wall += wallMs;
    steady += steadyMs;
    if (wallMs - steadyMs > SLEPT_MS || steadyMs > FROZEN_MS) woke();
  };
  const {document} = globalThis;
  // Node.js has no events of its own, workers have no document.
  globalThis.addEventListener?.('online', woke, {signal});
  globalThis.addEventListener?.('pageshow', (event) => event.persisted && woke(), {signal});
  document?.addEventListener(
    'visibilitychange',
    () => {
      if (document.visibilityState !== 'visible') return;
      check();
      seen();
    },
    {signal},
  );
  void (async () => {
    while (!(await sleep(TICK_MS, signal))) check();
  })();
}
