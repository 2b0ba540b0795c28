// HTTP requests to the gateway.

import {Ended} from './ended.js';
import type {Link} from './link.js';

const MAX_DETAIL = 200;

/**
 * Give the text of the gateway's 200 answer to `take`, in the pieces in which it arrives. Each piece
 * is a sign of life: a long answer over a slow network is no silence.
 *
 * Throws Ended for any other answer, with the gateway's reason; without `take` for each answer.
 */
export async function request(
  link: Link,
  path: string,
  take?: (text: string) => void,
): Promise<void> {
  const headers: HeadersInit = link.token ? {authorization: `Bearer ${link.token}`} : {};
  const response = await get(link, path, 'include', headers).catch((error) =>
    refusalBehind(link, error),
  );
  link.silence.heard();
  if (!take || response.status !== 200) throw await refusalIn(response);
  const reader = response.body!.getReader();
  const decoder = new TextDecoder();
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    link.silence.heard();
    take(decoder.decode(value, {stream: true}));
  }
}

/**
 * A page may not read the refusal of its origin where its request had a token or a cookie: the
 * browser reports a network error. The same request without both is refused alike, and readable.
 */
async function refusalBehind(link: Link, error: unknown): Promise<Response> {
  if (link.over.aborted || link.owner.base.origin === globalThis.location?.origin) throw error;
  const response = await get(link, 'ws', 'omit');
  if (response.status !== 403) throw error;
  return response;
}

function get(
  link: Link,
  path: string,
  credentials: RequestCredentials,
  headers?: HeadersInit,
): Promise<Response> {
  const {over: signal} = link;
  return fetch(new URL(path, link.owner.base), {credentials, headers, signal, cache: 'no-store'});
}

async function refusalIn(response: Response): Promise<Ended> {
  const {status} = response;
  const detail = (await response.text()).slice(0, MAX_DETAIL);
  const seconds = Number(response.headers.get('retry-after'));
  return new Ended(`the gateway answered ${status} ${detail}`.trim(), status, seconds * 1_000 || 0);
}
