// The client as a page uses it.

import assert from 'node:assert/strict';
import test from 'node:test';

import {PushErrorEvent, PushMessageEvent} from '../dist/index.js';
import {settle, world} from './support/world.js';

test('listeners and handlers get typed events', async (t) => {
  const {sockets, connect} = world(t);
  const {client} = await connect();
  const events = [];
  client.onmessage = function (event) {
    assert.equal(this, client);
    events.push(event);
  };
  client.addEventListener('message', (event) => events.push(event));
  await sockets[0].hello();
  await sockets[0].say({id: 'm1', type: 'greeting', data: 'hi'});
  assert.equal(events.length, 2);
  assert.ok(events[0] instanceof PushMessageEvent);
  const {data, id, messageType, message} = events[1];
  assert.deepEqual([data, id, messageType], ['hi', 'm1', 'greeting']);
  assert.deepEqual(message, {id: 'm1', type: 'greeting', data: 'hi'});
  const errors = [];
  client.addEventListener('error', (event) => errors.push(event));
  await sockets[0].end(1001, 'node is leaving');
  assert.ok(errors[0] instanceof PushErrorEvent);
  assert.deepEqual([errors[0].status, errors[0].reason], [null, 'node is leaving']);
});

test('bytes arrive as bytes', async (t) => {
  const {sockets, connect} = world(t);
  const {client} = await connect();
  const payloads = [];
  client.onmessage = ({data}) => payloads.push(data);
  await sockets[0].hello();
  await sockets[0].say({id: 'm1', type: null, data: '/wA=', encoding: 'base64'});
  assert.deepEqual(payloads, [Uint8Array.of(255, 0)]);
});

test('states and the transport in use', async (t) => {
  const {clock, sockets, requests, connect} = world(t);
  const {client} = await connect();
  const seen = () => [client.state, client.transport];
  assert.deepEqual(seen(), ['connecting', null]);
  await sockets[0].accept();
  assert.deepEqual(seen(), ['connecting', null]); // no hello yet
  await sockets[0].say({control: 'hello', heartbeat_ms: 25_000});
  assert.deepEqual(seen(), ['open', 'ws']);
  await sockets[0].end();
  assert.deepEqual(seen(), ['waiting', null]);
  await clock.pass(5_000);
  assert.deepEqual(seen(), ['connecting', null]);
  client.close();
  assert.deepEqual(seen(), ['closed', null]);
  assert.equal(requests.length, 0);
});

test('close ends it for good, and is harmless when repeated', async (t) => {
  const {sockets, connect} = world(t);
  const {client, told} = await connect();
  await sockets[0].hello();
  client.close();
  client.close();
  await sockets[0].message('late');
  await settle();
  assert.equal(sockets[0].closedWith, 1000);
  assert.deepEqual(told, ['open', 'close']);
});

test('a client that is closed at once connects to nothing', async (t) => {
  const {sockets, connect} = world(t);
  const connecting = connect({token: () => new Promise((resolve) => (t.answer = resolve))});
  const {client} = await connecting;
  client.close();
  t.answer('t1');
  await settle();
  assert.equal(sockets.length, 0);
});

for (const [url, expected] of [
  ['https://push.test', 'wss://push.test/ws'],
  ['https://push.test/gate', 'wss://push.test/gate/ws'],
  ['http://push.test/gate/', 'ws://push.test/gate/ws'],
  [new URL('https://push.test:8443/'), 'wss://push.test:8443/ws'],
]) {
  test(`${url} is the folder of ${expected}`, async (t) => {
    const {sockets, connect} = world(t);
    await connect({url});
    assert.equal(sockets[0].url, expected);
  });
}

test('a URL that is none is refused at once', async (t) => {
  const {connect} = world(t);
  await assert.rejects(connect({url: 'nowhere'}), {name: 'TypeError'});
});

test('without a token there is no credential but the cookie', async (t) => {
  const {sockets, requests, connect} = world(t);
  await connect({token: undefined});
  assert.deepEqual(sockets[0].protocols, ['pushgate.v1']);
  await sockets[0].end();
  assert.equal(requests[0].token, undefined);
});

/** Take messages with `for await`; resolves with the ids and how the loop ended. */
async function loop(client, take = () => {}) {
  const ids = [];
  let ended = 'ended';
  try {
    for await (const message of client) {
      ids.push(message.id);
      await take(message);
    }
  } catch (error) {
    ended = error;
  }
  return {ids, ended};
}

test('a loop takes messages until the client is closed', async (t) => {
  const {sockets, connect} = world(t);
  const {client} = await connect();
  const looping = loop(client);
  await sockets[0].hello();
  for (const id of ['1', '2', '3']) await sockets[0].message(id);
  client.close();
  assert.deepEqual(await looping, {ids: ['1', '2', '3'], ended: 'ended'});
});

test('a loop that is left, and one over a closed client, end', async (t) => {
  const {sockets, connect} = world(t);
  const {client} = await connect();
  const looping = (async () => {
    for await (const {id} of client) return id;
    return null;
  })();
  await sockets[0].hello();
  await sockets[0].message('1');
  assert.equal(await looping, '1');
  client.close();
  assert.deepEqual(await loop(client), {ids: [], ended: 'ended'});
});

test('a loop that is a thousand messages behind ends with an error, and misses none silently', async (t) => {
  const {sockets, connect} = world(t);
  const {client} = await connect();
  let goOn;
  const looping = loop(client, () => new Promise((resolve) => (goOn = resolve)));
  await sockets[0].hello();
  await sockets[0].message('0');
  for (let number = 1; number <= 1_000; number += 1) {
    sockets[0].onmessage({data: JSON.stringify({id: String(number), type: null, data: ''})});
  }
  goOn();
  await settle();
  sockets[0].onmessage({data: JSON.stringify({id: 'one too many', type: null, data: ''})});
  sockets[0].onmessage({data: JSON.stringify({id: 'two too many', type: null, data: ''})});
  goOn();
  const {ids, ended} = await looping;
  assert.deepEqual(ids, ['0', '1']);
  assert.ok(ended instanceof RangeError);
  assert.match(ended.message, /1000 messages wait/);
  assert.equal(client.state, 'open');
});
