// A connection that all tabs of an origin share.

import {choiceOf, type TransportName} from '../choice.js';
import {
  type Connection,
  type ConnectionEvents,
  type ConnectionOptions,
  openConnection,
  type State,
} from '../connection.js';
import {forgetOldest} from '../bounds.js';
import {delay, FIRST_RETRY_MS, sleep} from '../delays.js';
import {asEnded} from '../ended.js';
import type {Failure} from '../events.js';
import type {Form} from '../form.js';
import {placeAt} from '../place.js';
import {tokensOf, userOf} from '../tokens.js';
import {election} from './election.js';
import {asOfIn, type Channel, covers, type FromHolder, type Here} from './forms.js';
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
/** After so many forms a tab says that it is there: a worker forgets a tab that never does. */
const FORMS_PER_ANSWER = 256;

export interface SharedOptions extends ConnectionOptions {
  readonly shared?: boolean | string | undefined;
  /** The package's worker file, on the page's own origin. */
  readonly workerUrl?: string | URL | undefined;
}

/** As `openConnection`; where tabs can't share, the page has a connection of its own. */
export function shareConnection(options: SharedOptions, events: ConnectionEvents): Connection {
  const canShare = globalThis.BroadcastChannel && globalThis.navigator?.locks;
  return (canShare ? openShared : openConnection)(options, events);
}

function openShared(options: SharedOptions, events: ConnectionEvents): Connection {
  const {url, transport, shared} = options;
  choiceOf(transport ?? 'auto', url.host); // throws for what can't be had here
  const tokens = tokensOf(options.token);
  const place = placeAt();
  const ids = new Set<unknown>();
  const closer = new AbortController();
  const {signal} = closer;
  let {workerUrl} = options;
  let channel: Channel | null = null;
  let state: State = 'connecting';
  let transportInUse: TransportName | null = null;
  /** The token by which the tab knows its user, until the token is used. */
  let atHand: string | undefined;
  let user: string;
  /** The page knows that the connection is open. */
  let isOpen = false;
  let wasOpen = false;
  let hasJoined = false;
  /** The link that this tab listens to, and how many messages the link has brought. */
  let link = 0;
  let count = 0;
  /** The tab has missed messages, and takes none before a link has brought those. */
  let isBehind = false;
  /** When the tab last had everything, by Date.now(). */
  let wholeAt = 0;
  let heardForms = 0;
  let silentTicks = 0;

  void start();
  return {
    get state() {
      return state;
    },
    get transport() {
      return transportInUse;
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
    transportInUse = null;
    closer.abort();
    events.close();
  }

  async function start(): Promise<void> {
    await identify();
    if (signal.aborted) return;
    // A page in the back-forward cache may have neither locks nor channels, and what comes for a
    // page that is frozen would wait without bound.
    const turns = {pagehide: leave, freeze: leave, pageshow: enter, resume: enter, visibilitychange: ask};
    for (const [name, act] of Object.entries(turns)) {
      // With `capture`: some of these events are the document's, and don't bubble.
      globalThis.addEventListener?.(name, act, {signal, capture: true});
    }
    enter();
    while (!(await sleep(TICK_MS, signal))) tick();
  }

  /** Learn whose token it is: tabs of different users share nothing. */
  async function identify(): Promise<void> {
    for (let failures = 1; !signal.aborted; failures += 1) {
      try {
        atHand = await tokens.next();
        user = userOf(atHand);
        return;
      } catch (error) {
        if (signal.aborted) return;
        const ended = asEnded(error);
        const retryIn = delay(ended, FIRST_RETRY_MS, failures);
        state = 'waiting';
        fail({status: null, reason: ended.message, retryIn});
        await sleep(retryIn, signal);
      }
    }
  }

  async function nextToken(): Promise<string | undefined> {
    const token = atHand ?? (await tokens.next());
    atHand = undefined;
    return token;
  }

  function enter(): void {
    if (channel || signal.aborted) return;
    state = 'connecting';
    isBehind = hasJoined;
    channel = openChannel();
    ask();
  }

  function leave(): void {
    channel?.close();
    channel = null;
  }

  function openChannel(): Channel {
    const name = `pushgate ${url} ${transport} ${shared} ${user}`;
    // The build of /pushgate.js has no SharedWorker, nor what is for it alone.
    if (globalThis.SharedWorker && workerUrl) {
      try {
        return workerPort(workerUrl, name, {
          options,
          cursor: place.cursor,
          link,
          hear,
          nextToken,
          enterAgain(withWorker = hasJoined) {
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

  function hold(tell: (form: FromHolder) => void): Holder {
    const token = options.token && (nextToken as () => Promise<string>);
    return holderOf(
      (cursor, heard) => openConnection({url, transport, token, cursor}, heard),
      tell,
      place.cursor,
      link + 1,
      wasOpen,
    );
  }

  function ask(): void {
    silentTicks = Math.max(silentTicks, ASK_TICKS);
    channel?.tell({kind: 'ping'});
  }

  function tick(): void {
    silentTicks += 1;
    if (silentTicks === ASK_TICKS) ask();
    if (silentTicks < TAKE_TICKS) return;
    silentTicks = 0;
    channel?.take();
  }

  function hear(form: FromHolder): void {
    if (form.link < link || !channel) return; // of a holder that has lost the link
    silentTicks = 0;
    heardForms += 1;
    if (heardForms % FORMS_PER_ANSWER === 0) ask();
    if (form.kind === 'here') meet(form, form.link);
    else if (form.link === link && hasJoined) follow(form);
  }

  function meet(here: Here, heardLink: number): void {
    const asOf = asOfIn(place.cursor);
    const isWhole =
      heardLink === link
        ? here.count === count
        : here.count === 0 && (asOf ? covers(here.start, asOf) : !isBehind);
    link = heardLink;
    if (hasJoined && !isWhole) {
      if (asOf && Date.now() - wholeAt < MAX_ABSENCE_MS) {
        isBehind = true;
        count = -1; // of this link nothing will do
        channel!.tell({kind: 'back', link, asOf});
        return;
      }
      forget();
    }
    if (!isWhole || !hasJoined) place.load(here.cursor);
    if (here.state === 'open') atHand = undefined; // it may be old when this tab needs a token
    count = here.count;
    hasJoined = true;
    isBehind = false;
    wholeAt = Date.now();
    show(here);
  }

  function show(here: Here): void {
    state = here.state;
    transportInUse = here.transport;
    if (state === 'open' && !isOpen) {
      isOpen = wasOpen = true;
      events.open();
    }
    // The timers of a page in the background may not run for a minute.
    if (state === 'waiting' && here.hidden && !globalThis.document?.hidden) channel?.take();
  }

  function follow(form: Exclude<FromHolder, {kind: 'here'}>): void {
    if (form.kind === 'form') move(form.form, form.count);
    else if (form.kind === 'gap') forget();
    else if (form.kind === 'error') fail(form.failure);
    // Another tab may have a better token: only what is said to this user ends all.
    else if (form.next === 'NEVER' || channel!.holds) close();
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
    if (!isMessage || (isNew && !isRepeat(form.id))) events.form(form);
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
    events.gap();
  }

  function fail(failure: Failure): void {
    isOpen = false;
    events.error(failure, 'LATER');
  }
}
