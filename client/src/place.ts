// How far a page has come, for the next gateway.

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
export class Place {
  /** The cursor of the last poll; null where another transport has moved on since. */
  session: string | null = null;
  /** By partition, of the last message; newest last. */
  private readonly positions = new Map<string, {offset: number; at: number}>();
  private asOf: string | null = null;

  constructor(cursor = '') {
    this.load(cursor);
  }

  /** What a link resumes from; empty before a gateway has sent a cursor. */
  get cursor(): string {
    if (this.asOf === null) return '';
    const positions = Array.from(this.positions, ([name, {offset}]) => `${name}-${offset}`);
    return [this.asOf, ...positions].join(',');
  }

  /** Be where a whole cursor says; be without a cursor where the text is none. */
  load(cursor: string): void {
    this.forget();
    if (!CURSOR.test(cursor)) return;
    const [asOf, ...positions] = cursor.split(',');
    this.asOf = asOf!;
    for (const position of positions) this.moveOn(position);
  }

  /** Forget the positions, and keep the time. */
  clear(): void {
    this.positions.clear();
  }

  /**
   * Move on by the cursor of a message or a control; null is the cursor of a gateway that has none.
   * Returns whether the form is new to the page, as all are but repeated messages.
   */
  move({cursor, data, session}: Form): boolean {
    if (session !== undefined) this.load(session.slice(session.indexOf(',') + 1));
    if (cursor === null) this.forget();
    if (typeof cursor !== 'string' || !CURSOR.test(cursor)) return true;
    this.session = null;
    const [asOf, ...positions] = cursor.split(',');
    if (asOf !== this.asOf) this.moveTime(asOf!);
    // The last position is the message's own. A control repeats positions of earlier messages.
    return data === undefined || !positions.length || this.moveOn(positions.pop()!);
  }

  private forget(): void {
    this.asOf = null;
    this.clear();
  }

  /**
   * The last as-of counts, not the greatest: a link that resumes has the as-of with which it came,
   * until all that was missed has come.
   */
  private moveTime(asOf: string): void {
    this.asOf = asOf;
    // Only now, since positions are covered by an as-of that has moved on after them: not while the
    // page is away, nor before it has what it missed.
    const oldest = Date.now() - POSITION_MS;
    for (const [partition, {at}] of this.positions) {
      if (at < oldest) this.positions.delete(partition);
    }
  }

  /** Returns false where the page has come to the position before. */
  private moveOn(position: string): boolean {
    const end = position.lastIndexOf('-');
    const partition = position.slice(0, end);
    const offset = Number(position.slice(end + 1));
    const last = this.positions.get(partition);
    if (last && offset <= last.offset) return false;
    this.positions.delete(partition); // set anew, it stands last
    this.positions.set(partition, {offset, at: Date.now()});
    if (this.positions.size > MAX_POSITIONS) {
      this.positions.delete(this.positions.keys().next().value!);
    }
    return true;
  }
}
