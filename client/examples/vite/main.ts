// One connection for all tabs, kept by a SharedWorker where the browser has them.

import {PushClient} from 'pushgate-client';
// Vite bundles the package's worker and serves it from the page's own origin.
import workerUrl from 'pushgate-client/worker?sharedworker&url';

const gateway = import.meta.env.VITE_PUSHGATE_URL ?? 'http://localhost:8080';
// A page of yours asks its own backend for the token of its user. Here: ?token=, from
// `pushgate token USER`.
const token = new URLSearchParams(location.search).get('token') ?? '';

const client = new PushClient(gateway, {token, shared: true, workerUrl});
const state = document.querySelector('#state')!;
const list = document.querySelector('#messages')!;

for (const name of ['open', 'error', 'close'] as const) {
  client.addEventListener(name, () => {
    state.textContent = client.state;
  });
}
client.addEventListener('message', ({data, messageType}) => {
  const item = document.createElement('li');
  item.textContent = messageType ? `${messageType}: ${data}` : String(data);
  list.append(item);
});
client.addEventListener('gap', () => {
  state.textContent = 'open, but something was missed: fetch it afresh';
});
