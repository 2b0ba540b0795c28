// A world that a test directs: a clock that stands still, and a gateway that does what a test says.

import {PushClient} from '../../dist/index.js';

const realSetImmediate = setImmediate;

/** Let everything happen that needs no time. */
export async function settle() {
  for (let turns = 0; turns < 10; turns += 1) {
    await new Promise((resolve) => realSetImmediate(resolve));
  }
}

class Clock {
  constructor() {
    this.now = 1_000_000; // of the steady clock
    this.sleptMs = 0; // what the steady clock missed
    this.timers = new Set();
  }

  setTimeout = (then, ms) => {
    const timer = {at: this.now + Math.max(0, ms), then};
    this.timers.add(timer);
    return timer;
  };

  clearTimeout = (timer) => this.timers.delete(timer);

  /** Let `ms` pass, timer by timer. */
  async pass(ms) {
    const end = this.now + ms;
    await settle();
    for (;;) {
      const due = [...this.timers].filter(({at}) => at <= end).sort((a, b) => a.at - b.at)[0];
      if (!due) break;
      this.now = Math.max(this.now, due.at);
      this.timers.delete(due);
      due.then();
      await settle();
    }
    this.now = end;
  }

  /** Let `ms` pass in which the page is frozen: its timers are late. */
  freeze(ms) {
    this.now += ms;
  }

  /** Let `ms` pass in which the machine sleeps: the steady clock stands still. */
  sleep(ms) {
    this.sleptMs += ms;
  }
}

/** One WebSocket that a client has made; the methods are the gateway's acts. */
class Socket {
  closedWith = null;

  constructor(url, protocols) {
    this.url = String(url);
    this.protocols = protocols;
    Socket.made.push(this);
  }

  close(code) {
    this.closedWith ??= code;
  }

  /** Answer the handshake with 101. */
  async accept() {
    this.onopen();
    await settle();
  }

  async say(form) {
    this.onmessage({data: JSON.stringify(form)});
    await settle();
  }

  async hello(fields = {}) {
    await this.accept();
    await this.say({control: 'hello', heartbeat_ms: 25_000, ...fields});
  }

  async message(id, fields = {}) {
    await this.say({id, type: null, data: id, ...fields});
  }

  /** End, with a code of the gateway's or without a Close frame. */
  async end(code = 1006, reason = '') {
    this.onclose({code, reason});
    await settle();
  }

  get token() {
    return this.protocols.find((name) => name.startsWith('bearer.'))?.slice(7);
  }

  get cursor() {
    return this.protocols.find((name) => name.startsWith('cursor.'))?.slice(7);
  }
}

/** One request that a client has made; the methods are the gateway's acts. */
class Request {
  constructor(url, {headers = {}, signal, credentials}) {
    this.url = new URL(url);
    this.headers = headers;
    this.credentials = credentials;
    this.aborted = false;
    this.answered = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
      signal.addEventListener('abort', () => {
        this.aborted = true;
        reject(signal.reason);
        try {
          this.body?.error(signal.reason);
        } catch {
          // the body was read to its end
        }
      });
    });
  }

  get path() {
    return this.url.pathname;
  }

  get token() {
    return this.headers.authorization?.slice(7);
  }

  async answer(status, body = '', headers = {}) {
    this.resolve(new Response(status === 204 ? null : body, {status, headers}));
    await settle();
  }

  /** The network fails, or the browser hides the answer. */
  async fail() {
    this.reject(new TypeError('Failed to fetch'));
    await settle();
  }

  /** Answer with the head of an endless body. */
  async stream() {
    this.resolve(
      new Response(
        new ReadableStream({
          start: (body) => {
            this.body = body;
          },
        }),
      ),
    );
    await settle();
  }

  async send(text) {
    this.body.enqueue(new TextEncoder().encode(text));
    await settle();
  }

  /** Open an event stream. */
  async hello(cursor = '') {
    await this.stream();
    await this.beat(cursor);
  }

  async beat(cursor = '') {
    await this.send(`event: pushgate.cursor\ndata: 25000\n${cursor && `id: ${cursor}\n`}\n`);
  }

  async message(id, cursor = '') {
    await this.send(`data: ${id}\nid: ${cursor && `${cursor} `}${id}\n\n`);
  }

  async end() {
    this.body.close();
    await settle();
  }

  /** Answer a poll. */
  async polled(cursor, ...ids) {
    const messages = ids.map((id) => ({id, type: null, data: id}));
    await this.answer(200, JSON.stringify({cursor, messages}));
  }
}

/** What a page has: a place, a memory, and events. */
class Browser extends EventTarget {
  stored = new Map();
  hidden = false;

  constructor(href) {
    super();
    this.location = new URL(href);
    this.localStorage = {
      getItem: (key) => this.stored.get(key) ?? null,
      setItem: (key, value) => this.stored.set(key, value),
    };
  }

  async show(visibilityState) {
    this.hidden = visibilityState !== 'visible';
    await this.happens('visibilitychange');
  }

  async happens(name, fields = {}) {
    this.dispatchEvent(Object.assign(new Event(name), fields));
    await settle();
  }
}

/** Replace the globals that a client uses, for the time of the test `t`. */
export function world(t, {page = null, hasWebSocket = true, random = () => 1} = {}) {
  const clock = new Clock();
  const sockets = (Socket.made = []);
  const requests = [];
  const browser = page && new Browser(page);
  const fetch = (url, options) => {
    const request = new Request(url, options);
    requests.push(request);
    return request.answered;
  };
  replace(t, globalThis, {
    setTimeout: clock.setTimeout,
    clearTimeout: clock.clearTimeout,
    fetch,
    WebSocket: hasWebSocket ? Socket : undefined,
    document: browser ?? undefined,
    location: browser?.location,
    localStorage: browser?.localStorage,
    addEventListener: browser?.addEventListener.bind(browser),
  });
  replace(t, performance, {now: () => clock.now});
  replace(t, Date, {now: () => 1_700_000_000_000 + clock.now + clock.sleptMs});
  replace(t, Math, {random});
  return {clock, sockets, requests, browser, connect: (options) => connect(t, options)};
}

export function replace(t, owner, values) {
  for (const [name, value] of Object.entries(values)) {
    const original = Object.getOwnPropertyDescriptor(owner, name);
    Object.defineProperty(owner, name, {value, configurable: true, writable: true});
    t.after(() => {
      if (original) Object.defineProperty(owner, name, original);
      else delete owner[name];
    });
  }
}

/** A client and what it has told: `open`, `gap`, `close`, a message's id, or an error's delay. */
async function connect(t, {url = 'https://push.test/', ...options} = {}) {
  const client = new PushClient(url, {token: 't1', ...options});
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
  t.after(() => client.close());
  await settle();
  return {client, told, errors};
}

/** A JWT that expires in `ms`, by the clock of the world. */
export function jwt(ms, name = '') {
  const claims = JSON.stringify({sub: 'ä', exp: (Date.now() + ms) / 1_000, name});
  return `x.${Buffer.from(claims).toString('base64url')}.x`;
}
