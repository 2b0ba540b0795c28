// Clients from npm, unchanged. Usage: node judges.mjs HTTP_URL JUDGE TOKEN [JUDGE TOKEN …]
// tests/system/test_judges.py has the judges' names and the lines that they print.
import {EventSource} from 'eventsource';
import {EventSource as UndiciEventSource, WebSocket as UndiciWebSocket} from 'undici';
import WebSocket from 'ws';

const say = (...words) => console.log(words.join(' '));

// An EventSource comes back by itself, with the Last-Event-ID.
function judgeStream(judge, source) {
  source.onopen = () => say(judge, 'open');
  source.onmessage = ({data}) => say(judge, 'message', data);
  source.addEventListener('pushgate.gap', () => say(judge, 'gap'));
}

// How far a client has come: docs/protocol.md, "Resuming".
class Place {
  #asOf = null;
  #offsets = new Map(); // by topic and partition

  take({control, cursor, data}) {
    if (control === 'gap') this.#offsets.clear();
    if (!cursor) return;
    const [asOf, ...positions] = cursor.split(',');
    this.#asOf = asOf;
    if (data === undefined || !positions.length) return;
    const [, partition, offset] = /^(.+)-(\d+)$/.exec(positions.at(-1));
    this.#offsets.set(partition, offset);
  }

  get query() {
    if (!this.#asOf) return '';
    const positions = [...this.#offsets].map(([partition, offset]) => `${partition}-${offset}`);
    return `?cursor=${encodeURIComponent([this.#asOf, ...positions])}`;
  }
}

// A WebSocket does not come back by itself.
function judgeSocket(judge, open) {
  const place = new Place();
  const connect = () => {
    const socket = open(place.query);
    socket.onopen = () => say(judge, 'open');
    socket.onmessage = ({data: text}) => {
      const frame = JSON.parse(text);
      place.take(frame);
      if (frame.data !== undefined) say(judge, 'message', frame.data);
      if (frame.control === 'gap') say(judge, 'gap');
      if (frame.control === 'reconnect') setTimeout(() => socket.close(1000), frame.after_ms);
    };
    socket.onclose = () => setTimeout(connect, 500 * Math.random());
    socket.onerror = () => {}; // `close` follows
  };
  connect();
}

const [url, ...judgesAndTokens] = process.argv.slice(2);
const stream = (token) => `${url}/sse?token=${token}`;
const socketUrl = `${url.replace('http', 'ws')}/ws`;
const bearer = (token) => ({authorization: `Bearer ${token}`});
const judges = {
  'eventsource': (judge, token) => judgeStream(judge, new EventSource(stream(token))),
  'undici-sse': (judge, token) => judgeStream(judge, new UndiciEventSource(stream(token))),
  'undici-ws': (judge, token) => judgeSocket(judge, (query) => new UndiciWebSocket(
    socketUrl + query, {protocols: ['pushgate.v1'], headers: bearer(token)},
  )),
  'ws': (judge, token) => judgeSocket(judge, (query) => new WebSocket(
    socketUrl + query, ['pushgate.v1'], {headers: bearer(token)},
  )),
};
for (let at = 0; at < judgesAndTokens.length; at += 2) {
  const [judge, token] = judgesAndTokens.slice(at, at + 2);
  judges[judge](judge, token);
}
