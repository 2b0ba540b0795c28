// React hooks.

import {useMemo, useSyncExternalStore} from 'react';

import type {State} from './connection.js';
import type {Message} from './events.js';
import type {PushClient} from './client.js';

export interface UseMessagesOptions {
  /** Messages of this type alone; null: those without a type. */
  type?: string | null;
  /** How many messages are kept, the newest; 100 by default. */
  limit?: number;
}

export interface Messages {
  /** What has come since the component was mounted, oldest first; a new array at each change. */
  readonly messages: readonly Message[];
  readonly state: State;
  /** How often messages may have been missed: fetch the component's data afresh when it changes. */
  readonly gaps: number;
}

/** The messages of a client, which the caller makes and closes. */
export function useMessages(client: PushClient, options: UseMessagesOptions = {}): Messages {
  const {type, limit = 100} = options;
  const store = useMemo(() => storeOf(client, type, limit), [client, type, limit]);
  return useSyncExternalStore(store.subscribe, store.snapshot, store.snapshot);
}

function storeOf(client: PushClient, type: string | null | undefined, limit: number) {
  let current: Messages = {messages: [], state: client.state, gaps: 0};
  return {
    snapshot: () => current,
    subscribe(changed: () => void): () => void {
      const done = new AbortController();
      const options = {signal: done.signal};
      const change = (changes: Partial<Messages>) => {
        current = {...current, state: client.state, ...changes};
        changed();
      };
      client.addEventListener(
        'message',
        ({message}) => {
          if (type !== undefined && type !== message.type) return;
          change({messages: [...current.messages, message].slice(-limit)});
        },
        options,
      );
      client.addEventListener('gap', () => change({gaps: current.gaps + 1}), options);
      for (const name of ['open', 'error', 'close']) {
        client.addEventListener(name, () => change({}), options);
      }
      if (client.state !== current.state) change({});
      return () => done.abort();
    },
  };
}
