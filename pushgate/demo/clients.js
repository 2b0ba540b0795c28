// The clients of this page: one pane each, with its connection, messages and latencies.
import {$, call, clockTime, element, median, putFirst, setText} from './dom.js';

export const TRANSPORTS = {
  ws: {title: 'WebSocket', name: 'websocket'},
  sse: {title: 'SSE', name: 'sse'},
  poll: {title: 'Long-poll', name: 'poll'},
};
const KEPT_MESSAGES = 100;
const SHOWN_CHARS = 2000;
// In the device of every client that names none: so its connections are told from another tab's.
const TAB = crypto.getRandomValues(new Uint32Array(1))[0].toString(36).slice(-4);
const names = new Set(); // devices made here

export class Client {
  // `page` has `event(client, text, kind)`, `arrived(id)` (the latency in ms, or null) and
  // `removed(client)`.
  constructor({user, transport, device}, closes, page) {
    this.user = user;
    this.transport = transport;
    this.madeDevice = !device;
    this.device = device || deviceOfTab(transport);
    this.closes = closes;
    this.page = page;
    this.connection = null;
    this.latencies = [];
    this.count = 0;
    this.opens = 0; // how often the page was told that the connection is open
    this.heldIds = new Set(); // of its connections, by the last listing
    this.opensListed = 0; // `opens` at that time
    this.makePane();
    this.connect();
  }

  get label() {
    return `${this.user}, ${TRANSPORTS[this.transport].title}`;
  }

  get isOpen() {
    return this.connection !== null && this.connection.state === 'open';
  }

  makePane() {
    const pane = $('pane').content.cloneNode(true).firstElementChild;
    this.pane = pane;
    this.list = pane.querySelector('ol');
    this.toggle = pane.querySelector('.toggle');
    this.toggle.onclick = () => (this.connection ? this.leave() : this.connect());
    const remove = pane.querySelector('.remove');
    remove.onclick = () => { this.leave(); pane.remove(); this.page.removed(this); };
    remove.setAttribute('aria-label', `Remove ${this.label}`);
    const heading = pane.querySelector('h3');
    heading.append(element('b', '', this.user), ` ${TRANSPORTS[this.transport].title} `);
    heading.append(element('small', '', this.device));
    this.list.setAttribute('aria-label', `Messages of ${this.label}`);
    pane.dataset.transport = this.transport;
    pane.dataset.user = this.user;
    $('panes').append(pane);
  }

  connect() {
    if (this.connection) return;
    const connection = pushgate.connect({transport: this.transport, token: () => this.token()});
    this.connection = connection;
    this.showToggle('Disconnect');
    this.show('connecting', 'connecting');
    connection.onopen = () => {
      this.show('open', `connected to /${this.transport}`);
      this.page.event(this, this.opens ? 'connected again' : 'connected', 'good');
      this.opens += 1;
    };
    connection.onmessage = (message) => this.arrived(message);
    connection.ongap = () => {
      this.add(element('li', 'note', 'messages may have been missed here'));
      this.page.event(this, 'a gap: messages may have been missed', 'bad');
    };
    connection.onerror = (error) => this.failed(error);
    connection.onclose = () => this.closed();
  }

  async token() {
    const {token} = await call('POST', '/demo/token', {body: {user: this.user, device: this.device}});
    return token;
  }

  failed({status, reason, retryIn}) {
    const code = this.closes[reason];
    const how = code ? `closed with ${code}, ${reason}` : `${status ? 'refused' : 'lost'}: ${reason}`;
    if (retryIn === null) {
      this.show('refused', how);
      this.page.event(this, `${how}; stays away`, 'bad');
    } else {
      const then = `again in ${(retryIn / 1000).toFixed(1)} s`;
      this.show('waiting', `${how}; ${then}`);
      this.page.event(this, `${how}; ${then}`, 'wait');
    }
  }

  // End the connection. A poll session would otherwise be kept for the client's next poll.
  leave() {
    if (!this.connection) return;
    this.connection.close();
    if (this.transport === 'poll' && this.madeDevice) {
      const query = new URLSearchParams({user: this.user, device: this.device});
      call('DELETE', `/demo/connections?${query}`, {keepalive: true}).catch(() => {});
    }
  }

  closed() {
    this.connection = null;
    this.showToggle('Connect');
    if (this.pane.dataset.state === 'refused') return;
    this.show('closed', 'not connected');
    this.page.event(this, 'left', '');
  }

  // Take note of the connections that the nodes list for this client: of a hand-over, too, which
  // the browser client keeps from the page.
  listed(connections) {
    const ids = new Set(connections.filter(({device}) => device === this.device).map(({id}) => id));
    const isNew = this.heldIds.size && [...ids].some((id) => !this.heldIds.has(id));
    const stayedOpen = this.isOpen && this.opensListed === this.opens;
    if (this.madeDevice && stayedOpen && isNew) {
      this.page.event(this, 'handed over to a new connection, without a gap', 'good');
    }
    this.opensListed = this.opens;
    this.heldIds = ids;
  }

  showToggle(text) {
    setText(this.toggle, text);
    this.toggle.setAttribute('aria-label', `${text} ${this.label}`);
  }

  show(state, text) {
    this.pane.dataset.state = state;
    setText(this.pane.querySelector('.state'), text);
  }

  arrived({id, type, data}) {
    const took = this.page.arrived(id);
    const item = element('li');
    item.dataset.id = id;
    const text = typeof data === 'string' ? data : `${data.length} bytes: ${hex(data)}`;
    const shown = text.length > SHOWN_CHARS ? `${text.slice(0, SHOWN_CHARS)}…` : text;
    item.append(element('span', 'text', shown || '(empty)'));
    if (took !== null) item.append(element('span', 'took', `${took.toFixed(0)} ms`));
    const meta = element('span', 'meta', `${clockTime()}  ${id}`);
    if (type !== null) meta.prepend(element('b', '', type), '  ');
    item.append(meta);
    this.add(item);
    this.summarise(took);
  }

  add(item) {
    putFirst(this.list, item, KEPT_MESSAGES);
  }

  summarise(took) {
    this.count += 1;
    if (took !== null && this.latencies.push(took) > KEPT_MESSAGES) this.latencies.shift();
    const latency = this.latencies.length ? `, median ${median(this.latencies).toFixed(0)} ms` : '';
    setText(this.pane.querySelector('footer'), `${this.count} arrived${latency}`);
  }
}

function deviceOfTab(transport) {
  let name = `${transport}-${TAB}`;
  for (let number = 2; names.has(name); number += 1) name = `${transport}-${TAB}-${number}`;
  names.add(name);
  return name;
}

function hex(bytes) {
  return Array.from(bytes.slice(0, 64), (byte) => byte.toString(16).padStart(2, '0')).join(' ');
}
