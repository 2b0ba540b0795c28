// A connection: it is kept, over reconnects, until it is closed.

import {choiceOf, type TransportName, type TransportOption} from './choice.js';
import {delay, FIRST_RETRY_MS, MAX_RETRY_MS, QUICK_RETRY_MS, sleep} from './delays.js';
import {asEnded, Ended, type Next, Silent} from './ended.js';
import type {Failure} from './events.js';
import type {Form} from './form.js';
import {type Link, openLink} from './link.js';
import {placeAt} from './place.js';
import {successorsOf} from './successors.js';
import {tokensOf, type TokenSource} from './tokens.js';
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
export function openConnection(
  {url, token, transport = 'auto', cursor}: ConnectionOptions,
  events: ConnectionEvents,
): Connection {
  const place = placeAt(cursor);
  const tokens = tokensOf(token);
  const choice = choiceOf(transport, url.host);
  const closer = new AbortController();
  /** Aborted by `close`. */
  const closed = closer.signal;
  const owner = {base: url, place, tokens, closed, opened, give, gap, handOver};
  const successors = successorsOf(owner, choice);
  let state: State = 'connecting';
  /** Aborted to try again before the time, but for a time that the gateway has named. */
  let alarm: AbortController | null = null;
  /** The link whose messages the page gets. */
  let current: Link | null = null;
  /** When this attempt opened, by Date.now(); null before it has opened. */
  let openedAt: number | null = null;
  let everOpen = false;

  void keep();
  watchWaking(closed, wake, hurry);
  return {
    get state() {
      return state;
    },
    get transport() {
      return state === 'open' ? current!.name : null;
    },
    get cursor() {
      return place.cursor;
    },
    close,
  };

  function close(): void {
    if (state === 'closed') return;
    state = 'closed';
    closer.abort();
    hurry();
    events.close();
  }

  function opened(link: Link): void {
    tokens.accepted();
    choice.passed(link.name);
    void successors.renewTokens(link);
    void successors.lookUp(link);
    if (link.covered) return; // for the page the connection stayed open
    openedAt ??= Date.now();
    state = 'open';
    events.open();
    // Without a cursor nobody knows what the page lacks. A poll's answer says whether there is a
    // gap.
    if (everOpen && link.name !== 'poll' && !link.cursor) gap();
    everOpen = true;
  }

  function give(form: Form, isRepeat = false): void {
    const isNew = place.move(form);
    if (closed.aborted) return;
    if (form.data === undefined || (isNew && !isRepeat)) events.form(form);
  }

  function gap(): void {
    // A topic that was made anew is a gap too, and its offsets have begun again: by the old
    // positions all its messages would be repeats.
    place.clear();
    if (!closed.aborted) events.gap();
  }

  function handOver(link: Link, afterMs: number): void {
    void successors.handOver(link, afterMs);
  }

  async function keep(): Promise<void> {
    for (let failures = 0; ; ) {
      const ended = await attempt();
      if (closed.aborted) return;
      state = 'waiting';
      const isStable = openedAt !== null && Date.now() - openedAt >= STABLE_MS;
      failures = isStable ? 1 : failures + 1;
      const retryIn = await delayAfter(ended, failures);
      if (closed.aborted) return;
      alarm = ended.notBefore ? null : new AbortController();
      events.error({status: ended.status, reason: ended.message, retryIn}, ended.next);
      if (retryIn === null) return close();
      await sleep(retryIn, alarm ? alarm.signal : closed);
      if (closed.aborted) return;
    }
  }

  /** Connect, by one transport after the other; return how the connection ended. */
  async function attempt(): Promise<Ended> {
    state = 'connecting';
    openedAt = null;
    try {
      // Awaited even when the token is at hand: the caller must be able to set handlers first.
      const token = await tokens.next();
      let again = true;
      for (let name = choice.first; ; ) {
        if (closed.aborted) return new Ended('');
        const below = choice.below(name);
        const ended = await endOf(openLink(owner, name, token, below !== undefined));
        const isBlocked = ended.status === UPGRADE_REQUIRED;
        if (openedAt || !below || !(isBlocked || ended instanceof Silent)) return ended;
        // Once more, where the gateway may have come back between the two requests.
        if (isBlocked && again) again = false;
        else name = below;
      }
    } catch (error) {
      return asEnded(error);
    }
  }

  /** Wait until `link` ends, or the last of the links that took over from it; return how. */
  async function endOf(link: Link): Promise<Ended> {
    for (;;) {
      current = link;
      const ended = await link.ended;
      const {successor} = link;
      if (closed.aborted || !successor || ended.next === 'NEVER') return ended;
      link.overlap!.settle();
      link = successor;
      if (!link.open) state = 'connecting';
    }
  }

  /** In how many ms to try again after `failures` failures in a row; null for never. */
  async function delayAfter(ended: Ended, failures: number): Promise<number | null> {
    const {next} = ended;
    if (next === 'NEVER') return null;
    if (next === 'NEW_TOKEN' && !(await tokens.another(current?.token))) return null;
    const first = next === 'LATER' ? FIRST_RETRY_MS : QUICK_RETRY_MS;
    // The end of a link that was open says nothing against the next gateway.
    return delay(ended, first, failures, openedAt ? FIRST_RETRY_MS : MAX_RETRY_MS);
  }

  /** Try again now, if the connection waits. */
  function hurry(): void {
    alarm?.abort();
  }

  /** The page was away, or its network was: its link may be dead unseen. */
  function wake(): void {
    hurry();
    if (current?.open) handOver(current, 0);
  }
}
