// `/pushgate.js`: the global `pushgate` for pages without a bundler.

import {PushClient, type PushClientOptions} from './client.js';
import type {Failure, Message} from './events.js';

interface ConnectOptions extends PushClientOptions {
  /** The gateway's address; by default the folder that this script came from. */
  url?: string | URL;
}

const script = globalThis.document?.currentScript as HTMLScriptElement | null | undefined;
const home = new URL('.', script?.src || location.href);

/** A client whose handlers are called with plain objects. */
function connect(options: ConnectOptions = {}): PushClient {
  return new PushClient(options.url ?? home, options, plain);
}

function plain({message, failure}: Event & {message?: Message; failure?: Failure}): unknown {
  return message ?? failure;
}

(globalThis as {pushgate?: object}).pushgate = Object.freeze({PushClient, connect});
