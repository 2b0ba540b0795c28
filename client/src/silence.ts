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
export class Silence {
  /** The longest time between two signs of life; the gateway's first sign is due at once. */
  private everyMs = 0;
  private graceMs: number;
  /** When the next sign is overdue, by performance.now(). */
  private dueAt = 0;

  /** `isHasty`: until the gateway has said hello, the link is given up sooner. */
  constructor(isHasty: boolean) {
    this.graceMs = isHasty ? HASTY_MS : SILENCE_MS;
    this.heard();
  }

  /** From now on a sign of life comes every `ms`. */
  expect(ms: number): void {
    this.everyMs = ms;
    this.heard();
  }

  /** The gateway has said hello. */
  greeted(): void {
    this.graceMs = SILENCE_MS;
  }

  heard(): void {
    this.dueAt = performance.now() + this.everyMs + this.graceMs;
  }

  /** Rejects when a sign of life is overdue, or `signal` is aborted; never resolves. */
  async noticed(signal: AbortSignal): Promise<never> {
    for (;;) {
      const {dueAt} = this;
      await sleep(dueAt - performance.now(), signal);
      if (signal.aborted) throw new Ended('');
      if (this.dueAt > dueAt) continue;
      if (performance.now() - dueAt < THAW_MS) {
        throw new Silent('nothing came for too long');
      }
      this.dueAt = performance.now() + THAW_MS; // the timer was late: the page was frozen
    }
  }
}
