// Links that take over from others, unseen by the page.

import type {Choice, TransportName} from './choice.js';
import {delay, QUICK_RETRY_MS, sleep} from './delays.js';
import {asEnded, type Ended} from './ended.js';
import {type Link, type LinkOwner, openLink} from './link.js';
import {overlap} from './overlap.js';
import {renew, renewalOf} from './tokens.js';

/** How long the first link stays after the second has opened. */
const OVERLAP_MS = 1_000;

/** Opens the successors of a connection's links. */
export interface Successors {
  /** Hand `link` over to a new link in `afterMs`; while that fails, try again with back-off. */
  handOver(link: Link, afterMs: number): Promise<void>;
  /** Renew the token of an event stream or of polls, as long as the link is there. */
  renewTokens(link: Link): Promise<void>;
  /** Try the transports that did not pass, from time to time, as long as the link is there. */
  lookUp(link: Link): Promise<void>;
}

export function successorsOf(owner: LinkOwner, choice: Choice): Successors {
  return {
    async handOver(link, afterMs) {
      if (link.leaving) return;
      link.leaving = true;
      const isNew = link.overlap && !link.overlap.over; // the link's predecessor must end first
      let wait: number | null = isNew ? Math.max(afterMs, OVERLAP_MS) : afterMs;
      for (let failures = 1; wait !== null; failures += 1) {
        if (await sleep(wait, link.signal)) return;
        const refused = await replaceAfresh(link, link.name);
        wait = refused?.next === 'LATER' ? delay(refused, QUICK_RETRY_MS, failures) : null;
      }
      link.leaving = false;
    },
    async renewTokens(link) {
      for (;;) {
        const due = renewalOf(link.token);
        if (link.name === 'ws' || !due) return; // a WebSocket is told, see refreshInBand
        if (await sleep(due.inMs, link.signal)) return;
        if (!(await renew(due.leftMs, link.signal, () => renewed(link)))) return;
      }
    },
    async lookUp(link) {
      const names = choice.above(link.name);
      while (names[0]) {
        if (await sleep(choice.contentMs, link.signal)) return;
        for (const name of names) {
          if (!link.leaving) await changed(link, replaceAfresh(link, name));
          if (link.signal.aborted) return;
        }
        choice.passed(link.name, true);
      }
    },
  };

  /** Another token is there; for an event stream another link has it, and has taken over. */
  async function renewed(link: Link): Promise<boolean> {
    const token = await owner.tokens.next().catch(() => link.token);
    if (token === link.token || link.leaving || link.signal.aborted) return false;
    if (link.name === 'poll') {
      link.token = token; // the next poll brings it
      return true;
    }
    return !(await changed(link, replace(link, link.name, token)));
  }

  /** Keep other successors away from `link` meanwhile. */
  async function changed<T>(link: Link, change: Promise<T>): Promise<T> {
    link.leaving = true;
    const result = await change;
    link.leaving = false;
    return result;
  }

  function replaceAfresh(older: Link, name: TransportName): Promise<Ended | null> {
    return owner.tokens.next().then((token) => replace(older, name, token), asEnded);
  }

  /**
   * Hand `older` over to a new link, and return null. If the new link can't be opened, `older` goes
   * on as before, and how the new link ended is returned.
   */
  async function replace(
    older: Link,
    name: TransportName,
    token: string | undefined,
  ): Promise<Ended | null> {
    if (older.signal.aborted) return null;
    const newer = openLink(owner, name, token, name !== older.name);
    older.successor = newer;
    older.overlap = newer.overlap = overlap(owner.give, older.stop);
    await newer.openOrEnded;
    if (!(await sleep(OVERLAP_MS, newer.signal))) older.stop();
    if (older.signal.aborted) return null;
    older.successor = older.overlap = null;
    return newer.ended;
  }
}
