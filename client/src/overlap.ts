// The time in which two links get the same messages.

import {forgetOldest} from './bounds.js';
import {sleep} from './delays.js';
import type {Form} from './form.js';

/** How long the older link stays after the newer link has opened. */
export const OVERLAP_MS = 1_000;
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
  /** The older link has not ended. */
  lasts: boolean;
  /** The newer link, whose signal is given, is open. */
  begin(signal: AbortSignal): Promise<void>;
  /** Take a form of the older link. */
  older(form: Form): void;
  /** Take a form of the newer link. */
  newer(form: Form): void;
  /** The older link has ended: give the waiting messages, without repeats. */
  settle(): void;
}

export function overlapOf(
  give: (form: Form, isRepeat?: boolean) => void,
  stopOlder: () => void,
): Overlap {
  /** Of messages that came on the older link, and not yet on the newer. */
  const ids = new Set<unknown>();
  /** Messages of the newer link. */
  const waiting: Form[] = [];
  const giveOnce = (form: Form) => give(form, ids.delete(form.id));

  const overlap: Overlap = {
    lasts: true,
    async begin(signal) {
      if (!(await sleep(OVERLAP_MS, signal))) stopOlder();
    },
    older(form) {
      give(form);
      if (form.data === undefined) return;
      ids.add(form.id);
      forgetOldest(ids, MAX_OVERLAP);
    },
    newer(form) {
      if (!overlap.lasts) giveOnce(form);
      else if (waiting.push(form) === MAX_OVERLAP) stopOlder();
    },
    settle() {
      overlap.lasts = false;
      waiting.splice(0).forEach(giveOnce);
    },
  };
  return overlap;
}
