// The worker's file: one connection for the tabs at its ports, whose tokens it asks for.

import assert from 'node:assert/strict';
import test from 'node:test';

import {replace, settle, world} from './support/world.js';

const AS_OF = (1_700_000_000_000).toString(36);
const START = {kind: 'start', url: 'https://push.test/', transport: 'ws', cursor: '', link: 1};

let imports = 0;

/** A worker in a world of its own; `open` connects a tab. */
async function worker(t) {
  const found = world(t);
  replace(t, globalThis, {onconnect: null});
  await import(`../dist/worker.js?${(imports += 1)}`);
  const open = async (fields = {}) => {
    const got = [];
    const port = {postMessage: (form) => got.push(form)};
    globalThis.onconnect({ports: [port]});
    const say = async (form) => {
      port.onmessage({data: form});
      await settle();
    };
    await say({...START, hasToken: true, ...fields});
    const kinds = () => got.map(({kind}) => kind);
    const messages = () => got.flatMap(({form}) => form?.id ?? []);
    return {got, say, kinds, messages};
  };
  return {...found, open};
}

test('the tabs at all ports have one connection, with a token of theirs', async (t) => {
  const {sockets, open} = await worker(t);
  const first = await open();
  assert.deepEqual(first.kinds().sort(), ['here', 'token']);
  await first.say({kind: 'token', token: 't1'});
  assert.equal(sockets[0].token, 't1');
  const second = await open();
  await sockets[0].hello({cursor: AS_OF});
  await sockets[0].message('1', {cursor: `${AS_OF},push-0-1`});
  assert.equal(sockets.length, 1);
  for (const {messages} of [first, second]) assert.deepEqual(messages(), ['1']);
});

test('where a tab does not answer another is asked for a token', async (t) => {
  const {clock, sockets, open} = await worker(t);
  const first = await open();
  await first.say({kind: 'token', token: 't1'});
  await sockets[0].hello({cursor: AS_OF});
  const second = await open();
  await sockets[0].end(4001);
  await clock.pass(1_000);
  assert.deepEqual(second.kinds().slice(-1), ['token']);
  await clock.pass(10_000);
  assert.deepEqual(first.kinds().slice(-1), ['token']);
  await first.say({kind: 'token', token: 't2'});
  assert.equal(sockets[1].token, 't2');
});

test('why there is no token is told to all', async (t) => {
  const {open} = await worker(t);
  const tab = await open();
  await tab.say({kind: 'token', reason: 'no backend'});
  assert.equal(tab.got.at(-1).failure.reason, 'no backend');
});

test('with a cookie no tab is asked', async (t) => {
  const {sockets, open} = await worker(t);
  await open({hasToken: false});
  assert.equal(sockets[0].token, undefined);
});

test('a tab that says nothing gets 1,024 forms, and is there again when it asks', async (t) => {
  const {sockets, open} = await worker(t);
  const silent = await open({hasToken: false});
  const other = await open({hasToken: false});
  await sockets[0].hello({cursor: AS_OF});
  const total = 1_100;
  for (let number = 0; number < total; number += 1) {
    sockets[0].onmessage({data: JSON.stringify({id: `${number}`, type: null, data: ''})});
    if (number % 256 === 0) await other.say({kind: 'ping'});
  }
  assert.equal(silent.got.length, 1_024);
  assert.equal(other.messages().length, total);
  await silent.say({kind: 'ping'});
  assert.equal(silent.got.at(-1).count, total);
});

test('with the last tab the link is gone, and a tab that comes back resumes', async (t) => {
  const {sockets, open} = await worker(t);
  const tab = await open({hasToken: false});
  await tab.say({kind: 'bye'});
  assert.equal(sockets[0].closedWith, 1000);
  await open({hasToken: false, cursor: `${AS_OF},push-0-7`});
  assert.equal(sockets[1].cursor, `${AS_OF}~push-0-7`);
});

test('what a tab missed comes again for all', async (t) => {
  const {sockets, open} = await worker(t);
  const tab = await open({hasToken: false, cursor: AS_OF});
  await sockets[0].hello({cursor: AS_OF});
  await sockets[0].message('1', {cursor: `${AS_OF},push-0-1`});
  await tab.say({kind: 'ping', lacks: tab.got.at(-1).link, cursor: `${AS_OF},push-0-0`});
  assert.equal(sockets[0].closedWith, 1000);
  assert.equal(sockets[1].cursor, AS_OF);
});
