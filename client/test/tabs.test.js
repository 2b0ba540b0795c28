// Tabs that share a connection: one holds the link, and each gets everything once.

import assert from 'node:assert/strict';
import test from 'node:test';

import {browser} from './support/tabs.js';
import {jwt, settle} from './support/world.js';

const AS_OF = (1_700_000_000_000).toString(36);
const LATER = (1_700_000_030_000).toString(36);
const at = (offset, asOf = AS_OF) => ({cursor: `${asOf},push-0-${offset}`});

/** Two tabs, the first with the link, each with the messages 1 and 2. */
async function twoTabs(t) {
  const found = browser(t);
  const first = await found.open();
  await found.sockets[0].hello({cursor: AS_OF});
  const second = await found.open();
  await found.sockets[0].message('1', at(1));
  await found.sockets[0].message('2', at(2));
  return {...found, first, second};
}

test('tabs have one connection, and all have its state and messages', async (t) => {
  const {sockets, first, second} = await twoTabs(t);
  assert.equal(sockets.length, 1);
  for (const {client, told} of [first, second]) {
    assert.deepEqual(told, ['open', '1', '2']);
    assert.equal(client.state, 'open');
    assert.equal(client.transport, 'ws');
  }
});

test('when the tab with the link is closed, another resumes where it was', async (t) => {
  const {sockets, first, second} = await twoTabs(t);
  first.client.close();
  await sockets[0].end();
  assert.equal(sockets[0].closedWith, 1000);
  assert.equal(sockets[1].cursor, `${AS_OF}~push-0-2`);
  await sockets[1].hello({cursor: AS_OF});
  await sockets[1].message('2', at(2));
  await sockets[1].message('3', at(3));
  assert.deepEqual(second.told, ['open', '1', '2', '3']);
  assert.deepEqual(first.told, ['open', '1', '2', 'close']);
});

test('the link of a frozen tab is taken within 1.5 s, and is closed when it thaws', async (t) => {
  const {clock, sockets, first, second} = await twoTabs(t);
  await clock.pass(10_000);
  first.tab.isFrozen = true;
  await clock.pass(1_500);
  assert.equal(sockets.length, 2);
  await sockets[1].hello({cursor: AS_OF});
  await sockets[1].message('3', at(3));
  assert.deepEqual(second.told, ['open', '1', '2', '3']);
  assert.equal(sockets[0].closedWith, null);
  await first.tab.thaw();
  assert.equal(sockets[0].closedWith, 1000);
  await sockets[1].message('4', at(4));
  for (const {told} of [first, second]) assert.deepEqual(told, ['open', '1', '2', '3', '4']);
  await clock.pass(20_000);
  assert.equal(sockets.length, 2);
});

test('a tab that answers keeps the link', async (t) => {
  const {clock, sockets} = await twoTabs(t);
  await clock.pass(20_000);
  assert.equal(sockets.length, 1);
});

test('a tab that was away gets what it missed, and no tab anything twice', async (t) => {
  const {clock, sockets, first, second, inTab} = await twoTabs(t);
  await inTab(second.tab, () => second.tab.happens('freeze'));
  await sockets[0].message('3', at(3));
  await clock.pass(20_000);
  await inTab(second.tab, () => second.tab.happens('resume'));
  assert.equal(sockets[1].cursor, AS_OF);
  await sockets[1].hello({cursor: AS_OF});
  for (const offset of [1, 2, 3, 4]) await sockets[1].message(`${offset}`, at(offset));
  for (const {told} of [first, second]) assert.deepEqual(told, ['open', '1', '2', '3', '4']);
});

test('a tab that was away while nothing came costs no connection', async (t) => {
  const {sockets, second, inTab} = await twoTabs(t);
  await inTab(second.tab, () => second.tab.happens('pagehide'));
  await inTab(second.tab, () => second.tab.happens('pageshow'));
  await sockets[0].message('3', at(3));
  assert.equal(sockets.length, 1);
  assert.deepEqual(second.told, ['open', '1', '2', '3']);
});

test('a tab that was away for over a minute is told of a gap, alone', async (t) => {
  const {clock, sockets, first, second, inTab} = await twoTabs(t);
  await inTab(second.tab, () => second.tab.happens('freeze'));
  await sockets[0].message('3', at(3));
  for (let passed = 0; passed < 75_000; passed += 25_000) {
    await clock.pass(25_000);
    await sockets[0].say({control: 'heartbeat', cursor: LATER});
  }
  await inTab(second.tab, () => second.tab.happens('resume'));
  await sockets[0].message('4', at(4, LATER));
  assert.equal(sockets.length, 1);
  assert.deepEqual(second.told, ['open', '1', '2', 'gap', '4']);
  assert.deepEqual(first.told, ['open', '1', '2', '3', '4']);
});

test('what is lost among the tabs comes again', async (t) => {
  const {sockets, first, second} = await twoTabs(t);
  second.tab.loses = ({form}) => form?.id === '3';
  await sockets[0].message('3', at(3));
  await sockets[0].message('4', at(4));
  second.tab.loses = () => false;
  await sockets[1].hello({cursor: AS_OF});
  for (const offset of [3, 4, 5]) await sockets[1].message(`${offset}`, at(offset));
  for (const {told} of [first, second]) assert.deepEqual(told, ['open', '1', '2', '3', '4', '5']);
});

test('a new tab that finds a frozen one begins where the others are', async (t) => {
  const {clock, sockets, first, second, open} = await twoTabs(t);
  first.tab.isFrozen = true;
  second.tab.loses = ({kind}) => kind === 'ping'; // its own timers would be first
  const third = await open();
  await clock.pass(1_500);
  await sockets.at(-1).hello({cursor: AS_OF});
  await sockets.at(-1).message('3', at(3));
  assert.deepEqual(second.told, ['open', '1', '2', '3']);
  assert.equal(third.told.at(-1), '3');
});

test('messages without a position come once, by their ids, of which 256 are kept', async (t) => {
  const {sockets, first, second} = await twoTabs(t);
  const expected = ['open', '1', '2'];
  const others = Array.from(Array(256).keys(), (number) => `b${number}`);
  for (const id of ['a', 'a', ...others, 'a', 'a']) await sockets[0].message(id);
  expected.push('a', ...others, 'a');
  for (const {told} of [first, second]) assert.deepEqual(told, expected);
});

test('a gap is for all, and so is an error', async (t) => {
  const {sockets, first, second} = await twoTabs(t);
  await sockets[0].say({control: 'gap'});
  await sockets[0].end(4001, 'too slow');
  for (const {told, client} of [first, second]) {
    assert.deepEqual(told, ['open', '1', '2', 'gap', 1_000]);
    assert.equal(client.state, 'waiting');
  }
});

test('"stay away" ends all tabs', async (t) => {
  const {clock, sockets, first, second} = await twoTabs(t);
  await sockets[0].end(4003, 'disconnected');
  await clock.pass(60_000);
  assert.equal(sockets.length, 1);
  for (const {told} of [first, second]) {
    assert.deepEqual(told, ['open', '1', '2', null, 'close']);
  }
});

test('a token that has expired ends its tab, and the next tab goes on with its own', async (t) => {
  const {sockets, open} = browser(t);
  const first = await open({token: jwt(10_000)});
  await sockets[0].hello({cursor: AS_OF});
  const second = await open({token: jwt(90_000)});
  await sockets[0].end(4002, 'token expired');
  assert.equal(first.client.state, 'closed');
  assert.notEqual(sockets[1].token, sockets[0].token);
  await sockets[1].hello({cursor: AS_OF});
  assert.equal(second.client.state, 'open');
});

test('tabs of two users share nothing', async (t) => {
  const {sockets, open} = browser(t);
  const tokenOf = (sub) => `x.${Buffer.from(JSON.stringify({sub})).toString('base64url')}.x`;
  for (const token of [tokenOf('a'), tokenOf('b'), tokenOf('a')]) await open({token});
  await open({token: tokenOf('a'), shared: 'apart'});
  assert.deepEqual(
    sockets.map(({token}) => token),
    [tokenOf('a'), tokenOf('b'), tokenOf('a')],
  );
});

test('tabs whose forms have another version, and so another number, share nothing', async (t) => {
  const {inTab, first} = await twoTabs(t);
  const other = inTab(first.tab, () => new BroadcastChannel('pushgate https://push.test/ ws true [null,null]'));
  other.onmessage = () => {};
  const here = {kind: 'here', count: 0, start: AS_OF, cursor: AS_OF, transport: null, hidden: false};
  other.postMessage({...here, link: Number.MAX_SAFE_INTEGER, state: 'waiting'});
  await settle();
  assert.equal(first.client.state, 'open');
  other.close();
});

test('a token that can not be had at first is asked for again', async (t) => {
  const {sockets, open, clock} = browser(t);
  let fails = true;
  const token = async () => {
    if (fails) throw new Error('no backend');
    return 't1';
  };
  const {told, client} = await open({token});
  assert.deepEqual(told, [5_000]);
  assert.equal(client.state, 'waiting');
  fails = false;
  await clock.pass(5_000);
  await sockets[0].hello();
  assert.deepEqual(told, [5_000, 'open']);
});

test('behind a gateway that does not resume, another link is a gap for all', async (t) => {
  const {sockets, open} = browser(t);
  const first = await open();
  await sockets[0].hello();
  const second = await open();
  const third = await open();
  first.client.close();
  await settle();
  await sockets[1].hello();
  for (const {told} of [second, third]) assert.deepEqual(told, ['open', 'gap']);
});

test('without Web Locks each page has a connection of its own', async (t) => {
  const {sockets, open} = browser(t);
  navigator.locks = undefined;
  await open();
  await open();
  assert.equal(sockets.length, 2);
});
