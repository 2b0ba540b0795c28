// The browser client of pushgate: one file, no build. It makes one global:
//
//   const connection = pushgate.connect({token, transport: 'ws'});
//   connection.onmessage = ({id, type, data}) => …;
//
// Options
//   token      a JWT, or a function (async too) that returns a JWT. The function is called for
//              every attempt to connect, and again when the token runs out or is refused: then the
//              function must return another token. Without this option the cookie `pushgate_token`
//              has to do.
//   transport  'ws' (default), 'sse' or 'poll'.
//   url        the gateway's address; by default the folder that this script came from.
//
// The connection
//   onmessage({id, type, data})  A message. `data` is the payload as published: a string, or a
//                                Uint8Array where the payload is not UTF-8. `type` is null for a
//                                message without a type.
//   onopen()                     The connection is open; called again after every reconnect.
//   ongap()                      Messages were missed, or may have been: fetch the page's data
//                                afresh. After a gap a message may come that came before.
//   onerror({status, reason, retryIn})
//                                The connection was lost or refused. The client tries again in
//                                `retryIn` ms. Where `retryIn` is null the client gives up: the
//                                token or the origin is not accepted, or the gateway says to stay
//                                away. `status` is the HTTP status, null without an HTTP answer.
//   onclose()                    The connection is over: close() was called, or the client gave up.
//                                No handler is called afterwards.
//   state                        'connecting', 'open', 'waiting' (to try again) or 'closed'.
//   close()                      Ends the connection for good; harmless when repeated.
//
// Between two connections nothing is missed, and nothing comes twice: the client tells the next
// gateway how far the page has come, and gets first what came meanwhile. There is a gap where the
// client was away for longer than the gateways look back (PUSHGATE_RESUME_SECONDS, two minutes),
// and where they don't resume at all.
//
// When the gateway asks the client to reconnect, the client opens a second connection before it
// closes the first, and no handler is called for the change. A token that is about to run out is
// replaced while a WebSocket stays open. With SSE and long-poll the next attempt to connect takes a
// new token. Where nothing comes any more, not even the gateway's heartbeat, the client connects
// again ten seconds after the heartbeat was due. An attempt to connect that nothing answers is given
// up after ten seconds, too.
(() => {
  'use strict';

  const FIRST_RETRY_MS = 5000; // upper bound of the first delay; the bound doubles at each failure
  const QUICK_RETRY_MS = 1000; // the same, where the gateway says "now" or "with a new token"
  const MAX_RETRY_MS = 60000;
  const STABLE_MS = 10000; // a connection that lived this long clears earlier failures
  const OVERLAP_MS = 1000; // how long the first connection stays after the second has opened
  const MAX_OVERLAP = 256; // ids to remember, and messages that may wait, during an overlap
  const MAX_POSITIONS = 64; // as many as a gateway takes in one cursor
  const POSITION_MS = 120000; // a position is dropped so long after its message, see Place
  const SILENCE_MS = 10000; // how long after an answer or a heartbeat is due a network is silent
  const THAW_MS = 2000; // how long a page that was frozen has to take what came meanwhile
  const POLL_SECONDS = 25;
  const POLL_PAUSE_MS = 1000; // least time between polls that are answered empty before their time

  // The client's next action, by close code. A copy of the table in gateway/connections/closes.py:
  // a test compares the two.
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
  // 403 refuses this page; 204 tells the client of an event stream not to reconnect (HTML standard
  // §9.2).
  const AFTER_STATUS = {204: 'NEVER', 401: 'NEW_TOKEN', 403: 'NEVER'};

  const CURSOR = /^[0-9a-z]+(?:,[\w.-]+-\d+-\d+)*$/;

  const script = globalThis.document && document.currentScript; // null in a module
  const home = new URL('.', script ? script.src : globalThis.location.href);

  // How a connection ended: with a close code, an HTTP status, or neither.
  class Ended extends Error {
    constructor(reason, {code = null, status = null, notBefore = 0} = {}) {
      super(reason);
      this.code = code;
      this.status = status;
      this.notBefore = notBefore; // the gateway asks to stay away for so many ms
    }
  }

  function connect({token, transport = 'ws', url = home} = {}) {
    if (!Object.hasOwnProperty.call(TRANSPORTS, transport)) {
      throw new TypeError(`transport is ws, sse or poll, not ${transport}`);
    }
    const closed = new AbortController(); // aborted by close()
    const connection = {
      state: 'connecting',
      onopen: null, onmessage: null, ongap: null, onerror: null, onclose: null,
      close() {
        if (connection.state === 'closed') return;
        connection.state = 'closed';
        closed.abort();
        call('onclose');
      },
    };
    const base = new URL(url, globalThis.location.href);
    if (!base.pathname.endsWith('/')) base.pathname += '/';
    const tokens = tokensFrom(token);
    const place = new Place(); // kept over reconnects
    let spentToken = null; // the token of the link that ended last
    let openedAt = null; // when this attempt opened, by Date.now(); null before it has opened
    let everOpen = false;
    keepConnected();
    return connection;

    async function keepConnected() {
      for (let failures = 0; !closed.signal.aborted;) {
        const ended = await attempt();
        if (closed.signal.aborted) return;
        connection.state = 'waiting';
        failures = openedAt !== null && Date.now() - openedAt >= STABLE_MS ? 1 : failures + 1;
        const retryIn = await delayAfter(ended, failures);
        tell('onerror', {status: ended.status || null, reason: ended.message, retryIn});
        if (retryIn === null) connection.close();
        else await sleep(retryIn, closed.signal);
      }
    }

    async function attempt() {
      connection.state = 'connecting';
      openedAt = null;
      try {
        // Awaited even when the token is at hand: the caller must be able to set handlers first.
        const credential = await tokens.next();
        return closed.signal.aborted ? null : await endOf(start(credential));
      } catch (error) {
        return asError(error);
      }
    }

    // Wait until `link` ends, or the last of the links that took over from `link`; return how.
    async function endOf(link) {
      for (;;) {
        const ended = await link.ended;
        spentToken = link.token;
        if (closed.signal.aborted || !link.successor || nextAfter(ended) === 'NEVER') return ended;
        link.overlap.settle();
        link = link.successor;
        if (!link.open) connection.state = 'connecting';
      }
    }

    // Return in how many ms to try again after `failures` failures in a row; null for never.
    async function delayAfter(ended, failures) {
      const next = nextAfter(ended);
      if (next === 'NEVER') return null;
      if (next === 'NEW_TOKEN' && !await tokens.another(spentToken)) return null;
      const bound = next === 'LATER' ? FIRST_RETRY_MS : QUICK_RETRY_MS;
      return delay(ended, bound, failures);
    }

    // Start a link and return it. A link is the connection as a transport sees it: a WebSocket, an
    // event stream, or the polls of one attempt.
    function start(credential) {
      const stop = new AbortController();
      const link = {
        token: credential, tokens, place, address,
        cursor: place.cursor, // from where the link resumes; empty where it does not
        signal: stop.signal, // aborted by `stop`, and once the link has ended by itself
        stop: () => stop.abort(),
        open: false,
        covered: false, // the predecessor was still there when the link opened
        leaving: false, // a successor is planned, or on its way
        successor: null, // the link that is taking over from this link
        overlap: null, // the Overlap with the successor, or with the predecessor
        silence: new Silence(),
        request: (path) => request(path, link),
        received: (form) => received(link, form),
        beat: (form) => beat(link, form),
        gap,
        controls: new Map([
          ['gap', gap],
          ['reconnect', (form) => { received(link, form); handOver(link, form.after_ms); }],
        ]),
      };
      const firstOpened = new Promise((resolve) => {
        link.opened = () => { opened(link); resolve(); };
      });
      closed.signal.addEventListener('abort', link.stop, {signal: stop.signal});
      link.ended = Promise.race([TRANSPORTS[transport](link), link.silence.noticed(link.signal)])
        .then(() => new Ended('the connection ended'), asError)
        .finally(link.stop);
      link.openOrEnded = Promise.race([firstOpened, link.ended]);
      return link;
    }

    function opened(link) {
      if (link.open || link.signal.aborted) return;
      link.open = true;
      tokens.accepted();
      link.covered = Boolean(link.overlap && !link.overlap.over);
      if (link.covered) return; // for the page the connection stayed open
      if (openedAt === null) openedAt = Date.now();
      connection.state = 'open';
      tell('onopen');
      // Without a cursor nobody knows what the page lacks. A poll's answer says whether there is a
      // gap.
      if (everOpen && transport !== 'poll' && !link.cursor) gap();
      everOpen = true;
    }

    // A hello or a heartbeat. If it has no cursor, the gateway does not resume: it has ignored the
    // cursor with which the link came, and can't tell of the gap.
    function beat(link, {cursor = null}) {
      received(link, {cursor});
      if (cursor !== null || !link.cursor) return;
      link.cursor = '';
      if (!link.covered) gap();
    }

    // Take a message, or a control for its cursor.
    function received(link, form) {
      if (link.signal.aborted) return;
      if (!link.overlap) give(form);
      else if (link.successor) link.overlap.older(form);
      else link.overlap.newer(form);
    }

    async function handOver(link, afterMs) {
      if (link.leaving) return;
      link.leaving = true;
      const isNew = link.overlap && !link.overlap.over; // the link's predecessor must end first
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

    // Hand `older` over to a new link, and return null. If the new link can't be opened, `older`
    // goes on as before, and the error with which the new link ended is returned.
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
      // A topic that was made anew is a gap too, and its offsets have begun again: by the old
      // positions all its messages would be repeats.
      place.positions.clear();
      tell('ongap');
    }

    // Move on by what a form's cursor says, and give a message to the page, unless it is a repeat.
    function give(form, isRepeat = false) {
      const isNew = place.move(form);
      if (!isNew || isRepeat || form.data === undefined) return;
      const data = form.encoding === 'base64' ? fromBase64(form.data) : form.data;
      tell('onmessage', {id: form.id, type: form.type, data});
    }

    function address(path) {
      return new URL(path, base);
    }

    async function request(path, {token: credential, signal, silence}) {
      const headers = credential ? {authorization: `Bearer ${credential}`} : {};
      const options = {headers, signal, cache: 'no-store', credentials: 'include'};
      const response = await fetch(address(path), options);
      silence.heard();
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
        queueMicrotask(() => { throw error; }); // the page's error is no reason to disconnect
      }
    }
  }

  // How far a page has come, for the next gateway. In a cursor,
  // `<as-of>[,<topic>-<partition>-<offset>…]`, as-of is a time: the page has everything that had its
  // outcome before. Of a partition with a position, an offset in Kafka, the page has everything up to
  // the position.
  class Place {
    constructor() {
      this.session = null; // the cursor of a poll session
      this.forget();
    }

    // Be without a cursor again.
    forget() {
      this.asOf = null;
      this.positions = new Map(); // by partition, of the last message: {offset, at}; newest last
    }

    // What a link resumes from; empty before a gateway has sent a cursor.
    get cursor() {
      if (this.asOf === null) return '';
      const positions = Array.from(this.positions, ([name, {offset}]) => `${name}-${offset}`);
      return [this.asOf, ...positions].join(',');
    }

    // Move on by the cursor of a message or a control; null is the cursor of a gateway that has
    // none. Returns whether the form is new to the page, as all are but repeated messages.
    move({cursor, data}) {
      if (cursor === null) this.forget();
      if (typeof cursor !== 'string' || !CURSOR.test(cursor)) return true;
      const [asOf, ...positions] = cursor.split(',');
      if (asOf !== this.asOf) this.moveTime(asOf);
      // The last position is the message's own. A control repeats positions of earlier messages.
      return data === undefined || !positions.length || this.moveOn(positions.pop());
    }

    // The last as-of counts, not the greatest: a link that resumes has the as-of with which it came,
    // until all that was missed has come.
    moveTime(asOf) {
      this.asOf = asOf;
      // Only now, since positions are covered by an as-of that has moved on after them: not while
      // the page is away, nor before it has what it missed.
      const oldest = Date.now() - POSITION_MS;
      for (const [partition, {at}] of this.positions) {
        if (at < oldest) this.positions.delete(partition);
      }
    }

    // Returns false where the page has come to the position before.
    moveOn(position) {
      const [, partition, digits] = /^(.*)-(\d+)$/.exec(position);
      const offset = Number(digits);
      const last = this.positions.get(partition);
      if (last && offset <= last.offset) return false;
      this.positions.delete(partition); // set anew, it stands last
      this.positions.set(partition, {offset, at: Date.now()});
      if (this.positions.size > MAX_POSITIONS) {
        this.positions.delete(this.positions.keys().next().value);
      }
      return true;
    }
  }

  // Notices that nothing comes, or nothing any more: where a network drops all packets, a gateway is
  // frozen, or a frozen page's connection has gone meanwhile, neither a WebSocket nor a fetch ends
  // by itself for minutes.
  class Silence {
    // `everyMs` is the longest time between two signs of life, `dueAt` is when the next sign is
    // overdue, by performance.now(). The gateway's first sign of life is due at once.
    constructor() {
      this.expect(0);
    }

    // From now on a sign of life comes every `ms`.
    expect(ms) {
      this.everyMs = ms;
      this.heard();
    }

    heard() {
      this.dueAt = performance.now() + this.everyMs + SILENCE_MS;
    }

    // Rejects when a sign of life is overdue, or `signal` is aborted; never resolves.
    async noticed(signal) {
      for (;;) {
        const {dueAt} = this;
        await sleep(dueAt - performance.now(), signal);
        if (signal.aborted) throw new Ended('closed here');
        if (this.dueAt > dueAt) continue;
        if (performance.now() - dueAt < THAW_MS) throw new Ended('nothing came for too long');
        this.dueAt = performance.now() + THAW_MS; // the timer was late: the page was frozen
      }
    }
  }

  // The tokens of one connection: `source` is a token, or a function that returns a token.
  function tokensFrom(source) {
    const renewable = typeof source === 'function';
    let atHand = null; // the next token, if the page was asked for a token already
    let asked = false; // the page was asked for another token since a token was last accepted
    return {
      accepted() { asked = false; },
      async next() {
        const token = atHand || await (renewable ? source() : source);
        atHand = null;
        return token;
      },
      // Whether there may be a token other than `spentToken`. Asked only once after an accepted
      // token: when the next token is refused too, the client gives up.
      async another(spentToken) {
        if (!renewable || asked) return false;
        asked = true;
        try {
          atHand = await source();
        } catch (_) {
          return true; // the page's backend is away: the next attempt asks the page again
        }
        return atHand !== spentToken;
      },
    };
  }

  // The time in which two links get the same messages. A message that was under way to the older
  // link when the newer link opened comes on the older link alone, unless the newer link resumes;
  // and what is in no log, as what is pushed into a gateway, is never brought again. So the older
  // link goes on giving messages to the page, and messages of the newer link wait for the older
  // link's end: no message is missed or comes twice, and messages stay in order. Repeats are known
  // by id here, and by position in Place.
  class Overlap {
    constructor(give, stopOlder) {
      this.give = give;
      this.stopOlder = stopOlder;
      this.ids = new Set(); // of messages that came on the older link, and not yet on the newer
      this.waiting = []; // messages of the newer link
      this.over = false;
    }

    older(form) {
      this.give(form);
      if (form.data === undefined) return;
      this.ids.add(form.id);
      if (this.ids.size > MAX_OVERLAP) this.ids.delete(this.ids.values().next().value);
    }

    newer(form) {
      if (this.over) this.giveOnce(form);
      else if (this.waiting.push(form) === MAX_OVERLAP) this.stopOlder();
    }

    // The older link has ended: give the waiting messages, without repeats.
    settle() {
      this.over = true;
      this.waiting.splice(0).forEach(this.giveOnce, this);
    }

    giveOnce(form) {
      this.give(form, this.ids.delete(form.id));
    }
  }

  function webSocket(link) {
    return new Promise((resolve, reject) => {
      const url = link.address('ws');
      url.protocol = url.protocol.replace('http', 'ws');
      // A page can set no other field of the handshake; and browsers take no comma there.
      const cursor = link.cursor ? [`cursor.${link.cursor.replace(/,/g, '~')}`] : [];
      const bearer = link.token ? [`bearer.${link.token}`] : [];
      const socket = new WebSocket(url, ['pushgate.v1', ...cursor, ...bearer]);
      let open = false;
      link.controls.set('heartbeat', link.beat);
      link.controls.set('hello', (form) => {
        link.silence.expect(form.heartbeat_ms);
        link.beat(form);
      });
      refreshInBand(link, (form) => socket.send(JSON.stringify(form)));
      socket.onopen = () => { open = true; link.silence.heard(); link.opened(); };
      socket.onmessage = ({data}) => {
        if (link.signal.aborted) return; // the successor brings it, or is told of the gap
        link.silence.heard();
        const form = JSON.parse(data);
        if ('data' in form) link.received(form);
        else link.controls.get(form.control)?.(form);
      };
      socket.onclose = ({code, reason}) => {
        link.silence.heard();
        if (open) reject(new Ended(reason || `closed with code ${code}`, {code}));
        // Browsers don't tell a page why a WebSocket handshake was refused. So the client sends a
        // request without an Upgrade to the same address, and the gateway gives the same answer:
        // 401, 403 or 503, or 426 to a client that it would admit.
        else if (!link.signal.aborted) link.request('ws').then(resolve, reject);
      };
      link.signal.addEventListener('abort', () => {
        socket.close(1000);
        reject(new Ended('closed here')); // without waiting for the gateway's Close frame
      });
    });
  }

  // Replace the token of an open WebSocket when the gateway says that the token is about to expire.
  function refreshInBand(link, send) {
    let answer = null;
    link.controls.set('refreshed', () => answer?.(true));
    link.controls.set('refused', () => answer?.(false));
    link.controls.set('expiring', async ({in_ms: inMs}) => {
      // If the second try fails too, the gateway closes with 4002 when the token expires.
      if (await refresh()) return;
      await sleep(inMs / 2, link.signal);
      if (!link.signal.aborted) refresh();
    });

    async function refresh() {
      const token = await link.tokens.next().catch(() => link.token);
      // The page has no new token, or the option `token` is a fixed token.
      if (token === link.token || link.signal.aborted) return false;
      const answered = new Promise((resolve) => { answer = resolve; });
      send({control: 'refresh', token});
      const taken = await answered;
      if (taken) link.token = token;
      return taken;
    }
  }

  // With fetch and not EventSource. An EventSource dispatches only events of types that have a
  // listener, never retries after a 503, and does not say why a request was refused.
  async function eventStream(link) {
    const query = link.cursor ? `?cursor=${encodeURIComponent(link.cursor)}` : '';
    const response = await link.request(`sse${query}`);
    link.opened();
    let notBefore = 0;
    const parse = eventParser(dispatch, (ms) => { notBefore = ms; });
    link.controls.set('close', ({code, reason}) => { throw new Ended(reason, {code}); });
    for await (const text of texts(response, link)) parse(text);
    throw new Ended('the stream ended', {notBefore});

    function dispatch({id, event = '', data}) {
      if (event === 'pushgate.cursor') {
        link.silence.expect(Number(data));
        link.beat({cursor: id});
      } else if (event.startsWith('pushgate.') && event !== 'pushgate.binary') {
        link.controls.get(event.slice(9))?.(JSON.parse(data));
      } else if (id !== undefined) { // without an id it is no event of a gateway
        link.received(message(id, event, data));
      }
    }
  }

  // The message in an event; `eventId` is the message's cursor, if there is one, and id.
  function message(eventId, event, data) {
    const space = eventId.lastIndexOf(' ');
    const cursor = space < 0 ? undefined : eventId.slice(0, space);
    if (event === 'pushgate.binary') return {...JSON.parse(data), cursor};
    return {id: eventId.slice(space + 1), type: event || null, data, cursor};
  }

  // The text of a response's body, in the pieces in which it arrives. Each is a sign of life: a long
  // answer over a slow network is no silence.
  async function* texts(response, link) {
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    for (;;) {
      const {done, value} = await reader.read();
      if (done) return;
      link.silence.heard();
      yield decoder.decode(value, {stream: true});
    }
  }

  // The event stream format (HTML standard §9.2.6): lines end with LF, CR or CRLF, nothing else.
  function eventParser(dispatch, retry) {
    let unfinished = ''; // the last line, as far as it has arrived
    let fields = {};
    return (text) => {
      const lines = (unfinished + text).split(/\r\n|\n|\r(?!$)/); // a last CR may be half of a CRLF
      unfinished = lines.pop();
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
    // The first poll does not wait: its answer at once tells that the session is open, a new
    // session or the session of the cursor.
    for (let wait = 0; ; wait = POLL_SECONDS) {
      const askedAt = Date.now();
      link.silence.expect(wait * 1000);
      const {session} = link.place;
      const after = session === null ? '' : `&cursor=${encodeURIComponent(session)}`;
      const response = await link.request(`poll?wait=${wait}${after}`);
      let json = '';
      for await (const text of texts(response, link)) json += text;
      const answer = JSON.parse(json);
      link.place.session = answer.cursor;
      link.opened();
      if (answer.gap) link.gap();
      answer.messages.forEach(link.received);
      const pause = askedAt + POLL_PAUSE_MS - Date.now();
      if (wait && !answer.messages.length && pause > 0) await sleep(pause, link.signal);
    }
  }

  const TRANSPORTS = {ws: webSocket, sse: eventStream, poll: longPoll};

  function nextAfter({code, status}) {
    return AFTER_CLOSE[code] || AFTER_STATUS[status] || 'LATER';
  }

  function asError(thrown) {
    return thrown instanceof Error ? thrown : new Error(String(thrown));
  }

  // The delay before the next attempt, in ms: random between a tenth of the bound and the bound, so
  // that the clients of a node that has ended don't all return at the same time.
  function delay(ended, first, failures) {
    const bound = Math.min(MAX_RETRY_MS, first * 2 ** (failures - 1));
    return Math.max(ended.notBefore || 0, Math.round(bound * (0.1 + 0.9 * Math.random())));
  }

  // Resolves when `ms` have passed or `signal` is aborted.
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
