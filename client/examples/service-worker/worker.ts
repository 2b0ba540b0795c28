// The service worker: it has the connection, and passes messages on to all pages of its scope.

/// <reference lib="webworker" />

import {PushClient} from 'pushgate-client';

declare const self: ServiceWorkerGlobalScope;

const gateway = import.meta.env.VITE_PUSHGATE_URL ?? 'http://localhost:8080';
let client: PushClient | null = null;

self.addEventListener('install', () => self.skipWaiting());
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));
self.addEventListener('message', (event) => {
  if (client) return;
  client = new PushClient(gateway, {token: event.data.token});
  event.waitUntil(passOn(client));
});

async function passOn(source: PushClient): Promise<void> {
  for await (const {id, type, data} of source) {
    for (const page of await self.clients.matchAll()) page.postMessage({id, type, data});
  }
  client = null; // closed: the next page that asks begins anew
}
