// WebSocket, with the subprotocol pushgate.v1.

import {Ended} from '../ended.js';
import type {Link} from '../link.js';
import {request} from '../request.js';
import {renew} from '../tokens.js';

export function webSocket(link: Link): Promise<never> {
  return new Promise((_, reject) => {
    const url = new URL('ws', link.owner.base);
    url.protocol = url.protocol.replace('http', 'ws');
    // A page can set no other field of the handshake; and browsers take no comma there.
    const cursor = link.cursor && `cursor.${link.cursor.replace(/,/g, '~')}`;
    const bearer = link.token && `bearer.${link.token}`;
    const protocols = ['pushgate.v1', cursor, bearer].filter(Boolean) as string[];
    const socket = new WebSocket(url, protocols);
    let open = false;
    link.controls.hello = link.controls.heartbeat = link.beat;
    refreshInBand(link, (form) => socket.send(JSON.stringify(form)));
    socket.onopen = () => {
      open = true;
      link.silence.heard();
    };
    socket.onmessage = ({data}) => {
      if (link.over.aborted) return; // the successor brings it, or is told of the gap
      link.silence.heard();
      const form = JSON.parse(data);
      if (form.data !== undefined) link.received(form);
      else link.controls[form.control]?.(form);
    };
    socket.onclose = ({code, reason}) => {
      link.silence.heard();
      if (open) reject(new Ended(reason || `closed with code ${code}`, code));
      // Browsers don't tell a page why a WebSocket handshake was refused. So the client sends a
      // request without an Upgrade to the same address, and the gateway gives the same answer: 401,
      // 403 or 503, or 426 to a client that it would admit.
      else if (!link.over.aborted) request(link, 'ws').catch(reject);
    };
    link.over.addEventListener('abort', () => socket.close(1000));
  });
}

/** Replace the token of an open WebSocket when the gateway says that the token is about to expire. */
function refreshInBand(link: Link, send: (form: object) => void): void {
  // If all tries fail, the gateway closes with 4002 when the token expires.
  link.controls.expiring = ({in_ms: inMs}) => void renew(inMs!, link.over, refresh);

  async function refresh(): Promise<boolean> {
    const token = await link.owner.tokens.newer(link.token);
    if (!token || link.over.aborted) return false;
    send({control: 'refresh', token});
    const taken = await new Promise<boolean>((resolve) => {
      link.controls.refreshed = () => resolve(true);
      link.controls.refused = () => resolve(false);
    });
    if (taken) link.token = token;
    return taken;
  }
}
