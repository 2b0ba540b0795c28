// HTTP requests to the gateway.

import {Ended} from './ended.js';
import type {Link} from './link.js';

const MAX_DETAIL = 200;

/** The gateway's 200 answer; throws Ended for any other, with the gateway's reason. */
export async function request(link: Link, path: string): Promise<Response> {
  const headers = link.token ? {authorization: `Bearer ${link.token}`} : undefined;
  const response = await get(link, path, {headers, credentials: 'include'}).catch((error) =>
    refusalBehind(link, error),
  );
  link.silence.heard();
  if (response.status === 200) return response;
  throw await refusalIn(response);
}

/**
 * A page may not read the refusal of its origin where its request had a token or a cookie: the
 * browser reports a network error. The same request without both is refused alike, and readable.
 */
async function refusalBehind(link: Link, error: unknown): Promise<Response> {
  if (link.signal.aborted || link.owner.base.origin === globalThis.location?.origin) throw error;
  const response = await get(link, 'ws', {credentials: 'omit'}).catch(() => null);
  if (response?.status !== 403) throw error;
  return response;
}

function get(link: Link, path: string, options: RequestInit): Promise<Response> {
  return fetch(new URL(path, link.owner.base), {
    ...options,
    signal: link.signal,
    cache: 'no-store',
  });
}

async function refusalIn(response: Response): Promise<Ended> {
  const {status} = response;
  const detail = (await response.text()).slice(0, MAX_DETAIL);
  const seconds = Number(response.headers.get('retry-after'));
  return new Ended(`the gateway answered ${status} ${detail}`.trim(), status, seconds * 1_000 || 0);
}

/**
 * Take the text of a response's body, in the pieces in which it arrives. Each is a sign of life: a
 * long answer over a slow network is no silence.
 */
export async function read(
  response: Response,
  link: Link,
  take: (text: string) => void,
): Promise<void> {
  const reader = response.body!.getReader();
  const decoder = new TextDecoder();
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    link.silence.heard();
    take(decoder.decode(value, {stream: true}));
  }
}
