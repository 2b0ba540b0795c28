// The form that sends, and what is known here of each message that was sent.
import {$, call, setText} from './dom.js';

const KEPT_IDS = 5000; // ids whose time of sending is remembered
const HEADERS = {
  type: 'push-type', device: 'push-device', ttl: 'push-ttl', 'collapse-key': 'push-collapse-key',
  urgency: 'push-urgency',
};
const sentAt = new Map(); // message id → performance.now()

// The ms since a message was sent from here; null for another's message.
export function latency(id) {
  const start = sentAt.get(id);
  return start === undefined ? null : performance.now() - start;
}

// What the form says now, as the snippets and the record have it.
export function record() {
  const headers = {};
  for (const [field, header] of Object.entries(HEADERS)) {
    if ($(field).value) headers[header] = $(field).value;
  }
  return {user: $('to').value, payload: $('payload').value, headers, id: $('id').value};
}

// `ways` is told of every message; `sent` is called after each.
export function wireForm(ways, sent) {
  $('send').onsubmit = async (event) => {
    event.preventDefault();
    await send(ways);
    sent();
  };
  $('payload').onkeydown = (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) $('send').requestSubmit();
  };
}

async function send(ways) {
  const {user, payload, headers, id} = record();
  const copies = Number($('copies').value);
  const ids = Array.from({length: copies}, () => id || newId());
  const way = ways.sending(user, ids);
  ids.forEach(remember);
  try {
    const {coordinates} = await call('POST', '/demo/send', {body: {user, payload, headers, ids}});
    const took = latency(ids[0]);
    ways.published(way, coordinates);
    const last = coordinates[coordinates.length - 1];
    const what = copies === 1 ? `Kafka has it as ${last}` : `Kafka has ${copies}, up to ${last},`;
    say(`${what} after ${took.toFixed(0)} ms, for ${user}.`);
  } catch (error) {
    ways.unsent(way, error.message);
    say(`Not sent: ${error.message}`, true);
  }
}

function newId() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return `demo-${high.toString(36)}${low.toString(36)}`;
}

function remember(id) {
  sentAt.delete(id); // set anew, it stands last
  sentAt.set(id, performance.now());
  if (sentAt.size > KEPT_IDS) sentAt.delete(sentAt.keys().next().value);
}

function say(text, bad = false) {
  setText($('sent'), text);
  $('sent').classList.toggle('bad', bad);
}
