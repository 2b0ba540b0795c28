// Tokens are renewed ahead of their end, unseen by the page, and refused tokens are replaced once.

import assert from 'node:assert/strict';
import test from 'node:test';

import {jwt, world} from './support/world.js';

test('an event stream is followed by one with a new token, thirty seconds ahead', async (t) => {
  const {clock, requests, connect} = world(t);
  const tokens = [jwt(50_000), jwt(500_000)];
  const {told} = await connect({transport: 'sse', token: async () => tokens.shift()});
  await requests[0].hello('a1');
  await clock.pass(24_999);
  assert.equal(requests.length, 1);
  await clock.pass(1);
  assert.equal(requests.length, 2);
  assert.equal(requests[1].url.search, '?cursor=a1');
  assert.notEqual(requests[1].token, requests[0].token);
  await requests[1].hello('a1');
  await requests[0].message('1', 'a1,push-0-1');
  await clock.pass(1_000);
  assert.ok(requests[0].aborted);
  await requests[1].message('1', 'a1,push-0-1');
  await requests[1].message('2', 'a1,push-0-2');
  assert.deepEqual(told, ['open', '1', '2']);
});

test('a poll brings the new token, thirty seconds ahead', async (t) => {
  const {clock, requests, connect} = world(t);
  const [first, second, third] = [jwt(100_000), jwt(170_000), jwt(500_000)];
  const tokens = [first, second, third];
  const {told} = await connect({transport: 'poll', token: () => tokens.shift()});
  await requests[0].polled('k.s.1');
  for (const expected of [first, first, first, second, second, second, third]) {
    assert.equal(requests.at(-1).token, expected);
    await clock.pass(25_000);
    await requests.at(-1).polled('k.s.1');
  }
  assert.deepEqual(told, ['open']);
});

test('a function that fails for a while is asked again, until there is a token', async (t) => {
  const {clock, requests, connect} = world(t);
  const [first, second] = [jwt(100_000), jwt(500_000)];
  let asked = 0;
  const token = () => {
    asked += 1;
    if (asked === 1) return first;
    if (asked === 2) return first; // the backend has no other yet
    if (asked < 5) throw new Error('no backend');
    return second;
  };
  const {told} = await connect({transport: 'sse', token});
  await requests[0].hello();
  for (let passed = 0; passed < 99_000; passed += 9_000) {
    await requests[0].beat().catch(() => {});
    await clock.pass(9_000);
  }
  assert.equal(asked, 5);
  assert.equal(requests[1].token, second);
  assert.deepEqual(told, ['open']);
});

test('the first token may fail for as long as it likes', async (t) => {
  const {clock, sockets, connect} = world(t);
  let asked = 0;
  const token = async () => {
    asked += 1;
    if (asked < 5) throw new Error('no backend');
    return 't1';
  };
  const {told, errors} = await connect({token});
  for (const delay of [5_000, 10_000, 20_000, 40_000]) {
    assert.equal(told.at(-1), delay);
    await clock.pass(delay);
  }
  assert.equal(errors[0].reason, 'no backend');
  await sockets[0].hello();
  assert.equal(sockets[0].token, 't1');
});

for (const [name, token] of [
  ['a fixed token', () => jwt(100_000)],
  ['no JWT', () => () => 'opaque'],
  ['a token that seems over, by a clock that is ahead', () => () => jwt(-1_000)],
  ['a token that lives longer than timers', () => () => jwt(2 ** 31, String(Math.random()))],
]) {
  test(`${name} opens no second stream`, async (t) => {
    const {clock, requests, connect} = world(t);
    await connect({transport: 'sse', token: token()});
    await requests[0].hello();
    for (let passed = 0; passed < 150_000; passed += 10_000) {
      await requests[0].beat();
      await clock.pass(10_000);
    }
    assert.equal(requests.length, 1);
  });
}

async function expiring(t, token) {
  const given = world(t);
  const seen = await given.connect({token});
  const [socket] = given.sockets;
  const sent = (socket.sent = []);
  socket.send = (text) => sent.push(JSON.parse(text).token);
  await socket.hello();
  await socket.say({control: 'expiring', in_ms: 30_000});
  return {...given, ...seen, socket, sent};
}

test('a WebSocket stays, and takes the new token', async (t) => {
  const tokens = ['t1', 't2', 't3'];
  const {socket, sent, told, sockets} = await expiring(t, () => tokens.shift());
  await socket.say({control: 'refreshed', expires_in_ms: 90_000});
  await socket.say({control: 'expiring', in_ms: 30_000});
  assert.deepEqual(sent, ['t2', 't3']);
  assert.deepEqual(told, ['open']);
  assert.equal(sockets.length, 1);
});

test('a WebSocket is refreshed as soon as the page has a token that is taken', async (t) => {
  const answers = ['t1', null, null, 't2', 't3'];
  const token = () => {
    const answer = answers.shift();
    if (!answer) throw new Error('no backend');
    return answer;
  };
  const {clock, socket, sent} = await expiring(t, token);
  await clock.pass(15_000);
  await socket.say({control: 'heartbeat'});
  await clock.pass(7_500);
  assert.deepEqual(sent, ['t2']);
  await socket.say({control: 'refused', reason: 'token refused'});
  await clock.pass(3_750);
  assert.deepEqual(sent, ['t2', 't3']);
});

test('the tries to refresh end with the token', async (t) => {
  let asked = 0;
  const {clock, socket, sent} = await expiring(t, () => {
    asked += 1;
    return 't1';
  });
  for (const expected of [6, 7, 7, 7]) {
    await clock.pass(29_000);
    await socket.say({control: 'heartbeat'});
    assert.equal(asked, expected);
  }
  assert.deepEqual(sent, []);
});

test('an empty token is no new token for a WebSocket', async (t) => {
  const tokens = ['t1', '', 't2'];
  const {clock, sent} = await expiring(t, () => tokens.shift());
  assert.deepEqual(sent, []);
  await clock.pass(15_000);
  assert.deepEqual(sent, ['t2']);
});

test('an empty token is no new token for polls', async (t) => {
  const {clock, requests, connect} = world(t);
  const tokens = [jwt(50_000), ''];
  await connect({transport: 'poll', token: () => tokens.shift()});
  await requests[0].polled('k.s.1');
  await clock.pass(25_000);
  await requests[1].polled('k.s.1');
  assert.deepEqual(tokens, []);
  assert.equal(requests[2].token, requests[0].token);
});

test('a token that is refused is replaced once', async (t) => {
  const {clock, requests, connect} = world(t);
  const tokens = ['t1', 't2', 't3'];
  const {told} = await connect({transport: 'sse', token: () => tokens.shift()});
  await requests[0].answer(401, 'token refused: expired 12 s ago');
  await clock.pass(1_000);
  assert.equal(requests[1].token, 't2');
  await requests[1].answer(401, 'token refused');
  assert.deepEqual(told, [1_000, null, 'close']);
});

test('a refused token that is the only one ends the connection', async (t) => {
  const {requests, connect} = world(t);
  const {told, errors, client} = await connect({transport: 'sse'});
  await requests[0].answer(401, 'token refused: signed with another key\n');
  assert.deepEqual(told, [null, 'close']);
  assert.equal(errors[0].reason, 'the gateway answered 401 token refused: signed with another key');
  assert.equal(client.state, 'closed');
});
