// Notices that nothing comes, or nothing any more.

import {sleep} from './delays.js';
import {Ended, Silent} from './ended.js';

/** How long after an answer or a heartbeat is due a network is silent. */
const SILENCE_MS = 10_000;
/** The same for the first sign of life, where another transport can be tried instead. */
const HASTY_MS = 5_000;
/** How long a page that was frozen has to take what came meanwhile. */
const THAW_MS = 2_000;

/**
 * Where a network drops all packets, a gateway is frozen, or a frozen page's connection has gone
 * meanwhile, neither a WebSocket nor a fetch ends by itself for minutes.
 */
export interface Silence {
  /** From now on a sign of life comes every `ms`. */
  expect(ms: number): void;
  /** The gateway has said hello. */
  greeted(): void;
  heard(): void;
  /** Rejects when a sign of life is overdue, or `signal` is aborted; never resolves. */
  noticed(signal: AbortSignal): Promise<never>;
}

/** `isHasty`: until the gateway has said hello, the link is given up sooner. */
export function silence(isHasty: boolean): Silence {
  /** The longest time between two signs of life; the gateway's first sign is due at once. */
  let everyMs = 0;
  let graceMs = isHasty ? HASTY_MS : SILENCE_MS;
  /** When the next sign is overdue, by performance.now(). */
  let dueAt: number;

  function heard(): void {
    dueAt = performance.now() + everyMs + graceMs;
  }

  heard();
  return {
    heard,
    expect(ms) {
      everyMs = ms;
      heard();
    },
    greeted() {
      graceMs = SILENCE_MS;
    },
    async noticed(signal) {
      for (;;) {
        const awaited = dueAt;
        if (await sleep(awaited - performance.now(), signal)) throw new Ended('');
        if (dueAt > awaited) continue;
        if (performance.now() - awaited < THAW_MS) throw new Silent('nothing came for too long');
        dueAt = performance.now() + THAW_MS; // the timer was late: the page was frozen
      }
    },
  };
}
