// A connection that all tabs of an origin share.

import {choiceOf, type TransportName} from '../choice.js';
import type {Connection, ConnectionOptions, State, Tell} from '../connection.js';
import {forgetOldest} from '../bounds.js';
import {delay, FIRST_RETRY_MS, sleep} from '../delays.js';
import {asEnded} from '../ended.js';
import type {Failure} from '../events.js';
import type {Form} from '../form.js';
import {isHidden, listen} from '../page.js';
import {placeAt} from '../place.js';
import {tokensOf, userOf} from '../tokens.js';
import {election} from './election.js';
import {type Channel, covers, type FromHolder, type Here} from './forms.js';
import {type Holder, holderOf} from './holder.js';
import {workerPort} from './worker_port.js';

const TICK_MS = 300;
/** After so many ticks without a word from the holder a tab asks the holder to answer. */
const ASK_TICKS = 2;
/** After so many a tab takes the link: within 1.5 s, so that it is open within two seconds. */
const TAKE_TICKS = 5;
/** What a tab missed in a longer absence it does not ask for: gateways look back two minutes. */
const MAX_ABSENCE_MS = 60_000;
/** Ids of the last messages: those without a position are known by their id. */
const MAX_IDS = 256;

export interface SharedOptions extends ConnectionOptions {
  readonly shared?: boolean | string | undefined;
  /** The package's worker file, on the page's own origin. */
  readonly workerUrl?: string | URL | undefined;
}

/** Whether tabs can reach each other here, and elect one. */
export function canShare(): boolean {
  return Boolean(globalThis.BroadcastChannel && globalThis.navigator?.locks);
}

/** As `openConnection`. */
export function shareConnection(options: SharedOptions, tell: Tell): Connection {
  const {url, transport, shared} = options;
  choiceOf(url.host, transport); // throws for what can't be had here
  const tokens = tokensOf(options.token);
  const place = placeAt();
  const ids = new Set<unknown>();
  const closer = new AbortController();
  const {signal} = closer;
  let {workerUrl} = options;
  let channel: Channel | null = null;
  let state: State = 'connecting';
  let transportInUse: TransportName | null = null;
  let user: string | undefined;
  /** The page knows that the connection is open. */
  let isOpen = false;
  let wasOpen = false;
  /** The link that this tab listens to; 0 before there is one. */
  let link = 0;
  /** How many messages the link has brought. */
  let count = 0;
  /** The tab has missed messages, and takes none before a link has brought those. */
  let isBehind = false;
  /** When the tab last had everything, by Date.now(). */
  let wholeAt = 0;
  let silentTicks = 0;

  void start();
  return {
    get state() {
      return state;
    },
    get transport() {
      return state === 'open' ? transportInUse : null;
    },
    get cursor() {
      return place.cursor;
    },
    close,
  };

  function close(): void {
    if (state === 'closed') return;
    leave();
    state = 'closed';
    closer.abort();
    tell({kind: 'close'});
  }

  async function start(): Promise<void> {
    await identify();
    // A page in the back-forward cache may have neither locks nor channels, and what comes for a
    // page that is frozen would wait without bound.
    const acts = {pagehide: leave, freeze: leave, pageshow: enter, resume: enter, visibilitychange: ask};
    listen(acts, signal);
    enter();
    while (!(await sleep(TICK_MS, signal))) tick();
  }

  /** Learn whose token it is: tabs of different users share nothing. */
  async function identify(): Promise<void> {
    for (let failures = 1; !user && !signal.aborted; failures += 1) {
      try {
        user = userOf(await tokens.peek());
      } catch (error) {
        if (signal.aborted) return;
        const ended = asEnded(error);
        const retryIn = delay(ended, FIRST_RETRY_MS, failures);
        state = 'waiting';
        fail({status: ended.status, reason: ended.message, retryIn});
        await sleep(retryIn, signal);
      }
    }
  }

  function enter(): void {
    if (channel || signal.aborted) return;
    state = 'connecting';
    isBehind = link > 0;
    channel = openChannel();
    ask();
  }

  function leave(): void {
    channel?.close();
    channel = null;
  }

  function openChannel(): Channel {
    // The number goes with the forms that tabs exchange: tabs with other forms share nothing.
    const name = `pushgate 2 ${url} ${transport} ${shared} ${user}`;
    // The build of /pushgate.js has no SharedWorker, nor what is for it alone.
    if (globalThis.SharedWorker && workerUrl) {
      try {
        return workerPort(workerUrl, name, {
          options,
          cursor: place.cursor,
          link,
          hear,
          nextToken: tokens.next,
          enterAgain(withWorker = link > 0) {
            if (!withWorker) workerUrl = undefined;
            leave();
            enter();
          },
        });
      } catch {
        workerUrl = undefined; // of another origin, say
      }
    }
    return election(name, hear, hold);
  }

  function hold(tellAll: (form: FromHolder) => void): Holder {
    const token = options.token && (tokens.next as () => Promise<string>);
    return holderOf({...options, token}, tellAll, place.cursor, link + 1, wasOpen);
  }

  function ask(): void {
    silentTicks = Math.max(silentTicks, ASK_TICKS);
    channel?.tell({kind: 'ping'});
  }

  function tick(): void {
    silentTicks = (silentTicks + 1) % TAKE_TICKS;
    if (silentTicks === ASK_TICKS) ask();
    if (!silentTicks) channel?.take();
  }

  function hear(form: FromHolder, isOwn: boolean): void {
    if (form.link < link || !channel) return; // of a holder that has lost the link
    silentTicks = 0;
    if (form.kind === 'here') meet(form);
    else if (form.link === link) follow(form, isOwn);
  }

  function meet(here: FromHolder & Here): void {
    const {cursor} = place;
    const isWhole =
      here.link === link
        ? here.count === count
        : here.count === 0 && (cursor ? covers(here.start, cursor) : !isBehind);
    const hasJoined = link > 0;
    link = here.link;
    if (hasJoined && !isWhole) {
      if (cursor && Date.now() - wholeAt < MAX_ABSENCE_MS) {
        isBehind = true;
        count = -1; // of this link nothing will do
        channel!.tell({kind: 'ping', lacks: link, cursor});
        return;
      }
      forget();
    }
    if (!isWhole || !hasJoined) place.load(here.cursor);
    if (here.state === 'open') tokens.accepted();
    count = here.count;
    isBehind = false;
    wholeAt = Date.now();
    show(here);
  }

  function show(here: Here): void {
    state = here.state;
    transportInUse = here.transport;
    if (state === 'open' && !isOpen) {
      isOpen = wasOpen = true;
      tell({kind: 'open'});
    }
    // The timers of a page in the background may not run for a minute.
    if (state === 'waiting' && here.hidden && !isHidden()) channel?.take();
  }

  function follow(form: FromHolder, isOwn: boolean): void {
    if (form.kind === 'form') move(form.form, form.count);
    else if (form.kind === 'gap') forget();
    else if (form.kind === 'error') fail(form.failure);
    // Another tab may have a better token: only what is said to this user ends all.
    else if (form.kind === 'close' && (form.next === 'NEVER' || isOwn)) close();
  }

  function move(form: Form, newCount: number): void {
    if (isBehind) return;
    const isMessage = form.data !== undefined;
    if (newCount !== count + Number(isMessage)) {
      isBehind = true; // some have been lost among the tabs: the holder's answer says since when
      ask();
      return;
    }
    count = newCount;
    wholeAt = Date.now();
    const isNew = place.move(form);
    if (!isMessage || (isNew && !isRepeat(form.id))) tell({kind: 'form', form});
  }

  function isRepeat(id: unknown): boolean {
    if (ids.has(id)) return true;
    ids.add(id);
    forgetOldest(ids, MAX_IDS);
    return false;
  }

  function forget(): void {
    place.clear();
    ids.clear();
    tell({kind: 'gap'});
  }

  function fail(failure: Failure): void {
    isOpen = false;
    tell({kind: 'error', failure});
  }
}
