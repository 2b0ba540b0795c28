// How far a page has come, for the next gateway.

import {forgetOldest} from './bounds.js';
import type {Form} from './form.js';

const CURSOR = /^[0-9a-z]+(?:,[\w.-]+-\d+-\d+)*$/;
/** As many as a gateway takes in one cursor. */
const MAX_POSITIONS = 64;
/** A position is dropped so long after its message, see `moveTime`. */
const POSITION_MS = 120_000;

/**
 * In a cursor, `<as-of>[,<topic>-<partition>-<offset>…]`, as-of is a time: the page has everything
 * that had its outcome before. Of a partition with a position, an offset in Kafka, the page has
 * everything up to the position.
 */
export interface Place {
  /** The cursor of the last poll; null where another transport has moved on since. */
  session?: string | null;
  /** What a link resumes from; empty before a gateway has sent a cursor. */
  readonly cursor: string;
  /** Be where a whole cursor says; be without a cursor where the text is none. */
  load(cursor: string): void;
  /** Forget the positions, and keep the time. */
  clear(): void;
  /**
   * Move on by the cursor of a message or a control; null is the cursor of a gateway that has none.
   * Returns whether the form is new to the page, as all are but repeated messages.
   */
  move(form: Form): boolean;
}

export function placeAt(cursor = ''): Place {
  /** By partition, of the last message: the offset, and when the page came there; newest last. */
  const positions = new Map<string, [offset: number, at: number]>();
  let asOf = '';

  const place: Place = {
    get cursor() {
      return asOf && [asOf, ...Array.from(positions, ([name, [offset]]) => `${name}-${offset}`)].join();
    },
    load(cursor) {
      const [time, ...all] = parts(cursor);
      positions.clear();
      asOf = time!;
      all.forEach(moveOn);
    },
    clear: () => positions.clear(),
    move({cursor, data, session}) {
      if (session !== undefined) place.load(session.replace(/^[^,]*,/, ''));
      if (cursor === null) place.load('');
      const [time, ...all] = parts(cursor || '');
      if (!time) return true;
      place.session = null;
      if (time !== asOf) moveTime(time);
      // The last position is the message's own. A control repeats positions of earlier messages.
      return data === undefined || !all[0] || moveOn(all.pop()!);
    },
  };
  place.load(cursor);
  return place;

  /**
   * The last as-of counts, not the greatest: a link that resumes has the as-of with which it came,
   * until all that was missed has come.
   */
  function moveTime(time: string): void {
    asOf = time;
    // Only now, since positions are covered by an as-of that has moved on after them: not while the
    // page is away, nor before it has what it missed.
    const oldest = Date.now() - POSITION_MS;
    for (const [partition, [, at]] of positions) if (at < oldest) positions.delete(partition);
  }

  /** Returns false where the page has come to the position before. */
  function moveOn(position: string): boolean {
    const [, partition, digits] = /(.*)-(.*)/.exec(position)!;
    const offset = Number(digits);
    const last = positions.get(partition!);
    if (last && offset <= last[0]) return false;
    positions.delete(partition!); // set anew, it stands last
    positions.set(partition!, [offset, Date.now()]);
    forgetOldest(positions, MAX_POSITIONS);
    return true;
  }
}

/** The as-of and the positions in a cursor; an empty text alone where the text is no cursor. */
function parts(cursor: string): string[] {
  return CURSOR.test(cursor) ? cursor.split(',') : [''];
}
