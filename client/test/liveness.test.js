// A link that is dead is noticed, and the client is back soon; a link that lives is left alone.

import assert from 'node:assert/strict';
import test from 'node:test';

import {settle, world} from './support/world.js';

const HEARTBEAT_MS = 25_000;
const SILENCE_MS = 10_000;

test('a WebSocket is dead ten seconds after a heartbeat was due', async (t) => {
  const {clock, sockets, connect} = world(t);
  const {told, errors} = await connect();
  await sockets[0].hello();
  await clock.pass(HEARTBEAT_MS);
  await sockets[0].say({control: 'heartbeat'});
  await clock.pass(HEARTBEAT_MS + SILENCE_MS - 1);
  assert.deepEqual(told, ['open']);
  await clock.pass(1);
  assert.deepEqual(errors, [{status: null, reason: 'nothing came for too long', retryIn: 5_000}]);
  assert.equal(sockets[0].closedWith, 1000);
  await clock.pass(5_000);
  assert.equal(sockets.length, 2);
});

test('an event stream is dead ten seconds after a heartbeat was due', async (t) => {
  const {clock, requests, connect} = world(t);
  const {told} = await connect({transport: 'sse'});
  await requests[0].hello();
  await clock.pass(HEARTBEAT_MS);
  await requests[0].beat();
  await clock.pass(HEARTBEAT_MS + SILENCE_MS - 1);
  assert.deepEqual(told, ['open']);
  await clock.pass(1);
  assert.deepEqual(told, ['open', 5_000]);
  assert.ok(requests[0].aborted);
});

test('a poll is dead ten seconds after its wait', async (t) => {
  const {clock, requests, connect} = world(t);
  const {told} = await connect({transport: 'poll'});
  await requests[0].polled('k.s.1');
  assert.equal(requests[1].url.search, '?wait=25&cursor=k.s.1');
  await clock.pass(25_000 + SILENCE_MS - 1);
  assert.deepEqual(told, ['open']);
  await clock.pass(1);
  assert.deepEqual(told, ['open', 5_000]);
  assert.ok(requests[1].aborted);
});

test('a poll whose answer comes slowly is alive', async (t) => {
  const {clock, requests, connect} = world(t);
  const {told} = await connect({transport: 'poll'});
  await requests[0].stream();
  for (const part of ['{"cursor": "c", "messages": [', '{"id": "1", "type": null,', '"data": "1"}]}']) {
    await clock.pass(SILENCE_MS - 1);
    await requests[0].send(part);
  }
  await requests[0].end();
  assert.deepEqual(told, ['open', '1']);
});

for (const transport of ['ws', 'sse', 'poll']) {
  test(`${transport}: an attempt that nothing answers is given up, again and again`, async (t) => {
    const {clock, connect} = world(t);
    const {told, client} = await connect({transport});
    for (const delay of [5_000, 10_000, 20_000, 40_000, 60_000, 60_000]) {
      await clock.pass(SILENCE_MS - 1);
      assert.equal(client.state, 'connecting');
      await clock.pass(1);
      assert.equal(told.at(-1), delay);
      await clock.pass(delay);
    }
  });
}

test('a page that was frozen has two seconds to take what came meanwhile', async (t) => {
  const {clock, sockets, connect} = world(t);
  const {told} = await connect();
  await sockets[0].hello();
  clock.freeze(HEARTBEAT_MS + SILENCE_MS + 20_000);
  await clock.pass(1_999);
  await sockets[0].say({control: 'heartbeat'});
  await clock.pass(HEARTBEAT_MS);
  assert.deepEqual(told, ['open']);
});

test('a good link is never held up: twelve kills, each six seconds after the last', async (t) => {
  const {clock, sockets, connect} = world(t);
  const {told} = await connect();
  for (let kill = 0; kill < 12; kill += 1) {
    await sockets[kill].hello();
    await clock.pass(1_000);
    await sockets[kill].end();
    assert.equal(told.at(-1), 5_000, 'random below this bound');
    await clock.pass(5_000);
    assert.equal(sockets.length, kill + 2);
  }
});

test('a client that is sent away at once each time is quick once, and backs off to five seconds', async (t) => {
  const {clock, sockets, connect} = world(t);
  const {told} = await connect();
  for (const delay of [1_000, 2_000, 4_000, 5_000, 5_000]) {
    await sockets.at(-1).hello();
    await sockets.at(-1).end(4001, 'too slow');
    assert.equal(told.at(-1), delay);
    await clock.pass(delay);
  }
});

test('a link that lived for ten seconds clears the failures before', async (t) => {
  const {clock, sockets, connect} = world(t);
  const {told} = await connect();
  for (const delay of [1_000, 2_000]) {
    await sockets.at(-1).hello();
    await sockets.at(-1).end(4001);
    assert.equal(told.at(-1), delay);
    await clock.pass(delay);
  }
  await sockets.at(-1).hello();
  await clock.pass(10_000);
  await sockets.at(-1).end(4001);
  assert.equal(told.at(-1), 1_000);
});

test('delays are random, between a tenth of the bound and the bound', async (t) => {
  const {sockets, connect} = world(t, {random: () => 0});
  const {told} = await connect();
  await sockets[0].hello();
  await sockets[0].end();
  assert.equal(told.at(-1), 500);
});

async function waiting(t) {
  const given = world(t, {page: 'https://app.test/'});
  const seen = await given.connect();
  await given.sockets[0].hello();
  await given.sockets[0].end();
  assert.equal(seen.client.state, 'waiting');
  return {...given, ...seen};
}

for (const [name, event] of [
  ['the network is back', (browser) => browser.happens('online')],
  ['the page becomes visible', (browser) => browser.show('visible')],
  ['the page is back from the back-forward cache', (browser) => browser.happens('pageshow', {persisted: true})],
]) {
  test(`${name}: a client that waits tries at once`, async (t) => {
    const {browser, clock, sockets} = await waiting(t);
    await event(browser);
    await clock.pass(0);
    assert.equal(sockets.length, 2);
  });
}

test('a page that is hidden, or shown for the first time, tries no sooner', async (t) => {
  const {browser, clock, sockets} = await waiting(t);
  await browser.show('hidden');
  await browser.happens('pageshow', {persisted: false});
  await clock.pass(4_999);
  assert.equal(sockets.length, 1);
});

test('the time for which the gateway asked to stay away is kept', async (t) => {
  const {browser, clock, requests, connect} = world(t, {page: 'https://app.test/'});
  const {told} = await connect({transport: 'sse'});
  await requests[0].answer(503, 'full', {'retry-after': '7'});
  assert.deepEqual(told, [7_000]);
  await browser.happens('online');
  await clock.pass(6_999);
  assert.equal(requests.length, 1);
  await clock.pass(1);
  assert.equal(requests.length, 2);
});

async function open(t, options) {
  const given = world(t, {page: 'https://app.test/'});
  const seen = await given.connect(options);
  await given.sockets[0].hello({cursor: 'a1'});
  return {...given, ...seen};
}

for (const [name, event] of [
  ['the network is back', ({browser}) => browser.happens('online')],
  ['the page is back from the back-forward cache', ({browser}) => browser.happens('pageshow', {persisted: true})],
  ['the machine slept', ({clock}) => (clock.sleep(60_000), clock.pass(10_000))],
  ['the machine slept, and its page is visible', ({clock, browser}) => (clock.sleep(60_000), browser.show('visible'))],
]) {
  test(`${name}: an open link is replaced, unseen, by one that is surely alive`, async (t) => {
    const given = await open(t);
    const {clock, sockets, told} = given;
    await event(given);
    await clock.pass(0);
    assert.equal(sockets.length, 2);
    assert.equal(sockets[1].cursor, 'a1');
    await sockets[1].hello({cursor: 'a1'});
    await clock.pass(1_000);
    assert.equal(sockets[0].closedWith, 1000);
    await sockets[1].message('1', {cursor: 'a2,push-0-1'});
    assert.deepEqual(told, ['open', '1']);
  });
}

test('while the network is not back yet, an open link goes on', async (t) => {
  const {browser, clock, sockets, requests, told} = await open(t);
  await browser.happens('online');
  await clock.pass(0);
  await sockets[1].end();
  await requests[0].fail();
  await requests[1].fail();
  await sockets[0].message('1');
  assert.deepEqual(told, ['open', '1']);
  await clock.pass(1_000);
  assert.equal(sockets.length, 3);
});

test('a hidden page whose timers come once a minute was not asleep', async (t) => {
  const {browser, clock, sockets} = await open(t);
  for (let minutes = 0; minutes < 5; minutes += 1) {
    clock.freeze(60_000 - 10_000);
    await sockets[0].say({control: 'heartbeat'});
    await clock.pass(10_000);
    await sockets[0].say({control: 'heartbeat'});
  }
  await browser.show('visible');
  assert.equal(sockets.length, 1);
});

test('a client that is closed listens to nothing and waits for nothing', async (t) => {
  const {browser, clock, sockets, client, told} = await open(t);
  client.close();
  await browser.happens('online');
  await clock.pass(600_000);
  assert.deepEqual(told, ['open', 'close']);
  assert.equal(sockets.length, 1);
  assert.equal(clock.timers.size, 0);
  await settle();
});
