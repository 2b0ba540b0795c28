// The best transport that passes, found without the page.

import assert from 'node:assert/strict';
import test from 'node:test';

import {world} from './support/world.js';

const PAGE = {page: 'https://app.test/'};
const HASTY_MS = 5_000;
const CONTENT_MS = 600_000;

/** The gateway's answer to a WebSocket whose upgrade a proxy has taken away. */
async function blocked(socket, requests) {
  await socket.end();
  await requests.at(-1).answer(426, 'no upgrade to WebSocket has arrived');
}

test('a WebSocket whose upgrade is blocked is followed by an event stream', async (t) => {
  const {sockets, requests, connect} = world(t);
  const {client, told} = await connect();
  await blocked(sockets[0], requests);
  await blocked(sockets[1], requests); // once more: a gateway may have come back in between
  assert.equal(requests.at(-1).path, '/sse');
  await requests.at(-1).hello();
  assert.equal(client.transport, 'sse');
  assert.deepEqual(told, ['open']);
});

test('a gateway that comes back between the handshake and the probe is no blocked upgrade', async (t) => {
  const {sockets, requests, connect} = world(t);
  const {client} = await connect();
  await blocked(sockets[0], requests);
  await sockets[1].hello();
  assert.equal(client.transport, 'ws');
});

test('where no hello comes in five seconds the next transport is tried, down to the poll', async (t) => {
  const {clock, sockets, requests, connect} = world(t);
  const {client, told} = await connect();
  await sockets[0].accept();
  await clock.pass(HASTY_MS);
  assert.equal(sockets[0].closedWith, 1000);
  assert.equal(requests[0].path, '/sse');
  await clock.pass(HASTY_MS);
  assert.ok(requests[0].aborted);
  assert.equal(requests[1].path, '/poll');
  await requests[1].polled('k.s.1');
  assert.equal(client.transport, 'poll');
  assert.deepEqual(told, ['open']);
});

test('a gateway that nothing reaches is tried by each transport, then by the best again', async (t) => {
  const {clock, sockets, requests, connect} = world(t);
  const {told} = await connect();
  await clock.pass(HASTY_MS * 2 + 10_000);
  assert.deepEqual(told, [5_000]);
  assert.deepEqual(requests.map(({path}) => path), ['/sse', '/poll']);
  await clock.pass(5_000);
  assert.equal(sockets.length, 2);
});

for (const status of [401, 403, 503]) {
  test(`a refusal with ${status} says nothing about the transport`, async (t) => {
    const {sockets, requests, connect} = world(t);
    const {errors} = await connect();
    await sockets[0].end();
    await requests[0].answer(status, 'no');
    assert.equal(errors[0].status, status);
    assert.equal(requests.length, 1);
  });
}

test('a WebSocket that was open is followed by a WebSocket', async (t) => {
  const {clock, sockets, requests, connect} = world(t);
  await connect();
  await sockets[0].hello();
  await clock.pass(35_000);
  await clock.pass(5_000);
  assert.equal(sockets.length, 2);
  assert.equal(requests.length, 0);
});

async function onStream(t) {
  const given = world(t, PAGE);
  const seen = await given.connect();
  await blocked(given.sockets[0], given.requests);
  await blocked(given.sockets[1], given.requests);
  await given.requests.at(-1).hello('a1');
  return {...given, ...seen};
}

test('the transport that passed is remembered for the host, over page loads', async (t) => {
  const {browser, requests, connect} = await onStream(t);
  assert.deepEqual([...browser.stored.keys()], ['pushgate push.test']);
  const before = requests.length;
  await connect();
  assert.equal(requests[before].path, '/sse');
});

test('what is remembered of another host, or is no transport, does not count', async (t) => {
  const {browser, sockets, connect} = world(t, PAGE);
  browser.localStorage.setItem('pushgate other.test', 'sse 1');
  browser.localStorage.setItem('pushgate push.test', 'pigeon 1');
  await connect();
  assert.equal(sockets.length, 1);
});

test('a page that may not store anything connects all the same', async (t) => {
  const {browser, sockets, requests, connect} = world(t, PAGE);
  browser.localStorage.getItem = browser.localStorage.setItem = () => {
    throw new Error('denied');
  };
  const {client} = await connect();
  await blocked(sockets[0], requests);
  await blocked(sockets[1], requests);
  await requests.at(-1).hello();
  assert.equal(client.transport, 'sse');
});

test('after ten minutes a WebSocket is tried again, and takes over unseen', async (t) => {
  const {clock, sockets, requests, client, told} = await onStream(t);
  const stream = requests.at(-1);
  for (let passed = 0; passed < CONTENT_MS; passed += 20_000) {
    assert.equal(sockets.length, 2);
    await stream.beat('a1');
    await clock.pass(20_000);
  }
  assert.equal(sockets.length, 3);
  assert.equal(sockets[2].cursor, 'a1');
  await sockets[2].hello({cursor: 'a1'});
  await stream.message('1', 'a1,push-0-1');
  await clock.pass(1_000);
  assert.ok(stream.aborted);
  await sockets[2].message('1', {cursor: 'a1,push-0-1'});
  await sockets[2].message('2', {cursor: 'a1,push-0-2'});
  assert.equal(client.transport, 'ws');
  assert.deepEqual(told, ['open', '1', '2']);
});

test('where a WebSocket does not pass then either, the event stream goes on for ten minutes more', async (t) => {
  const {clock, sockets, requests, client, told} = await onStream(t);
  const stream = requests.at(-1);
  for (let times = 1; times < 3; times += 1) {
    for (let passed = 0; passed < CONTENT_MS; passed += 20_000) {
      await stream.beat('a1');
      await clock.pass(20_000);
    }
    assert.equal(sockets.length, 2 + times);
    await blocked(sockets.at(-1), requests);
  }
  assert.equal(client.transport, 'sse');
  assert.deepEqual(told, ['open']);
});

test('a remembered transport is soon left where it was chosen long ago', async (t) => {
  const {browser, clock, sockets, requests, connect} = world(t, PAGE);
  browser.localStorage.setItem('pushgate push.test', 'sse 1');
  await connect();
  await requests[0].hello();
  await clock.pass(2_000);
  assert.equal(sockets.length, 1);
});

test('from one transport to the other the cursor goes along', async (t) => {
  const {clock, sockets, requests, connect} = world(t);
  const {told} = await connect();
  await sockets[0].hello({cursor: 'a1'});
  await sockets[0].message('1', {cursor: 'a1,push-0-1'});
  await sockets[0].end();
  await clock.pass(5_000);
  await sockets[1].accept(); // another network: nothing comes on a WebSocket, nor on a stream
  await clock.pass(2 * HASTY_MS);
  const poll = requests.at(-1);
  assert.match(poll.url.searchParams.get('cursor'), /^[0-9a-z]{1,32}\.0\.0,a1,push-0-1$/);
  await poll.polled('k.s.1,a2,push-0-2', '2');
  await clock.pass(CONTENT_MS / 4);
  assert.equal(requests.at(-1).url.searchParams.get('cursor'), 'k.s.1,a2,push-0-2');
  assert.deepEqual(told.slice(0, 5), ['open', '1', 5_000, 'open', '2']);
});

test('a transport that is fixed is the only one', async (t) => {
  const {browser, sockets, requests, connect} = world(t, PAGE);
  browser.localStorage.setItem('pushgate push.test', 'sse 1');
  const {errors} = await connect({transport: 'ws'});
  await blocked(sockets[0], requests);
  assert.equal(errors[0].status, 426);
  assert.match(errors[0].reason, /426 no upgrade to WebSocket has arrived/);
  assert.equal(browser.stored.get('pushgate push.test'), 'sse 1');
});

test('without WebSocket, as in Node.js 20, it is SSE, and no WebSocket on demand', async (t) => {
  const {clock, requests, connect} = world(t, {hasWebSocket: false});
  const {client} = await connect();
  await requests[0].hello();
  assert.equal(client.transport, 'sse');
  await clock.pass(20_000);
  assert.equal(requests.length, 1);
  await assert.rejects(connect({transport: 'ws'}), {
    name: 'TypeError',
    message: 'transport ws: here it is auto or sse,poll',
  });
});

test('a transport that is none is refused at once', async (t) => {
  const {connect} = world(t);
  await assert.rejects(connect({transport: 'pigeon'}), /transport pigeon: here it is auto or ws,sse,poll/);
});
