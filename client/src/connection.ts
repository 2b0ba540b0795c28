// A connection: it is kept, over reconnects, until it is closed.

import {choiceOf, type TransportName, type TransportOption} from './choice.js';
import {delay, FIRST_RETRY_MS, MAX_RETRY_MS, QUICK_RETRY_MS, sleep} from './delays.js';
import {asEnded, Ended, type Next, Silent} from './ended.js';
import type {Failure} from './events.js';
import type {Form} from './form.js';
import {type Link, type LinkOwner, openLink} from './link.js';
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
  readonly transport?: TransportOption | undefined;
  /** From where the connection resumes: the `cursor` of an earlier connection. */
  readonly cursor?: string;
}

/** What a connection tells. Nothing is told before `openConnection` has returned. */
export type ConnectionEvent =
  | {kind: 'open'}
  /** A message that is new to the page, or what else moves the page's cursor on. */
  | {kind: 'form'; form: Form}
  | {kind: 'gap'}
  | {kind: 'error'; failure: Failure}
  /** The connection is over; nothing is told afterwards. `next`: why the connection gave up. */
  | {kind: 'close'; next?: Next};
export type Tell = (event: ConnectionEvent) => void;

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
  {url, token, transport, cursor}: ConnectionOptions,
  tell: Tell,
): Connection {
  const place = placeAt(cursor);
  const tokens = tokensOf(token);
  const choice = choiceOf(url.host, transport);
  const closer = new AbortController();
  /** Aborted by `close`. */
  const closed = closer.signal;
  const owner = {base: url, place, tokens, closed, opened, give, gap} as LinkOwner;
  const successors = successorsOf(owner, choice);
  owner.handOver = successors.handOver;
  let state: State = 'connecting';
  /** Aborted to try again before the time, but for a time that the gateway has named. */
  let alarm: AbortController | null = null;
  /** The link whose messages the page gets. */
  let current: Link | undefined;
  /** When this attempt opened, by Date.now(); 0 before it has opened. */
  let openedAt = 0;
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

  function close(next?: Next): void {
    if (state === 'closed') return;
    state = 'closed';
    closer.abort();
    hurry();
    tell({kind: 'close', next});
  }

  function opened(link: Link): void {
    tokens.accepted();
    choice.passed(link.name);
    void successors.renewTokens(link);
    void successors.lookUp(link);
    if (link.covered) return; // for the page the connection stayed open
    openedAt ||= Date.now();
    state = 'open';
    tell({kind: 'open'});
    // Without a cursor nobody knows what the page lacks. A poll's answer says whether there is a
    // gap.
    if (everOpen && link.name !== 'poll' && !link.cursor) gap();
    everOpen = true;
  }

  function give(form: Form, isRepeat = false): void {
    const isNew = place.move(form);
    if (closed.aborted) return;
    if (form.data === undefined || (isNew && !isRepeat)) tell({kind: 'form', form});
  }

  function gap(): void {
    // A topic that was made anew is a gap too, and its offsets have begun again: by the old
    // positions all its messages would be repeats.
    place.clear();
    if (!closed.aborted) tell({kind: 'gap'});
  }

  async function keep(): Promise<void> {
    for (let failures = 0; !closed.aborted; ) {
      const ended = await attempt();
      if (closed.aborted) return;
      state = 'waiting';
      if (openedAt && Date.now() - openedAt >= STABLE_MS) failures = 0;
      failures += 1;
      const retryIn = await delayAfter(ended, failures);
      if (closed.aborted) return;
      alarm = ended.notBefore ? null : new AbortController();
      tell({kind: 'error', failure: {status: ended.status, reason: ended.message, retryIn}});
      if (retryIn === null) return close(ended.next);
      await sleep(retryIn, alarm?.signal ?? closed);
    }
  }

  /** Connect, by one transport after the other; return how the connection ended. */
  async function attempt(): Promise<Ended> {
    state = 'connecting';
    openedAt = 0;
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
      successor.overlap!.settle();
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
    if (current?.open) void successors.handOver(current, 0);
  }
}
