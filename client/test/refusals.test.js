// The client learns why it is refused, and says so.

import assert from 'node:assert/strict';
import test from 'node:test';

import {world} from './support/world.js';

const ELSEWHERE = {page: 'https://app.test/'};
const FOREIGN = 'this origin is not allowed; see PUSHGATE_ORIGINS';

test('a foreign origin is told by a request without token and cookie, and stays away', async (t) => {
  const {browser, clock, sockets, requests, connect} = world(t, ELSEWHERE);
  const {told, errors} = await connect();
  await sockets[0].end(); // refused with 403, as browsers don't tell
  assert.equal(requests[0].token, 't1');
  assert.equal(requests[0].credentials, 'include');
  await requests[0].fail(); // its preflight was refused
  assert.equal(requests[1].credentials, 'omit');
  assert.deepEqual(requests[1].headers, {});
  await requests[1].answer(403, FOREIGN);
  assert.deepEqual(errors, [
    {status: 403, reason: `the gateway answered 403 ${FOREIGN}`, retryIn: null},
  ]);
  assert.deepEqual(told, [null, 'close']);
  await browser.happens('online');
  await clock.pass(600_000);
  assert.equal(sockets.length, 1);
  assert.equal(requests.length, 2);
});

for (const transport of ['sse', 'poll']) {
  test(`${transport}: a foreign origin is told likewise`, async (t) => {
    const {requests, connect} = world(t, ELSEWHERE);
    const {errors} = await connect({transport});
    await requests[0].fail();
    await requests[1].answer(403, FOREIGN);
    assert.match(errors[0].reason, /PUSHGATE_ORIGINS/);
    assert.equal(errors[0].retryIn, null);
  });
}

test('where the network fails the probe fails too, and the client tries again', async (t) => {
  const {clock, requests, connect} = world(t, ELSEWHERE);
  const {told, errors} = await connect({transport: 'sse'});
  await requests[0].fail();
  await requests[1].fail();
  assert.deepEqual(errors, [{status: null, reason: 'Failed to fetch', retryIn: 5_000}]);
  await clock.pass(5_000);
  assert.equal(requests.length, 3);
  assert.deepEqual(told, [5_000]);
});

test('an answer to the probe that is no refusal of the origin says nothing', async (t) => {
  const {requests, connect} = world(t, ELSEWHERE);
  const {errors} = await connect({transport: 'sse'});
  await requests[0].fail();
  await requests[1].answer(401, 'no token');
  assert.deepEqual(errors, [{status: null, reason: 'Failed to fetch', retryIn: 5_000}]);
});

test("the gateway's own page needs no probe", async (t) => {
  const {requests, connect} = world(t, {page: 'https://push.test/page'});
  await connect({transport: 'sse'});
  await requests[0].fail();
  assert.equal(requests.length, 1);
});

test('another server that answers the probe is no gateway, and its answer is the reason', async (t) => {
  const {clock, sockets, requests, connect} = world(t);
  const {errors} = await connect();
  await sockets[0].end();
  await requests[0].answer(200, 'a page');
  assert.deepEqual(errors, [{status: 200, reason: 'the gateway answered 200 a page', retryIn: 5_000}]);
  await clock.pass(5_000);
  assert.equal(sockets.length, 2);
});

test('long reasons are cut', async (t) => {
  const {requests, connect} = world(t);
  const {errors} = await connect({transport: 'poll'});
  await requests[0].answer(503, 'x'.repeat(10_000));
  assert.equal(errors[0].reason.length, 'the gateway answered 503 '.length + 200);
});

test('204 tells a client to stay away', async (t) => {
  const {requests, connect} = world(t);
  const {told} = await connect({transport: 'sse'});
  await requests[0].answer(204);
  assert.deepEqual(told, [null, 'close']);
});
