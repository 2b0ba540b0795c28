// What `import 'pushgate-client'` gives.

export type {TransportName, TransportOption} from './choice.js';
export {PushClient, type PushClientOptions} from './client.js';
export type {State} from './connection.js';
export {
  type Failure,
  type Message,
  PushErrorEvent,
  type PushEventMap,
  PushMessageEvent,
} from './events.js';
export type {TokenSource} from './tokens.js';
