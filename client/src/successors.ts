// Links that take over from others, unseen by the page.

import type {Choice, TransportName} from './choice.js';
import {delay, QUICK_RETRY_MS, sleep} from './delays.js';
import {asEnded, type Ended} from './ended.js';
import {Link, type LinkOwner} from './link.js';
import {Overlap} from './overlap.js';
import {renew, renewalOf} from './tokens.js';

/** How long the first link stays after the second has opened. */
const OVERLAP_MS = 1_000;

/** Opens the successors of a connection's links. */
export class Successors {
  constructor(
    private readonly owner: LinkOwner,
    private readonly choice: Choice,
  ) {}

  /** Hand `link` over to a new link in `afterMs`; while that fails, try again with back-off. */
  async handOver(link: Link, afterMs: number): Promise<void> {
    if (link.leaving) return;
    link.leaving = true;
    const isNew = link.overlap && !link.overlap.over; // the link's predecessor must end first
    let wait: number | null = isNew ? Math.max(afterMs, OVERLAP_MS) : afterMs;
    for (let failures = 1; wait !== null; failures += 1) {
      await sleep(wait, link.signal);
      if (link.signal.aborted) return;
      const refused = await this.replaceAfresh(link, link.name);
      wait = refused?.next === 'LATER' ? delay(refused, QUICK_RETRY_MS, failures) : null;
    }
    link.leaving = false;
  }

  /** Renew the token of an event stream or of polls, as long as the link is there. */
  async renewTokens(link: Link): Promise<void> {
    for (;;) {
      const due = renewalOf(link.token);
      if (link.name === 'ws' || !due) return; // a WebSocket is told, see refreshInBand
      await sleep(due.inMs, link.signal);
      if (link.signal.aborted) return;
      if (!(await renew(due.leftMs, link.signal, () => this.renewed(link)))) return;
    }
  }

  /** Try the transports that did not pass, from time to time, as long as the link is there. */
  async lookUp(link: Link): Promise<void> {
    const names = this.choice.above(link.name);
    while (names.length) {
      await sleep(this.choice.contentMs, link.signal);
      if (link.signal.aborted) return;
      for (const name of names) {
        if (!link.leaving) await this.changed(link, () => this.replaceAfresh(link, name));
        if (link.signal.aborted) return;
      }
      this.choice.passed(link.name, true);
    }
  }

  /** Another token is there; for an event stream another link has it, and has taken over. */
  private async renewed(link: Link): Promise<boolean> {
    const token = await this.owner.tokens.next().catch(() => link.token);
    if (token === link.token || link.leaving || link.signal.aborted) return false;
    if (link.name === 'poll') {
      link.token = token; // the next poll brings it
      return true;
    }
    return !(await this.changed(link, () => this.replace(link, link.name, token)));
  }

  /** Keep other successors away from `link` meanwhile. */
  private async changed<T>(link: Link, change: () => Promise<T>): Promise<T> {
    link.leaving = true;
    const result = await change();
    link.leaving = false;
    return result;
  }

  private replaceAfresh(older: Link, name: TransportName): Promise<Ended | null> {
    return this.owner.tokens.next().then((token) => this.replace(older, name, token), asEnded);
  }

  /**
   * Hand `older` over to a new link, and return null. If the new link can't be opened, `older` goes
   * on as before, and how the new link ended is returned.
   */
  private async replace(
    older: Link,
    name: TransportName,
    token: string | undefined,
  ): Promise<Ended | null> {
    if (older.signal.aborted) return null;
    const newer = new Link(this.owner, name, token, name !== older.name);
    older.successor = newer;
    older.overlap = newer.overlap = new Overlap(
      (form, isRepeat) => this.owner.give(form, isRepeat),
      older.stop,
    );
    await newer.openOrEnded;
    await sleep(OVERLAP_MS, newer.signal);
    if (!newer.signal.aborted) older.stop();
    if (older.signal.aborted) return null;
    older.successor = older.overlap = null;
    return newer.ended;
  }
}
