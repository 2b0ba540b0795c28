// The demo page. Text from outside (messages, names, errors) is shown through textContent alone,
// and never parsed as HTML.
'use strict';

const TRANSPORTS = [
  {name: 'ws', title: 'WebSocket', path: '/ws'},
  {name: 'sse', title: 'Server-sent events', path: '/sse'},
  {name: 'poll', title: 'Long-poll', path: '/poll'},
];
const STATE_MS = 1000;
const KEPT_MESSAGES = 200; // how many messages a pane shows, and how many send times are remembered
const SHOWN_CHARS = 2000;

const $ = (id) => document.getElementById(id);
const sentAt = new Map(); // message id → performance.now()
const sent = {records: 0, last: '–'};
let user = $('user').value;

function element(tag, className, text) {
  const created = document.createElement(tag);
  if (className) created.className = className;
  if (text !== undefined) created.textContent = text;
  return created;
}

async function post(path, body) {
  const response = await fetch(path, {
    method: 'POST', headers: {'content-type': 'application/json'}, body: JSON.stringify(body),
  });
  if (!response.ok) throw new Error(`${response.status} ${(await response.text()).trim()}`);
  return response.json();
}

// --- the clients

class Pane {
  constructor({name, title, path}) {
    const pane = $('pane').content.cloneNode(true).firstElementChild;
    this.transport = name;
    this.connection = null;
    this.latencies = [];
    this.pane = pane;
    this.list = pane.querySelector('ol');
    this.button = pane.querySelector('button');
    this.button.onclick = () => (this.connection ? this.disconnect() : this.connect());
    pane.dataset.transport = name;
    pane.querySelector('h3').textContent = title;
    this.path = path;
    this.show('closed', 'not connected');
    $('pane').parentElement.append(pane);
  }

  connect() {
    if (this.connection) return;
    const connection = pushgate.connect({transport: this.transport, token: () => tokenFor(user)});
    this.connection = connection;
    this.button.textContent = 'Disconnect';
    this.show('connecting', 'connecting');
    connection.onopen = () => this.show('open', `connected to ${this.path} as ${user}`);
    connection.onmessage = (message) => this.arrived(message);
    connection.ongap = () => this.add(element('li', 'note', 'messages may have been missed here'));
    connection.onerror = ({reason, retryIn}) => {
      if (retryIn === null) this.show('refused', reason);
      else this.show('waiting', `${reason}; again in ${(retryIn / 1000).toFixed(1)} s`);
    };
    connection.onclose = () => this.closed();
    showAllButton();
  }

  disconnect() {
    if (this.connection) this.connection.close();
  }

  closed() {
    this.connection = null;
    this.button.textContent = 'Connect';
    if (this.pane.dataset.state !== 'refused') this.show('closed', 'not connected');
    showAllButton();
  }

  show(state, text) {
    this.pane.dataset.state = state;
    this.pane.querySelector('.state').textContent = text;
  }

  arrived({id, type, data}) {
    const start = sentAt.get(id);
    const item = element('li');
    item.dataset.id = id;
    const text = typeof data === 'string' ? data : `${data.length} bytes: ${hex(data)}`;
    const shown = text.length > SHOWN_CHARS ? `${text.slice(0, SHOWN_CHARS)}…` : text;
    item.append(element('span', 'text', shown || '(empty)'));
    if (start !== undefined) {
      const took = performance.now() - start;
      this.latencies.push(took);
      if (this.latencies.length > KEPT_MESSAGES) this.latencies.shift();
      item.append(element('span', 'took', `${took.toFixed(0)} ms`));
    }
    const meta = element('span', 'meta', `${new Date().toLocaleTimeString()}  ${id}`);
    if (type !== null) meta.prepend(element('b', '', type), '  ');
    item.append(meta);
    this.add(item);
    this.summarise();
  }

  add(item) {
    this.list.prepend(item);
    if (this.list.children.length > KEPT_MESSAGES) this.list.lastElementChild.remove();
  }

  summarise() {
    if (!this.latencies.length) return;
    const sorted = [...this.latencies].sort((a, b) => a - b);
    const median = sorted[Math.floor(sorted.length / 2)];
    this.pane.querySelector('footer').textContent =
      `from Send to here: median ${median.toFixed(0)} ms of ${sorted.length}`;
  }
}

const tokenFor = async (name) => (await post('/demo/token', {user: name})).token;
const hex = (bytes) => Array.from(bytes.slice(0, 64), (b) => b.toString(16).padStart(2, '0')).join(' ');
const panes = TRANSPORTS.map((transport) => new Pane(transport));
const allConnected = () => panes.every((pane) => pane.connection);

function showAllButton() {
  $('all').textContent = allConnected() ? 'Disconnect all' : 'Connect all';
}

$('all').onclick = () => {
  const act = allConnected() ? 'disconnect' : 'connect';
  panes.forEach((pane) => pane[act]());
};

// --- sending

$('send').onsubmit = async (event) => {
  event.preventDefault();
  const to = $('to').value;
  const id = newId();
  const headers = {'push-id': id};
  if ($('type').value) headers['push-type'] = $('type').value;
  remember(id);
  try {
    const {coordinates} = await post('/demo/send', {user: to, payload: $('payload').value, headers});
    const took = performance.now() - sentAt.get(id);
    sent.records += 1;
    sent.last = coordinates;
    say(`Kafka has it as ${coordinates} after ${took.toFixed(0)} ms, for ${to}.`);
    showCounters('kafka', {sent: sent.records, last: sent.last});
  } catch (error) {
    say(`Not sent: ${error.message}`, true);
  }
};

function newId() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return `demo-${high.toString(36)}${low.toString(36)}`;
}

function remember(id) {
  sentAt.set(id, performance.now());
  if (sentAt.size > KEPT_MESSAGES) sentAt.delete(sentAt.keys().next().value);
}

function say(text, bad = false) {
  $('sent').textContent = text;
  $('sent').classList.toggle('bad', bad);
}

// --- the user

$('user').onchange = () => {
  const connected = panes.filter((pane) => pane.connection);
  connected.forEach((pane) => pane.disconnect());
  if ($('to').value === user) $('to').value = $('user').value;
  user = $('user').value;
  showUser();
  connected.forEach((pane) => pane.connect());
};

function showUser() {
  document.querySelectorAll('.who').forEach((who) => { who.textContent = user; });
}

// --- registry and counters

function showCounters(card, values) {
  const list = $(card).querySelector('dl');
  const rows = new Map([...list.children].map((row) => [row.dataset.name, row]));
  for (const [name, value] of Object.entries(values)) {
    const row = rows.get(name) || list.appendChild(counterRow(name));
    const shown = row.lastElementChild;
    rows.delete(name);
    if (shown.textContent === String(value)) continue;
    if (shown.textContent !== '') flash(row);
    shown.textContent = String(value);
  }
  rows.forEach((row) => row.remove());
}

function counterRow(name) {
  const row = element('div');
  row.dataset.name = name;
  row.append(element('dt', '', name), element('dd', '', ''));
  return row;
}

function flash(row) {
  row.classList.remove('moved');
  void row.offsetWidth; // reading it forces a layout, which lets the CSS animation start again
  row.classList.add('moved');
}

const OUTCOMES = {delivered: 0, offline: 0, expired: 0, rejected: 0, failed: 0};
const CONNECTIONS = {websocket: 0, sse: 0, poll: 0};

function showState({nodes, registry_error: problem, gateway, processor}) {
  showCounters('processor', {...OUTCOMES, ...processor.outcomes});
  showCounters('gateway', {
    ...CONNECTIONS, ...gateway.connections, 'messages out': gateway.pushed.delivered || 0,
  });
  const entries = nodes.map((node) => [node.name, node.address]);
  showCounters('registry', problem ? {'not reachable': problem}
    : entries.length ? Object.fromEntries(entries) : {'no entry': 'offline'});
}

async function watch() {
  try {
    const response = await fetch(`/demo/state?user=${encodeURIComponent(user)}`);
    if (response.ok) showState(await response.json());
    document.body.classList.toggle('stale', !response.ok);
  } catch {
    document.body.classList.add('stale'); // pushgate dev does not answer; the next try is below
  }
  setTimeout(watch, STATE_MS);
}

showUser();
showCounters('kafka', {sent: 0, last: sent.last});
watch();
