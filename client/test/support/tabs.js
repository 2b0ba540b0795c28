// Tabs of one origin: their Web Locks, their BroadcastChannel, and a browser that freezes a tab.

import {PushClient} from '../../dist/index.js';
import {replace, settle, world} from './world.js';

/** One tab; what the browser has for a frozen tab waits until the tab thaws. */
class Tab {
  events = new EventTarget();
  isFrozen = false;
  waiting = [];
  /** Whether a form is lost on its way to this tab. */
  loses = () => false;

  run(task) {
    if (this.isFrozen) this.waiting.push(task);
    else queueMicrotask(task);
  }

  async thaw() {
    this.isFrozen = false;
    for (const task of this.waiting.splice(0)) this.run(task);
    await settle();
  }

  async happens(name) {
    this.events.dispatchEvent(new Event(name));
    await settle();
  }
}

/** `navigator.locks`, as far as tabs use it. */
class Locks {
  names = new Map();

  constructor(browser) {
    this.browser = browser;
  }

  request = (name, {signal, steal = false}, work) => {
    const lock = this.names.get(name) ?? {held: null, waiting: []};
    this.names.set(name, lock);
    return new Promise((resolve, reject) => {
      const request = {work, resolve, reject, tab: this.browser.tab};
      if (steal) {
        const {held} = lock;
        held?.tab.run(() => held.reject(new DOMException('stolen', 'AbortError')));
        this.grant(lock, request);
        return;
      }
      lock.waiting.push(request);
      signal.addEventListener('abort', () => {
        lock.waiting = lock.waiting.filter((other) => other !== request);
        reject(signal.reason);
      });
      this.next(lock);
    });
  };

  grant(lock, request) {
    lock.held = request;
    request.tab.run(async () => {
      const result = await request.work();
      if (lock.held === request) {
        lock.held = null;
        this.next(lock);
      }
      request.resolve(result);
    });
  }

  next(lock) {
    if (!lock.held && lock.waiting.length) this.grant(lock, lock.waiting.shift());
  }
}

/** A world with a browser in it; `open` opens a tab with a client that shares. */
export function browser(t) {
  const clients = [];
  // Before the world ends: a lock that one of them frees is given to the next.
  t.after(() => clients.forEach((client) => client.close()));
  const found = world(t, {page: 'https://app.test/'});
  const state = {tab: null};
  const channels = new Set();
  class Channel {
    constructor(name) {
      this.name = name;
      this.tab = state.tab;
      channels.add(this);
    }

    postMessage(data) {
      for (const other of channels) {
        if (other === this || other.name !== this.name || other.tab.loses(data)) continue;
        const copy = structuredClone(data);
        other.tab.run(() => channels.has(other) && other.onmessage({data: copy}));
      }
    }

    close() {
      channels.delete(this);
    }
  }
  const listen = (...args) => state.tab.events.addEventListener(...args);
  replace(t, globalThis, {
    navigator: {locks: new Locks(state)},
    BroadcastChannel: Channel,
    addEventListener: listen,
    document: {addEventListener: listen, hidden: false},
  });
  const open = async (options = {}) => {
    const tab = (state.tab = new Tab());
    const client = new PushClient('https://push.test/', {
      token: 't1',
      transport: 'ws',
      shared: true,
      ...options,
    });
    const told = [];
    const errors = [];
    client.onopen = () => told.push('open');
    client.ongap = () => told.push('gap');
    client.onclose = () => told.push('close');
    client.onmessage = ({id}) => told.push(id);
    client.onerror = ({status, reason, retryIn}) => {
      told.push(retryIn);
      errors.push({status, reason, retryIn});
    };
    clients.push(client);
    await settle();
    return {tab, client, told, errors};
  };
  /** The tab that does what follows: enters again, say. */
  const inTab = (tab, act) => {
    state.tab = tab;
    return act();
  };
  return {...found, open, inTab};
}
