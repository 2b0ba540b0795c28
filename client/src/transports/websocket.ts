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
    const cursor = link.cursor ? [`cursor.${link.cursor.replace(/,/g, '~')}`] : [];
    const bearer = link.token ? [`bearer.${link.token}`] : [];
    const socket = new WebSocket(url, ['pushgate.v1', ...cursor, ...bearer]);
    let open = false;
    link.controls.heartbeat = link.beat;
    link.controls.hello = (form) => {
      link.silence.expect(Number(form.heartbeat_ms));
      link.beat(form);
    };
    refreshInBand(link, (form) => socket.send(JSON.stringify(form)));
    socket.onopen = () => {
      open = true;
      link.silence.heard();
    };
    socket.onmessage = ({data}) => {
      if (link.signal.aborted) return; // the successor brings it, or is told of the gap
      link.silence.heard();
      const form = JSON.parse(data);
      link.opened();
      if ('data' in form) link.received(form);
      else link.controls[form.control]?.(form);
    };
    socket.onclose = ({code, reason}) => {
      link.silence.heard();
      if (open) reject(new Ended(reason || `closed with code ${code}`, code));
      // Browsers don't tell a page why a WebSocket handshake was refused. So the client sends a
      // request without an Upgrade to the same address, and the gateway gives the same answer: 401,
      // 403 or 503, or 426 to a client that it would admit.
      else if (!link.signal.aborted) request(link, 'ws').then(reject, reject);
    };
    link.signal.addEventListener('abort', () => {
      socket.close(1000);
      reject(new Ended('')); // without waiting for the gateway's Close frame
    });
  });
}

/** Replace the token of an open WebSocket when the gateway says that the token is about to expire. */
function refreshInBand(link: Link, send: (form: object) => void): void {
  let answer: ((taken: boolean) => void) | undefined;
  link.controls.refreshed = () => answer?.(true);
  link.controls.refused = () => answer?.(false);
  // If all tries fail, the gateway closes with 4002 when the token expires.
  link.controls.expiring = ({in_ms: inMs}) => {
    void renew(Number(inMs), link.signal, refresh);
  };

  async function refresh(): Promise<boolean> {
    const token = await link.owner.tokens.next().catch(() => link.token);
    // The page has no new token, or the option `token` is a fixed token.
    if (token === link.token || link.signal.aborted) return false;
    const answered = new Promise<boolean>((resolve) => {
      answer = resolve;
    });
    send({control: 'refresh', token});
    const taken = await answered;
    if (taken) link.token = token;
    return taken;
  }
}
