// Long-poll.

import {sleep} from '../delays.js';
import type {Link} from '../link.js';
import {request} from '../request.js';

const POLL_SECONDS = 25;
/** Least time between polls that are answered empty before their time. */
const POLL_PAUSE_MS = 1_000;

export async function longPoll(link: Link): Promise<never> {
  const {place} = link.owner;
  // Coming from another transport: the client's key, no session yet, and the cursor.
  place.session ||= link.cursor && `${key()}.0.0,${link.cursor}`;
  // The first poll does not wait: its answer at once tells that the session is open, a new session
  // or the session of the cursor.
  for (let wait = 0; ; wait = POLL_SECONDS) {
    const pause = sleep(POLL_PAUSE_MS, link.over);
    link.silence.heard(wait * 1_000);
    const after = place.session && `&cursor=${encodeURIComponent(place.session)}`;
    let json = '';
    await request(link, `poll?wait=${wait}${after}`, (text) => {
      json += text;
    });
    const answer = JSON.parse(json);
    link.opened();
    if (answer.gap) link.owner.gap();
    place.session = answer.cursor;
    answer.messages.forEach(link.received);
    link.received({session: answer.cursor});
    if (wait && !answer.messages.length) await pause;
  }
}

/** A client's own key, by which each node knows the client's session: 32 characters at most. */
function key(): string {
  return Date.now() + Math.random().toString(36).slice(2);
}
