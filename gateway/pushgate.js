// The browser client of pushgate: one file, no build. It makes one global:
//
//   const connection = pushgate.connect({token, transport: 'ws'});
//   connection.onmessage = ({id, type, data}) => …;
//
// Options
//   token      a JWT, or a function (async too) that returns one. It is called for each attempt,
//              and again when the token runs out or is refused: then another one is needed.
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
//                                null it gives up: the token or the origin is not accepted, or the
//                                gateway says to stay away. `status` is HTTP's, null for none.
//   onclose()                    Over, by close() or because it gave up. Nothing is called after.
//   state                        'connecting', 'open', 'waiting' (to try again) or 'closed'.
//   close()                      Ends it for good; harmless when repeated.
//
// When the gateway asks it to reconnect, it opens a second connection before it closes the first:
// no message is missed or comes twice, and no handler is called. A token that is about to run out
// is replaced while a WebSocket stays; on the others the next attempt has a new one.
(() => {
  'use strict';

  const FIRST_RETRY_MS = 5000; // the bound of the first delay; it doubles with each failure
  const QUICK_RETRY_MS = 1000; // the same where the gateway says "now" or "with a new token"
  const MAX_RETRY_MS = 60000;
  const STABLE_MS = 10000; // a connection that lived as long clears the failures before it
  const OVERLAP_MS = 1000; // how long the first connection stays when the second is open
  const MAX_OVERLAP = 256; // messages that are remembered, and that wait, meanwhile
  const POLL_SECONDS = 25;
  const POLL_PAUSE_MS = 1000; // between answers that are empty before their time

  // What to do next, by close code. The same as gateway/closes.py: a test compares them.
  const AFTER_CLOSE = {
    "1001": "LATER",
    "1002": "LATER",
    "1007": "LATER",
    "1008": "LATER",
    "1009": "LATER",
    "4000": "NOW",
    "4001": "NOW",
    "4002": "NEW_TOKEN",
    "4003": "NEVER"
  };
  // 403 refuses this page; 204 is how /sse says "never come back".
  const AFTER_STATUS = {204: 'NEVER', 401: 'NEW_TOKEN', 403: 'NEVER'};

  const script = globalThis.document && document.currentScript; // null in a module
  const home = new URL('.', script ? script.src : globalThis.location.href);

  // How a connection ended: with a close code, an HTTP status, or neither.
  class Ended extends Error {
    constructor(reason, {code = null, status = null, notBefore = 0} = {}) {
      super(reason);
      this.code = code;
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
    const tokens = tokensFrom(token);
    const place = {cursor: null}; // poll's, kept over reconnects
    let spent = null; // the token of the link that ended last
    let openedAt = null; // when this attempt was; null until it is
    let everOpen = false;
    keepConnected();
    return connection;

    async function keepConnected() {
      for (let failures = 0; !over.signal.aborted;) {
        const ended = await attempt();
        if (over.signal.aborted) return;
        connection.state = 'waiting';
        failures = openedAt !== null && Date.now() - openedAt >= STABLE_MS ? 1 : failures + 1;
        const retryIn = await delayAfter(ended, failures);
        tell('onerror', {status: ended.status || null, reason: ended.message, retryIn});
        if (retryIn === null) connection.close();
        else await sleep(retryIn, over.signal);
      }
    }

    async function attempt() {
      connection.state = 'connecting';
      openedAt = null;
      try {
        // Awaited even when it is at hand: the caller sets its handlers first.
        const credential = await tokens.next();
        return over.signal.aborted ? null : await endOf(start(credential));
      } catch (error) {
        return asError(error);
      }
    }

    // How `link` ends, or the last of those that have taken over from it.
    async function endOf(link) {
      for (;;) {
        const ended = await link.ended;
        spent = link.token;
        if (over.signal.aborted || !link.successor || nextAfter(ended) === 'NEVER') return ended;
        link.overlap.settle();
        link = link.successor;
        if (!link.open) connection.state = 'connecting';
      }
    }

    // In how many ms to try again; null for never.
    async function delayAfter(ended, failures) {
      const next = nextAfter(ended);
      if (next === 'NEVER') return null;
      if (next === 'NEW_TOKEN' && !await tokens.another(spent)) return null;
      const bound = next === 'LATER' ? FIRST_RETRY_MS : QUICK_RETRY_MS;
      return delay(ended, bound, failures);
    }

    // One held connection, or the polls of one attempt: the connection as a transport sees it.
    function start(credential) {
      const stop = new AbortController();
      const link = {
        token: credential, tokens, place, address,
        signal: stop.signal, // aborted once it has ended, too
        stop: () => stop.abort(),
        open: false,
        leaving: false, // a successor is planned, or on its way
        successor: null,
        overlap: null, // with its successor, or with the link that it succeeds
        request: (path) => request(path, link),
        received: (form) => received(link, form),
        gap,
        controls: new Map([
          ['gap', gap],
          ['reconnect', ({after_ms: afterMs}) => handOver(link, afterMs)],
        ]),
      };
      const firstOpened = new Promise((resolve) => {
        link.opened = () => { opened(link); resolve(); };
      });
      over.signal.addEventListener('abort', link.stop, {signal: stop.signal});
      link.ended = TRANSPORTS[transport](link)
        .then(() => new Ended('the connection ended'), asError)
        .finally(link.stop);
      link.openOrEnded = Promise.race([firstOpened, link.ended]);
      return link;
    }

    function opened(link) {
      if (link.open || link.signal.aborted) return;
      link.open = true;
      tokens.accepted();
      if (link.overlap && !link.overlap.over) return; // nothing has changed for the page
      if (openedAt === null) openedAt = Date.now();
      connection.state = 'open';
      tell('onopen');
      // Nothing is kept for who is away but in a poll's session, which tells of its gaps itself.
      if (everOpen && transport !== 'poll') gap();
      everOpen = true;
    }

    function received(link, form) {
      if (link.signal.aborted) return;
      if (!link.overlap) give(form);
      else if (link.successor) link.overlap.older(form);
      else link.overlap.newer(form);
    }

    async function handOver(link, afterMs) {
      if (link.leaving) return;
      link.leaving = true;
      const isNew = link.overlap && !link.overlap.over; // its own predecessor has to end first
      let wait = isNew ? Math.max(afterMs, OVERLAP_MS) : afterMs;
      for (let failures = 1; wait !== null; failures += 1) {
        await sleep(wait, link.signal);
        if (link.signal.aborted) return;
        const refused = await tokens.next().then((fresh) => replace(link, fresh), asError);
        const again = refused && nextAfter(refused) === 'LATER';
        wait = again ? delay(refused, QUICK_RETRY_MS, failures) : null;
      }
      link.leaving = false;
    }

    // Hand `older` over to a new link. Where that can't be had, `older` goes on as before: how the
    // new one has ended is returned.
    async function replace(older, credential) {
      if (older.signal.aborted) return null;
      const newer = start(credential);
      older.successor = newer;
      older.overlap = newer.overlap = new Overlap(give, older.stop);
      await newer.openOrEnded;
      await sleep(OVERLAP_MS, newer.signal);
      if (!newer.signal.aborted) older.stop();
      if (older.signal.aborted) return null;
      older.successor = older.overlap = null;
      return newer.ended;
    }

    function gap() {
      tell('ongap');
    }

    function give(form) {
      const data = form.encoding === 'base64' ? fromBase64(form.data) : form.data;
      tell('onmessage', {id: form.id, type: form.type, data});
    }

    function address(path) {
      return new URL(path, base);
    }

    async function request(path, {token: credential, signal}) {
      const headers = credential ? {authorization: `Bearer ${credential}`} : {};
      const options = {headers, signal, cache: 'no-store', credentials: 'include'};
      const response = await fetch(address(path), options);
      if (response.status === 200) return response;
      const detail = (await response.text()).trim().slice(0, 200);
      const seconds = Number(response.headers.get('retry-after')) || 0;
      const reason = `the gateway answered ${response.status} ${detail}`.trim();
      throw new Ended(reason, {status: response.status, notBefore: seconds * 1000});
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

  // The tokens of one connection: `source` is one, or a function that returns one.
  function tokensFrom(source) {
    const renewable = typeof source === 'function';
    let atHand = null; // the next one, where it has been asked for already
    let asked = false; // for another, since the last that was accepted
    return {
      accepted() { asked = false; },
      async next() {
        const token = atHand || await (renewable ? source() : source);
        atHand = null;
        return token;
      },
      // Whether there may be another than `spent`. When the next one is refused too, there is none.
      async another(spent) {
        if (!renewable || asked) return false;
        asked = true;
        try {
          atHand = await source();
        } catch (_) {
          return true; // the page's backend is away: the next attempt asks it again
        }
        return atHand !== spent;
      },
    };
  }

  // The time in which two links bring the same messages. What was under way to the older one when
  // the newer one opened comes on the older one alone. So that one goes on, and what the newer one
  // brings waits for its end: no message is missed or comes twice, and none overtakes another.
  class Overlap {
    constructor(give, stopOlder) {
      this.give = give;
      this.stopOlder = stopOlder;
      this.given = new Set(); // ids that came on the older link and not yet on the newer one
      this.waiting = [];
      this.over = false;
    }

    older(form) {
      this.give(form);
      this.given.add(form.id);
      if (this.given.size > MAX_OVERLAP) this.given.delete(this.given.values().next().value);
    }

    newer(form) {
      if (this.over) this.giveOnce(form);
      else if (this.waiting.push(form) === MAX_OVERLAP) this.stopOlder();
    }

    // The older link has ended.
    settle() {
      this.over = true;
      this.waiting.splice(0).forEach(this.giveOnce, this);
    }

    giveOnce(form) {
      if (!this.given.delete(form.id)) this.give(form);
    }
  }

  function webSocket(link) {
    return new Promise((resolve, reject) => {
      const url = link.address('ws');
      url.protocol = url.protocol.replace('http', 'ws');
      const bearer = link.token ? [`bearer.${link.token}`] : [];
      const socket = new WebSocket(url, ['pushgate.v1', ...bearer]);
      let open = false;
      refreshInBand(link, (form) => socket.send(JSON.stringify(form)));
      socket.onopen = () => { open = true; link.opened(); };
      socket.onmessage = ({data}) => {
        const form = JSON.parse(data);
        if ('data' in form) link.received(form);
        else link.controls.get(form.control)?.(form);
      };
      socket.onclose = ({code, reason}) => {
        if (open) reject(new Ended(reason || `closed with code ${code}`, {code}));
        // A page is not told how its handshake was refused. The same address answers a request
        // without an Upgrade alike: 401, 403 or 503, and 426 to whoever would be let in.
        else if (!link.signal.aborted) link.request('ws').then(resolve, reject);
      };
      link.signal.addEventListener('abort', () => {
        socket.close(1000);
        reject(new Ended('closed here')); // without waiting for the gateway's answer
      });
    });
  }

  // Replace the token of a WebSocket that stays, when the gateway says that it runs out.
  function refreshInBand(link, send) {
    let answer = null;
    link.controls.set('refreshed', () => answer?.(true));
    link.controls.set('refused', () => answer?.(false));
    link.controls.set('expiring', async ({in_ms: inMs}) => {
      // Where the second try fails too, the gateway closes with 4002 in the end.
      if (await refresh()) return;
      await sleep(inMs / 2, link.signal);
      if (!link.signal.aborted) refresh();
    });

    async function refresh() {
      const token = await link.tokens.next().catch(() => link.token);
      if (token === link.token || link.signal.aborted) return false; // so is a fixed one
      const answered = new Promise((resolve) => { answer = resolve; });
      send({control: 'refresh', token});
      const taken = await answered;
      if (taken) link.token = token;
      return taken;
    }
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
    link.controls.set('close', ({code, reason}) => { throw new Ended(reason, {code}); });
    for (;;) {
      const {done, value} = await reader.read();
      if (done) throw new Ended('the stream ended', {notBefore});
      parse(decoder.decode(value, {stream: true}));
    }

    function dispatch({id, event = '', data}) {
      if (id === undefined) link.controls.get(event.replace('pushgate.', ''))?.(JSON.parse(data));
      else if (event === 'pushgate.binary') link.received(JSON.parse(data));
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
      const {cursor} = link.place;
      const after = cursor === null ? '' : `&cursor=${encodeURIComponent(cursor)}`;
      const answer = await (await link.request(`poll?wait=${wait}${after}`)).json();
      link.place.cursor = answer.cursor;
      link.opened();
      if (answer.gap) link.gap();
      answer.messages.forEach(link.received);
      const early = asked + POLL_PAUSE_MS - Date.now();
      if (wait && !answer.messages.length && early > 0) await sleep(early, link.signal);
    }
  }

  const TRANSPORTS = {ws: webSocket, sse: eventStream, poll: longPoll};

  function nextAfter({code, status}) {
    return AFTER_CLOSE[code] || AFTER_STATUS[status] || 'LATER';
  }

  function asError(thrown) {
    return thrown instanceof Error ? thrown : new Error(String(thrown));
  }

  // With jitter over nearly all of it: the clients of a node that ends must not return as one.
  function delay(ended, first, failures) {
    const bound = Math.min(MAX_RETRY_MS, first * 2 ** (failures - 1));
    return Math.max(ended.notBefore || 0, Math.round(bound * (0.1 + 0.9 * Math.random())));
  }

  // Until `ms` have passed or `signal` is aborted.
  function sleep(ms, signal) {
    return new Promise((resolve) => {
      const timer = setTimeout(end, signal.aborted ? 0 : ms);
      signal.addEventListener('abort', end);
      function end() {
        clearTimeout(timer);
        signal.removeEventListener('abort', end);
        resolve();
      }
    });
  }

  function fromBase64(text) {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  }

  globalThis.pushgate = Object.freeze({connect});
})();
