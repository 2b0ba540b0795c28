// The time in which two links get the same messages.

import {forgetOldest} from './bounds.js';
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
export interface Overlap {
  readonly over: boolean;
  /** Take a form of the older link. */
  older(form: Form): void;
  /** Take a form of the newer link. */
  newer(form: Form): void;
  /** The older link has ended: give the waiting messages, without repeats. */
  settle(): void;
}

export function overlap(
  give: (form: Form, isRepeat?: boolean) => void,
  stopOlder: () => void,
): Overlap {
  /** Of messages that came on the older link, and not yet on the newer. */
  const ids = new Set<unknown>();
  /** Messages of the newer link. */
  const waiting: Form[] = [];
  let over = false;
  const giveOnce = (form: Form) => give(form, ids.delete(form.id));

  return {
    get over() {
      return over;
    },
    older(form) {
      give(form);
      if (form.data === undefined) return;
      ids.add(form.id);
      forgetOldest(ids, MAX_OVERLAP);
    },
    newer(form) {
      if (over) giveOnce(form);
      else if (waiting.push(form) === MAX_OVERLAP) stopOlder();
    },
    settle() {
      over = true;
      waiting.splice(0).forEach(giveOnce);
    },
  };
}
