// Notices that the page was away, asleep or without a network: its link may be dead unseen.

import {sleep} from './delays.js';
import {isHidden, listen} from './page.js';

const TICK_MS = 10_000;
/** A wall clock that is so far ahead of the steady clock has passed a sleep. */
const SLEPT_MS = 5_000;
/** A tick that comes so late is of a page that was frozen. Hidden pages have a tick a minute. */
const FROZEN_MS = 120_000;

/** Call `woke` where the link may be dead, and `seen` when the page becomes visible. */
export function watchWaking(signal: AbortSignal, woke: () => void, seen: () => void): void {
  let checkedAt = performance.now();
  /** How far the wall clock is ahead of the steady clock. */
  let aheadMs = Date.now() - checkedAt;
  const check = () => {
    const now = performance.now();
    const nowAheadMs = Date.now() - now;
    if (nowAheadMs - aheadMs > SLEPT_MS || now - checkedAt > FROZEN_MS) woke();
    checkedAt = now;
    aheadMs = nowAheadMs;
  };
  listen(
    {
      online: woke,
      pageshow(event) {
        if ((event as PageTransitionEvent).persisted) woke();
      },
      visibilitychange() {
        if (isHidden()) return;
        check();
        seen();
      },
    },
    signal,
  );
  void (async () => {
    while (!(await sleep(TICK_MS, signal))) check();
  })();
}
