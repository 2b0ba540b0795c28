// The time in which two links get the same messages.

import type {Form} from './form.js';

/** Ids to remember, and messages that may wait, during an overlap. */
const MAX_OVERLAP = 256;

/**
 * A message that was under way to the older link when the newer link opened comes on the older link
 * alone, unless the newer link resumes; and what is in no log, as what is pushed into a gateway, is
 * never brought again. So the older link goes on giving messages to the page, and messages of the
 * newer link wait for the older link's end: no message is missed or comes twice, and messages stay
 * in order. Repeats are known by id here, and by position in Place.
 */
export class Overlap {
  over = false;
  /** Of messages that came on the older link, and not yet on the newer. */
  private readonly ids = new Set<unknown>();
  /** Messages of the newer link. */
  private readonly waiting: Form[] = [];

  constructor(
    private readonly give: (form: Form, isRepeat?: boolean) => void,
    private readonly stopOlder: () => void,
  ) {}

  older(form: Form): void {
    this.give(form);
    if (form.data === undefined) return;
    this.ids.add(form.id);
    if (this.ids.size > MAX_OVERLAP) this.ids.delete(this.ids.values().next().value);
  }

  newer(form: Form): void {
    if (this.over) this.giveOnce(form);
    else if (this.waiting.push(form) === MAX_OVERLAP) this.stopOlder();
  }

  /** The older link has ended: give the waiting messages, without repeats. */
  settle(): void {
    this.over = true;
    for (const form of this.waiting.splice(0)) this.giveOnce(form);
  }

  private giveOnce(form: Form): void {
    this.give(form, this.ids.delete(form.id));
  }
}
