// `/pushgate.js`: the global `pushgate` for pages without a bundler.

import {PushClient, type PushClientOptions} from './client.js';
import type {State} from './connection.js';
import {callHandlers, type Failure, type Message} from './events.js';

interface ConnectOptions extends PushClientOptions {
  /** The gateway's address; by default the folder that this script came from. */
  url?: string | URL;
}

/** What `pushgate.connect` gives: handlers are called with plain objects. */
interface PageConnection {
  onopen: (() => void) | null;
  onmessage: ((message: Message) => void) | null;
  ongap: (() => void) | null;
  onerror: ((failure: Failure) => void) | null;
  onclose: (() => void) | null;
  readonly state: State;
  close(): void;
}

const script = globalThis.document && (document.currentScript as HTMLScriptElement | null);
const home = new URL('.', script ? script.src : globalThis.location.href);

function connect({url = home, ...options}: ConnectOptions = {}): PageConnection {
  const client = new PushClient(url, options);
  const connection = {
    get state() {
      return client.state;
    },
    close: () => client.close(),
  } as PageConnection;
  callHandlers(connection, client, plain);
  return connection;
}

/** What handlers get in place of an event. */
function plain(event: object): Message | Failure | undefined {
  const {message, status, reason, retryIn} = event as {message?: Message} & Failure;
  return message ?? (reason === undefined ? undefined : {status, reason, retryIn});
}

Object.assign(globalThis, {pushgate: Object.freeze({PushClient, connect})});
