// The page: it starts the service worker and shows what that passes on.

import workerUrl from './worker.ts?worker&url';

const token = new URLSearchParams(location.search).get('token') ?? '';
await navigator.serviceWorker.register(workerUrl, {type: 'module', scope: './'});
const {active} = await navigator.serviceWorker.ready;

navigator.serviceWorker.addEventListener('message', ({data}) => {
  const item = document.createElement('li');
  item.textContent = data.data;
  document.querySelector('#messages')!.append(item);
});
// Browsers end a service worker that seems idle: while the page is there, it asks again.
const ask = () => active!.postMessage({token});
ask();
setInterval(ask, 20_000);
