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
  /** A sign of life has come; the next is due in `everyMs`, by default in as many ms as before. */
  heard(everyMs?: number): void;
  /** The gateway has said hello. */
  greeted(): void;
  /** Rejects when a sign of life is overdue, or `signal` is aborted; never resolves. */
  noticed(signal: AbortSignal): Promise<never>;
}

/** `isHasty`: until the gateway has said hello, the link is given up sooner. */
export function silence(isHasty: boolean): Silence {
  /** The longest time between two signs of life; the gateway's first sign is due at once. */
  let periodMs = 0;
  let graceMs = isHasty ? HASTY_MS : SILENCE_MS;
  /** When the next sign is overdue, by performance.now(). */
  let dueAt: number;

  function heard(everyMs = periodMs): void {
    periodMs = everyMs;
    dueAt = performance.now() + periodMs + graceMs;
  }

  heard();
  return {
    heard,
    greeted() {
      graceMs = SILENCE_MS;
    },
    async noticed(signal) {
      while (!(await sleep(dueAt - performance.now(), signal))) {
        const lateMs = performance.now() - dueAt; // negative where a sign has come meanwhile
        if (lateMs >= THAW_MS) dueAt += lateMs + THAW_MS; // the timer was late: the page was frozen
        else if (lateMs >= 0) throw new Silent('nothing came for too long');
      }
      throw new Ended('');
    },
  };
}
