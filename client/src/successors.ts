// Links that take over from others, unseen by the page.

import type {Choice, TransportName} from './choice.js';
import {delay, QUICK_RETRY_MS, sleep} from './delays.js';
import {asEnded, type Ended} from './ended.js';
import {type Link, type LinkOwner, openLink} from './link.js';
import {OVERLAP_MS, overlapOf} from './overlap.js';
import {renewAhead} from './tokens.js';

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
      // The link's predecessor must end first.
      let wait = link.overlap?.lasts ? Math.max(afterMs, OVERLAP_MS) : afterMs;
      for (let failures = 1; ; failures += 1) {
        if (await sleep(wait, link.over)) return;
        const refused = await replaceAfresh(link, link.name);
        if (refused?.next !== 'LATER') break;
        wait = delay(refused, QUICK_RETRY_MS, failures);
      }
      link.leaving = false;
    },
    async renewTokens(link) {
      if (link.name === 'ws') return; // the gateway tells when the token is about to expire
      while (await renewAhead(link.token, link.over, () => renewed(link)));
    },
    async lookUp(link) {
      const names = choice.above(link.name);
      while (names[0]) {
        if (await sleep(choice.contentMs, link.over)) return;
        for (const name of names) {
          if (link.leaving) continue;
          link.leaving = true;
          await replaceAfresh(link, name);
          link.leaving = false;
          if (link.over.aborted) return;
        }
        choice.passed(link.name, true);
      }
    },
  };

  /** Another token is there; for an event stream another link has it, and has taken over. */
  async function renewed(link: Link): Promise<boolean> {
    const token = await owner.tokens.newer(link.token);
    if (!token || link.leaving || link.over.aborted) return false;
    if (link.name === 'poll') {
      link.token = token; // the next poll brings it
      return true;
    }
    link.leaving = true;
    const refused = await replace(link, link.name, token);
    link.leaving = false;
    return !refused;
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
    if (older.over.aborted) return null;
    const newer = openLink(owner, name, token, name !== older.name);
    older.successor = newer;
    newer.overlap = overlapOf(owner.give, older.stop);
    await Promise.race([older.ended, newer.ended]);
    if (older.over.aborted) return null;
    older.successor = null;
    return newer.ended;
  }
}
