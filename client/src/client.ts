// The client as a page sees it: an EventTarget, and an async iterable of messages.

import type {TransportName, TransportOption} from './choice.js';
import {type Connection, openConnection, type State} from './connection.js';
import {
  callHandlers,
  type Message,
  PushErrorEvent,
  type PushEventMap,
  PushMessageEvent,
} from './events.js';
import {type Form, payload} from './form.js';
import {canShare, shareConnection} from './tabs/shared.js';
import type {TokenSource} from './tokens.js';

/** Messages that may wait for a `for await` loop. */
const MAX_WAITING = 1_000;

export interface PushClientOptions {
  /** A JWT, or a function that gives one; without, the cookie `pushgate_token` has to do. */
  token?: TokenSource;
  /** `auto` (the default): WebSocket, and where it does not pass SSE, then long-poll. */
  transport?: TransportOption;
  /**
   * Share one connection with the user's other tabs of this origin, where the browser can. A text
   * keeps apart from tabs with another text: the user's name, where a cookie has the token.
   */
  shared?: boolean | string;
  /** With `shared`: the package's worker file on the page's own origin, which then connects. */
  workerUrl?: string | URL;
}

type Handler<Name extends keyof PushEventMap> =
  | ((this: PushClient, event: PushEventMap[Name]) => unknown)
  | null;

/** A connection to a pushgate gateway, kept until `close()`. */
export class PushClient extends EventTarget implements AsyncIterable<Message> {
  onopen!: Handler<'open'>;
  onmessage!: Handler<'message'>;
  ongap!: Handler<'gap'>;
  onerror!: Handler<'error'>;
  onclose!: Handler<'close'>;
  private readonly connection: Connection;

  /**
   * Connect. `url` is the gateway's address, the folder of its paths.
   *
   * Throws a TypeError for a URL or a transport that is none, or can't be had here.
   */
  constructor(url: string | URL, options?: PushClientOptions);
  /** `detail`: what handlers are given for an event. @internal */
  constructor(url: string | URL, options: PushClientOptions, detail: (event: Event) => unknown);
  constructor(url: string | URL, options: PushClientOptions = {}, detail = (event: Event): unknown => event) {
    super();
    callHandlers(this, detail);
    this.connection = (options.shared && canShare() ? shareConnection : openConnection)(
      {...options, url: folder(url)},
      (event) => {
        if (event.kind === 'error') this.dispatchEvent(new PushErrorEvent(event.failure));
        else if (event.kind !== 'form') this.dispatchEvent(new Event(event.kind));
        else if (event.form.data !== undefined) this.dispatchEvent(messageIn(event.form));
      },
    );
  }

  get state(): State {
    return this.connection.state;
  }

  /** The transport in use; null while there is none. */
  get transport(): TransportName | null {
    return this.connection.transport;
  }

  /** End the connection for good; harmless when repeated. */
  close(): void {
    this.connection.close();
  }

  /**
   * The messages from now on, until the client is closed. Throws a RangeError where the loop is a
   * thousand messages behind.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<Message, void, undefined> {
    const waiting: Message[] = [];
    const done = new AbortController();
    const {signal} = done;
    let wake = () => {};
    const take = ({message}: {message?: Message}) => {
      if (message && waiting.length <= MAX_WAITING) waiting.push(message);
      wake();
    };
    this.addEventListener('message', take, {signal});
    this.addEventListener('close', take as () => void, {signal});
    try {
      while (waiting[0] || this.state !== 'closed') {
        if (waiting.length > MAX_WAITING) throw new RangeError(`${MAX_WAITING} messages wait for this loop`);
        if (waiting[0]) yield waiting.shift()!;
        else await new Promise<void>((resolve) => (wake = resolve));
      }
    } finally {
      done.abort();
    }
  }
}

export interface PushClient {
  addEventListener<Name extends keyof PushEventMap>(
    type: Name,
    listener: (this: PushClient, event: PushEventMap[Name]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

function messageIn(form: Form): PushMessageEvent {
  const {id = '', type = null} = form;
  return new PushMessageEvent({id, type, data: payload(form)});
}

/** The URL of a folder, relative to the page's. */
function folder(url: string | URL): URL {
  const base = new URL(url, globalThis.location?.href);
  base.pathname = base.pathname.replace(/\/?$/, '/');
  return base;
}
