// The demo page of `pushgate dev`: everything is put together here, and asked anew every second.
import {Chart} from './chart.js';
import {Client, TRANSPORTS} from './clients.js';
import {Connections} from './connections.js';
import {$, call, clockTime, element, putFirst, setText} from './dom.js';
import {latency, wireForm} from './sending.js';
import {Snippets} from './snippets.js';
import {Ways} from './ways.js';

const STATE_MS = 1000;
const EAGER_MS = 150; // while a message waits for its outcome
const EAGER_FOR_MS = 5000;
const KEPT_EVENTS = 200;
const FIRST_CLIENTS = ['alice:ws', 'alice:sse', 'bob:ws'];
const FIRST_USERS = ['alice', 'bob', 'carol'];

const about = await call('GET', '/demo/about');
const chart = new Chart();
const ways = new Ways();
const clients = new Set();
let after = 0; // the number of the last report
let eagerUntil = 0;
let timer = 0;
let isAsking = false;
let askAgain = false;

const page = {
  event(client, text, kind) {
    const item = element('li', kind);
    item.append(element('time', '', clockTime()), element('b', '', client.user));
    item.append(` ${TRANSPORTS[client.transport].title} `, element('span', '', text));
    putFirst($('events').firstElementChild, item, KEPT_EVENTS);
  },
  arrived(id) {
    const took = latency(id);
    chart.arrived(took);
    return took;
  },
  removed(client) {
    clients.delete(client);
    keepClients();
    $('add-user').focus(); // the focus must not be lost with the removed button
  },
};

// --- the clients, which the page's address keeps over a reload

function addClient(form) {
  clients.add(new Client(form, about.closes, page));
}

function keepClients() {
  const query = new URLSearchParams();
  for (const {user, transport, device, madeDevice} of clients) {
    const parts = madeDevice ? [user, transport] : [user, transport, device];
    query.append('client', parts.map(encodeURIComponent).join(':'));
  }
  history.replaceState(null, '', `?${query}`);
}

function clientIn(text) {
  const [user, transport, device] = text.split(':').map(decodeURIComponent);
  return {user, transport, device};
}

function addFirstClients() {
  const asked = new URLSearchParams(location.search).getAll('client').map(clientIn);
  const known = asked.filter(({user, transport}) => user && Object.hasOwn(TRANSPORTS, transport));
  const first = known.length ? known : FIRST_CLIENTS.map(clientIn);
  first.forEach(addClient);
  $('to').value = $('who').value = first[0].user;
}

$('add').onsubmit = (event) => {
  event.preventDefault();
  const [user, transport, device] = ['add-user', 'add-transport', 'add-device'].map((id) => $(id).value);
  addClient({user, transport, device});
  keepClients();
  askSoon();
};

// A tab that is closed leaves at once; a page that comes back from the back-forward cache connects.
addEventListener('pagehide', () => clients.forEach((client) => client.leave()));
addEventListener('pageshow', ({persisted}) => {
  if (persisted) clients.forEach((client) => client.connect());
});

// --- what the system says

async function ask() {
  const who = $('who').value;
  const users = new Set([who, ...Array.from(clients, ({user}) => user)].filter(Boolean));
  const query = new URLSearchParams({after});
  [...users].slice(0, 20).forEach((user) => query.append('user', user));
  let state;
  try {
    state = await call('GET', `/demo/state?${query}`);
  } catch (error) {
    showHealth('bad', `pushgate dev does not answer: ${error.message}`);
    return;
  }
  showState(state);
  if (state.registry_error) showHealth('wait', 'the registry is not reachable');
  else showHealth('good', 'everything answers');
}

function showHealth(kind, text) {
  document.body.dataset.health = kind;
  setText($('health'), text);
}

async function watch() {
  isAsking = true; // one at a time: two would get the same reports
  askAgain = false;
  await ask();
  isAsking = false;
  const eager = ways.anyWaiting && performance.now() < eagerUntil;
  timer = setTimeout(watch, askAgain ? 0 : eager ? EAGER_MS : STATE_MS);
}

function askSoon() {
  eagerUntil = performance.now() + EAGER_FOR_MS;
  askAgain = true;
  if (isAsking) return;
  clearTimeout(timer);
  watch();
}

const connections = new Connections(askSoon);

function showState({users, registry_error: problem, reports, outcomes, connections: held}) {
  connections.show(users[$('who').value], problem);
  const listedBy = (user) => (users[user]?.listings || []).flatMap((listing) => listing.connections);
  for (const client of clients) client.listed(listedBy(client.user));
  offer('devices', Object.keys(users).flatMap(listedBy).map(({device}) => device).filter(Boolean));
  offer('users', [...FIRST_USERS, ...Object.keys(users)]);
  if (reports) {
    ways.take(reports.reports, after ? reports.forgotten : 0);
    after = reports.last;
  } else {
    setText($('ways-note'), 'No outcomes are told: set PUSHGATE_OUTCOMES_TOPIC.');
  }
  const counts = Object.fromEntries(about.outcomes.map((name) => [name, outcomes[name] || 0]));
  showTotals({...counts, connections: Object.values(held).reduce((sum, count) => sum + count, 0)});
}

function offer(list, values) {
  const wanted = [...new Set(values)].sort();
  const shown = Array.from($(list).children, ({value}) => value);
  if (wanted.join('\n') === shown.join('\n')) return;
  $(list).replaceChildren(...wanted.map((value) => Object.assign(element('option'), {value})));
}

function showTotals(totals) {
  for (const [name, count] of Object.entries(totals)) {
    const row = document.querySelector(`#totals [data-name="${name}"]`) || totalRow(name);
    setText(row.lastElementChild, count.toLocaleString());
  }
}

function totalRow(name) {
  const row = element('div');
  row.dataset.name = name;
  row.append(element('dt', '', name), element('dd'));
  $('totals').append(row);
  return row;
}

about.urgencies.forEach((name) => $('urgency').append(element('option', '', name)));
addFirstClients();
new Snippets(about);
$('snippets').open = matchMedia('(min-width: 700px)').matches; // on a phone the clients come first
wireForm(ways, askSoon);
watch();
