// `/pushgate.js`: the global `pushgate` for pages without a bundler.

import {PushClient, type PushClientOptions} from './client.js';
import type {State} from './connection.js';
import type {Failure, Message} from './events.js';

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
  const connection: PageConnection = {
    onopen: null,
    onmessage: null,
    ongap: null,
    onerror: null,
    onclose: null,
    get state() {
      return client.state;
    },
    close: () => client.close(),
  };
  client.onopen = () => connection.onopen?.();
  client.onmessage = ({message}) => connection.onmessage?.(message);
  client.ongap = () => connection.ongap?.();
  client.onerror = ({status, reason, retryIn}) => connection.onerror?.({status, reason, retryIn});
  client.onclose = () => connection.onclose?.();
  return connection;
}

Object.assign(globalThis, {pushgate: Object.freeze({PushClient, connect})});
