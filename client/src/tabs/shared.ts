// A connection that all tabs of an origin share.

import {Choice, type TransportName} from '../choice.js';
import {
  type Connection,
  type ConnectionEvents,
  type ConnectionOptions,
  openConnection,
  type State,
} from '../connection.js';
import {delay, FIRST_RETRY_MS, sleep} from '../delays.js';
import {asEnded} from '../ended.js';
import type {Failure} from '../events.js';
import type {Form} from '../form.js';
import {Place} from '../place.js';
import {Tokens, userOf} from '../tokens.js';
import {Election} from './election.js';
import {asOfIn, type Channel, covers, type FromHolder, type Here} from './forms.js';
import {Holder} from './holder.js';
import {type PortOwner, WorkerPort} from './worker_port.js';

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
  return canShare ? new SharedConnection(options, events) : openConnection(options, events);
}

class SharedConnection implements Connection, PortOwner {
  state: State = 'connecting';
  transport: TransportName | null = null;
  private readonly closer = new AbortController();
  private readonly tokens: Tokens;
  private readonly place = new Place();
  private readonly ids = new Set<unknown>();
  private channel: Channel | null = null;
  workerUrl: string | URL | undefined;
  /** The token by which the tab knows its user, until the token is used. */
  private token: string | undefined;
  private user = '';
  /** The page knows that the connection is open. */
  private isOpen = false;
  private wasOpen = false;
  hasJoined = false;
  /** The link that this tab listens to, and how many messages the link has brought. */
  link = 0;
  private count = 0;
  /** The tab has missed messages, and takes none before a link has brought those. */
  private isBehind = false;
  /** When the tab last had everything, by Date.now(). */
  private wholeAt = 0;
  private heardForms = 0;
  private silentTicks = 0;

  constructor(
    readonly options: SharedOptions,
    private readonly events: ConnectionEvents,
  ) {
    new Choice(options.transport ?? 'auto', options.url.host); // throws for what can't be had here
    this.tokens = new Tokens(options.token);
    this.workerUrl = options.workerUrl;
    void this.start(this.closer.signal);
  }

  get cursor(): string {
    return this.place.cursor;
  }

  close(): void {
    if (this.state === 'closed') return;
    this.leave();
    this.state = 'closed';
    this.transport = null;
    this.closer.abort();
    this.events.close();
  }

  hear(form: FromHolder): void {
    if (form.link < this.link || !this.channel) return; // of a holder that has lost the link
    this.silentTicks = 0;
    this.heardForms += 1;
    if (this.heardForms % FORMS_PER_ANSWER === 0) this.ask();
    if (form.kind === 'here') this.meet(form, form.link);
    else if (form.link === this.link && this.hasJoined) this.follow(form);
  }

  async nextToken(): Promise<string | undefined> {
    const token = this.token ?? (await this.tokens.next());
    this.token = undefined;
    return token;
  }

  private async start(signal: AbortSignal): Promise<void> {
    await this.identify(signal);
    if (signal.aborted) return;
    // A page in the back-forward cache may have neither locks nor channels, and what comes for a
    // page that is frozen would wait without bound.
    const turns = {
      pagehide: () => this.leave(),
      freeze: () => this.leave(),
      pageshow: () => this.enter(),
      resume: () => this.enter(),
      visibilitychange: () => this.ask(),
    };
    for (const [name, act] of Object.entries(turns)) {
      // With `capture`: some of these events are the document's, and don't bubble.
      globalThis.addEventListener?.(name, act, {signal, capture: true});
    }
    this.enter();
    while (!signal.aborted) {
      await sleep(TICK_MS, signal);
      this.tick();
    }
  }

  /** Learn whose token it is: tabs of different users share nothing. */
  private async identify(signal: AbortSignal): Promise<void> {
    for (let failures = 1; !signal.aborted; failures += 1) {
      try {
        this.token = await this.tokens.next();
        this.user = userOf(this.token);
        return;
      } catch (error) {
        if (signal.aborted) return;
        const ended = asEnded(error);
        const retryIn = delay(ended, FIRST_RETRY_MS, failures);
        this.state = 'waiting';
        this.fail({status: null, reason: ended.message, retryIn});
        await sleep(retryIn, signal);
      }
    }
  }

  enter(): void {
    if (this.channel || this.closer.signal.aborted) return;
    this.state = 'connecting';
    this.isBehind = this.hasJoined;
    this.channel = this.openChannel();
    this.ask();
  }

  private openChannel(): Channel {
    const {url, transport, shared} = this.options;
    const name = `pushgate ${url} ${transport} ${shared} ${this.user}`;
    // The build of /pushgate.js has no SharedWorker, nor what is for it alone.
    if (globalThis.SharedWorker && this.workerUrl) {
      try {
        return new WorkerPort(this.workerUrl, name, this);
      } catch {
        this.workerUrl = undefined; // of another origin, say
      }
    }
    return new Election(
      name,
      (form) => this.hear(form),
      (tell) => this.hold(tell),
    );
  }

  leave(): void {
    this.channel?.close();
    this.channel = null;
  }

  private hold(tell: (form: FromHolder) => void): Holder {
    const {url, transport} = this.options;
    const token = this.options.token && (() => this.nextToken() as Promise<string>);
    return new Holder(
      (cursor, events) => openConnection({url, transport, token, cursor}, events),
      tell,
      this.cursor,
      this.link + 1,
      this.wasOpen,
    );
  }

  private ask(): void {
    this.silentTicks = Math.max(this.silentTicks, ASK_TICKS);
    this.channel?.tell({kind: 'ping'});
  }

  private tick(): void {
    this.silentTicks += 1;
    if (this.silentTicks === ASK_TICKS) this.ask();
    if (this.silentTicks < TAKE_TICKS) return;
    this.silentTicks = 0;
    this.channel?.take();
  }

  private meet(here: Here, link: number): void {
    const asOf = asOfIn(this.cursor);
    const isWhole =
      link === this.link
        ? here.count === this.count
        : here.count === 0 && (asOf ? covers(here.start, asOf) : !this.isBehind);
    this.link = link;
    if (this.hasJoined && !isWhole) {
      if (asOf && Date.now() - this.wholeAt < MAX_ABSENCE_MS) {
        this.isBehind = true;
        this.count = -1; // of this link nothing will do
        this.channel!.tell({kind: 'back', link, asOf});
        return;
      }
      this.forget();
    }
    if (!isWhole || !this.hasJoined) this.place.load(here.cursor);
    if (here.state === 'open') this.token = undefined; // it may be old when this tab needs a token
    this.count = here.count;
    this.hasJoined = true;
    this.isBehind = false;
    this.wholeAt = Date.now();
    this.show(here);
  }

  private show({state, transport, hidden}: Here): void {
    this.state = state;
    this.transport = transport;
    if (state === 'open' && !this.isOpen) {
      this.isOpen = this.wasOpen = true;
      this.events.open();
    }
    // The timers of a page in the background may not run for a minute.
    if (state === 'waiting' && hidden && !globalThis.document?.hidden) this.channel?.take();
  }

  private follow(form: Exclude<FromHolder, {kind: 'here'}>): void {
    if (form.kind === 'form') this.move(form.form, form.count);
    else if (form.kind === 'gap') this.forget();
    else if (form.kind === 'error') this.fail(form.failure);
    // Another tab may have a better token: only what is said to this user ends all.
    else if (form.next === 'NEVER' || this.channel!.holds) this.close();
  }

  private move(form: Form, count: number): void {
    if (this.isBehind) return;
    const isMessage = form.data !== undefined;
    if (count !== this.count + Number(isMessage)) {
      this.isBehind = true; // some have been lost among the tabs: the holder's answer says since when
      this.ask();
      return;
    }
    this.count = count;
    this.wholeAt = Date.now();
    const isNew = this.place.move(form);
    if (!isMessage || (isNew && !this.isRepeat(form.id))) this.events.form(form);
  }

  private isRepeat(id: unknown): boolean {
    if (this.ids.has(id)) return true;
    this.ids.add(id);
    if (this.ids.size > MAX_IDS) this.ids.delete(this.ids.values().next().value);
    return false;
  }

  private forget(): void {
    this.place.clear();
    this.ids.clear();
    this.events.gap();
  }

  private fail(failure: Failure): void {
    this.isOpen = false;
    this.events.error(failure, 'LATER');
  }
}
