// A connection: it is kept, over reconnects, until it is closed.

import {Choice, type TransportName, type TransportOption} from './choice.js';
import {delay, FIRST_RETRY_MS, MAX_RETRY_MS, QUICK_RETRY_MS, sleep} from './delays.js';
import {asEnded, Ended, type Next, Silent} from './ended.js';
import type {Failure} from './events.js';
import type {Form} from './form.js';
import {Link, type LinkOwner} from './link.js';
import {Place} from './place.js';
import {Successors} from './successors.js';
import {Tokens, type TokenSource} from './tokens.js';
import {watchWaking} from './waking.js';

/** A connection that lived this long clears earlier failures. */
const STABLE_MS = 10_000;
/** The gateway is there and would admit the client, but only what is no WebSocket reaches it. */
const UPGRADE_REQUIRED = 426;

/** `waiting`: to try again. */
export type State = 'connecting' | 'open' | 'waiting' | 'closed';

export interface ConnectionOptions {
  /** The gateway's address: the folder of its paths, ending with a slash. */
  readonly url: URL;
  readonly token?: TokenSource;
  readonly transport?: TransportOption;
  /** From where the connection resumes: the `cursor` of an earlier connection. */
  readonly cursor?: string;
}

/** What a connection tells. No function is called before `openConnection` has returned. */
export interface ConnectionEvents {
  open(): void;
  /** A message that is new to the page, or what else moves the page's cursor on. */
  form(form: Form): void;
  gap(): void;
  error(failure: Failure, next: Next): void;
  /** The connection is over; nothing is told afterwards. */
  close(): void;
}

/** A connection to the gateways, kept here or elsewhere. */
export interface Connection {
  readonly state: State;
  /** The transport in use; null while there is none. */
  readonly transport: TransportName | null;
  /** How far the page has come, with the message that is being told. */
  readonly cursor: string;
  /** End the connection for good; harmless when repeated. */
  close(): void;
}

/**
 * Open a connection that this page (or worker, or process) keeps by itself.
 *
 * Throws a TypeError for a transport that is none, or that can't be had here.
 */
export function openConnection(options: ConnectionOptions, events: ConnectionEvents): Connection {
  return new KeptConnection(options, events);
}

class KeptConnection implements Connection, LinkOwner {
  state: State = 'connecting';
  readonly base: URL;
  readonly place: Place;
  readonly tokens: Tokens;
  private readonly choice: Choice;
  private readonly successors: Successors;
  private readonly closer = new AbortController();
  /** Aborted to try again before the time, but for a time that the gateway has named. */
  private alarm: AbortController | null = null;
  /** The link whose messages the page gets. */
  private link: Link | null = null;
  /** The token of the link that ended last. */
  private spentToken: string | undefined;
  /** When this attempt opened, by Date.now(); null before it has opened. */
  private openedAt: number | null = null;
  private everOpen = false;

  constructor(
    {url, token, transport = 'auto', cursor}: ConnectionOptions,
    private readonly events: ConnectionEvents,
  ) {
    this.base = url;
    this.place = new Place(cursor);
    this.tokens = new Tokens(token);
    this.choice = new Choice(transport, url.host);
    this.successors = new Successors(this, this.choice);
    void this.keep();
    watchWaking(
      this.closed,
      () => this.wake(),
      () => this.alarm?.abort(),
    );
  }

  get transport(): TransportName | null {
    return this.state === 'open' ? this.link!.name : null;
  }

  get cursor(): string {
    return this.place.cursor;
  }

  /** Aborted by `close`. */
  get closed(): AbortSignal {
    return this.closer.signal;
  }

  close(): void {
    if (this.state === 'closed') return;
    this.state = 'closed';
    this.closer.abort();
    this.alarm?.abort();
    this.events.close();
  }

  opened(link: Link): void {
    this.tokens.accepted();
    this.choice.passed(link.name);
    void this.successors.renewTokens(link);
    void this.successors.lookUp(link);
    if (link.covered) return; // for the page the connection stayed open
    this.openedAt ??= Date.now();
    this.state = 'open';
    this.events.open();
    // Without a cursor nobody knows what the page lacks. A poll's answer says whether there is a
    // gap.
    if (this.everOpen && link.name !== 'poll' && !link.cursor) this.gap();
    this.everOpen = true;
  }

  give(form: Form, isRepeat = false): void {
    const isNew = this.place.move(form);
    if (this.closed.aborted) return;
    if (form.data === undefined || (isNew && !isRepeat)) this.events.form(form);
  }

  gap(): void {
    // A topic that was made anew is a gap too, and its offsets have begun again: by the old
    // positions all its messages would be repeats.
    this.place.clear();
    if (!this.closed.aborted) this.events.gap();
  }

  handOver(link: Link, afterMs: number): void {
    void this.successors.handOver(link, afterMs);
  }

  private async keep(): Promise<void> {
    for (let failures = 0; !this.closed.aborted; ) {
      const ended = await this.attempt();
      if (this.closed.aborted) return;
      this.state = 'waiting';
      const isStable = this.openedAt !== null && Date.now() - this.openedAt >= STABLE_MS;
      failures = isStable ? 1 : failures + 1;
      const retryIn = await this.delayAfter(ended, failures);
      if (this.closed.aborted) return;
      this.alarm = ended.notBefore ? null : new AbortController();
      this.events.error({status: ended.status, reason: ended.message, retryIn}, ended.next);
      if (retryIn === null) this.close();
      else await sleep(retryIn, this.alarm?.signal ?? this.closed);
    }
  }

  /** Connect, by one transport after the other; return how the connection ended. */
  private async attempt(): Promise<Ended> {
    this.state = 'connecting';
    this.openedAt = null;
    try {
      // Awaited even when the token is at hand: the caller must be able to set handlers first.
      const token = await this.tokens.next();
      let again = true;
      for (let name = this.choice.first; ; ) {
        if (this.closed.aborted) return new Ended('');
        const below = this.choice.below(name);
        const ended = await this.endOf(new Link(this, name, token, below !== undefined));
        const isBlocked = ended.status === UPGRADE_REQUIRED;
        if (this.openedAt !== null || !below || !(isBlocked || ended instanceof Silent)) return ended;
        // Once more, where the gateway may have come back between the two requests.
        if (isBlocked && again) again = false;
        else name = below;
      }
    } catch (error) {
      return asEnded(error);
    }
  }

  /** Wait until `link` ends, or the last of the links that took over from it; return how. */
  private async endOf(link: Link): Promise<Ended> {
    for (;;) {
      this.link = link;
      const ended = await link.ended;
      this.spentToken = link.token;
      const {successor} = link;
      if (this.closed.aborted || !successor || ended.next === 'NEVER') return ended;
      link.overlap!.settle();
      link = successor;
      if (!link.open) this.state = 'connecting';
    }
  }

  /** In how many ms to try again after `failures` failures in a row; null for never. */
  private async delayAfter(ended: Ended, failures: number): Promise<number | null> {
    const {next} = ended;
    if (next === 'NEVER') return null;
    if (next === 'NEW_TOKEN' && !(await this.tokens.another(this.spentToken))) return null;
    const first = next === 'LATER' ? FIRST_RETRY_MS : QUICK_RETRY_MS;
    // The end of a link that was open says nothing against the next gateway.
    return delay(ended, first, failures, this.openedAt === null ? MAX_RETRY_MS : FIRST_RETRY_MS);
  }

  /** The page was away, or its network was: its link may be dead unseen. */
  private wake(): void {
    this.alarm?.abort();
    if (this.link?.open) this.handOver(this.link, 0);
  }
}
