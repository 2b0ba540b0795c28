// The browser client of pushgate: one file, no build. It makes one global:
//
//   const connection = pushgate.connect({token, transport: 'ws'});
//   connection.onmessage = ({id, type, data}) => …;
//
// Options
//   token      a JWT, or a function (async too) that returns one and is called for each attempt.
//              Without it the cookie `pushgate_token` has to do.
//   transport  'ws' (default), 'sse' or 'poll'.
//   url        the gateway's address; the folder that this script came from by default.
//
// The connection
//   onmessage({id, type, data})  A message. `data` is the payload as it was published: a string, or
//                                a Uint8Array where it is not UTF-8. `type` is null for none.
//   onopen()                     Connected; again after each reconnect.
//   ongap()                      Messages may have been missed: fetch afresh what they told of.
//   onerror({status, reason, retryIn})
//                                Lost or refused; it tries again in `retryIn` ms. Where that is
//                                null it gives up: the token or the origin is not accepted.
//                                `status` is HTTP's, null where there was none.
//   onclose()                    Over, by close() or because it gave up. Nothing is called after.
//   state                        'connecting', 'open', 'waiting' (to try again) or 'closed'.
//   close()                      Ends it for good; harmless when repeated.
(() => {
  'use strict';

  const FIRST_RETRY_MS = 5000; // the bound of the first delay; it doubles with each failure
  const MAX_RETRY_MS = 60000;
  const STABLE_MS = 10000; // a connection that lived as long clears the failures before it
  const POLL_SECONDS = 25;
  const POLL_PAUSE_MS = 1000; // between answers that are empty before their time
  // 401 and 403 refuse this token or this page; 204 is how /sse says "never come back". Every close
  // in gateway/closes.py says "reconnect later", so WebSocket codes make no difference yet.
  const FINAL = new Set([204, 401, 403]);

  const script = globalThis.document && document.currentScript; // null in a module
  const home = new URL('.', script ? script.src : globalThis.location.href);

  class Ended extends Error {
    constructor(reason, {status = null, notBefore = 0} = {}) {
      super(reason);
      this.status = status;
      this.notBefore = notBefore; // ms that the gateway asks to stay away for
    }
  }

  function connect({token, transport = 'ws', url = home} = {}) {
    if (!Object.hasOwnProperty.call(TRANSPORTS, transport)) {
      throw new TypeError(`transport is ws, sse or poll, not ${transport}`);
    }
    const over = new AbortController();
    const connection = {
      state: 'connecting',
      onopen: null, onmessage: null, ongap: null, onerror: null, onclose: null,
      close() {
        if (connection.state === 'closed') return;
        connection.state = 'closed';
        over.abort();
        call('onclose');
      },
    };
    const base = new URL(url, globalThis.location.href);
    if (!base.pathname.endsWith('/')) base.pathname += '/';
    let openedAt = null; // when this attempt was; null until it is
    let everOpen = false;

    // What a transport sees of the connection. `cursor` is poll's place, kept over reconnects.
    const link = {
      signal: over.signal, token: null, cursor: null, address, request, opened, received, gap,
    };
    keepConnected();
    return connection;

    async function keepConnected() {
      for (let failures = 0; !over.signal.aborted;) {
        const ended = await attempt();
        if (over.signal.aborted) return;
        failures = openedAt !== null && Date.now() - openedAt >= STABLE_MS ? 1 : failures + 1;
        const final = FINAL.has(ended.status);
        const retryIn = final ? null : Math.max(ended.notBefore || 0, backoff(failures));
        connection.state = 'waiting';
        tell('onerror', {status: ended.status || null, reason: ended.message, retryIn});
        if (final) connection.close();
        else await sleep(retryIn, over.signal);
      }
    }

    async function attempt() {
      connection.state = 'connecting';
      openedAt = null;
      try {
        // Awaited even when it is at hand: the caller sets its handlers first.
        link.token = await (typeof token === 'function' ? token() : token);
        if (!over.signal.aborted) await TRANSPORTS[transport](link);
        return new Ended('the connection ended');
      } catch (error) {
        return error instanceof Error ? error : new Error(String(error));
      }
    }

    function address(path) {
      return new URL(path, base);
    }

    async function request(path) {
      const headers = link.token ? {authorization: `Bearer ${link.token}`} : {};
      const options = {headers, signal: over.signal, cache: 'no-store', credentials: 'include'};
      const response = await fetch(address(path), options);
      if (response.status === 200) return response;
      const detail = (await response.text()).trim().slice(0, 200);
      const seconds = Number(response.headers.get('retry-after')) || 0;
      const reason = `the gateway answered ${response.status} ${detail}`.trim();
      throw new Ended(reason, {status: response.status, notBefore: seconds * 1000});
    }

    function opened() {
      if (openedAt !== null || over.signal.aborted) return;
      openedAt = Date.now();
      connection.state = 'open';
      tell('onopen');
      // Nothing is kept for who is away but in a poll's session, which tells of its gaps itself.
      if (everOpen && transport !== 'poll') gap();
      everOpen = true;
    }

    function received(form) {
      const data = form.encoding === 'base64' ? fromBase64(form.data) : form.data;
      tell('onmessage', {id: form.id, type: form.type, data});
    }

    function gap() {
      tell('ongap');
    }

    function tell(handler, value) {
      if (connection.state !== 'closed') call(handler, value);
    }

    function call(handler, value) {
      try {
        if (connection[handler]) connection[handler](value);
      } catch (error) {
        queueMicrotask(() => { throw error; }); // the page's own, and no reason to disconnect
      }
    }
  }

  function webSocket(link) {
    return new Promise((resolve, reject) => {
      const url = link.address('ws');
      url.protocol = url.protocol.replace('http', 'ws');
      const bearer = link.token ? [`bearer.${link.token}`] : [];
      const socket = new WebSocket(url, ['pushgate.v1', ...bearer]);
      let open = false;
      socket.onopen = () => { open = true; link.opened(); };
      socket.onmessage = ({data}) => {
        const form = JSON.parse(data);
        if ('data' in form) link.received(form); // the others are control frames
      };
      socket.onclose = ({code, reason}) => {
        if (open || link.signal.aborted) reject(new Ended(reason || `closed with code ${code}`));
        // A page is not told how its handshake was refused. The same address answers a request
        // without an Upgrade alike: 401, 403 or 503, and 426 to whoever would be let in.
        else link.request('ws').then(resolve, reject);
      };
      link.signal.onabort = () => socket.close();
    });
  }

  // By fetch and not EventSource, which hands over no type that it was not told to expect, never
  // retries after a 503, and says nothing of why it was refused.
  async function eventStream(link) {
    const response = await link.request('sse');
    link.opened();
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let notBefore = 0;
    const parse = eventParser(dispatch, (ms) => { notBefore = ms; });
    for (;;) {
      const {done, value} = await reader.read();
      if (done) throw new Ended('the stream ended', {notBefore});
      parse(decoder.decode(value, {stream: true}));
    }

    function dispatch({id, event, data}) {
      if (id === undefined) return; // a control event
      if (event === 'pushgate.binary') link.received(JSON.parse(data));
      else link.received({id: id.slice(id.lastIndexOf(' ') + 1), type: event || null, data});
    }
  }

  // The event stream format (HTML standard §9.2.6): lines end with LF, CR or CRLF, nothing else.
  function eventParser(dispatch, retry) {
    let rest = '';
    let fields = {};
    return (text) => {
      const lines = (rest + text).split(/\r\n|\n|\r(?!$)/); // a last CR may be half of a CRLF
      rest = lines.pop();
      for (const line of lines) {
        const [, name, value] = /^([^:]*)(?:: ?([^]*))?$/.exec(line);
        if (line === '') {
          if (fields.data !== undefined) dispatch(fields);
          fields = {};
        } else if (name === 'data' && fields.data !== undefined) {
          fields.data += `\n${value || ''}`;
        } else if (name === 'retry') {
          if (/^[0-9]+$/.test(value)) retry(Number(value));
        } else {
          fields[name] = value || '';
        }
      }
    };
  }

  async function longPoll(link) {
    // The first is a short poll: it opens the session, or finds the old one, and says so at once.
    for (let wait = 0; ; wait = POLL_SECONDS) {
      const asked = Date.now();
      const place = link.cursor === null ? '' : `&cursor=${encodeURIComponent(link.cursor)}`;
      const answer = await (await link.request(`poll?wait=${wait}${place}`)).json();
      link.cursor = answer.cursor;
      link.opened();
      if (answer.gap) link.gap();
      answer.messages.forEach(link.received);
      const early = asked + POLL_PAUSE_MS - Date.now();
      if (wait && !answer.messages.length && early > 0) await sleep(early, link.signal);
    }
  }

  const TRANSPORTS = {ws: webSocket, sse: eventStream, poll: longPoll};

  // With jitter over nearly all of it: the clients of a node that ends must not return as one.
  function backoff(failures) {
    const bound = Math.min(MAX_RETRY_MS, FIRST_RETRY_MS * 2 ** (failures - 1));
    return Math.round(bound * (0.1 + 0.9 * Math.random()));
  }

  function sleep(ms, signal) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      signal.onabort = () => { clearTimeout(timer); resolve(); };
    });
  }

  function fromBase64(text) {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  }

  globalThis.pushgate = Object.freeze({connect});
})();
