// The side of a group of tabs that has the link, in one of the tabs or in a worker.

import type {Connection, ConnectionEvents} from '../connection.js';
import type {Next} from '../ended.js';
import {asOfIn, covers, type FromHolder, type FromTab} from './forms.js';

/** Opens a connection that resumes from a cursor. */
export type Open = (cursor: string, events: ConnectionEvents) => Connection;

/** Keeps a link, tells all tabs what comes, and answers the tabs. */
export interface Holder {
  hear(form: FromTab): void;
  close(): void;
}

/**
 * `tell` gives a form to all tabs. `cursor`: how far the tabs have come. `link`: greater than the
 * numbers of earlier links that are known here. `wasOpen`: tabs had an earlier link.
 */
export function holderOf(
  open: Open,
  tell: (form: FromHolder) => void,
  cursor: string,
  link: number,
  wasOpen = false,
): Holder {
  let count: number;
  let start: string;
  let stopped: boolean;
  let connection: Connection;

  link = Math.max(link, Date.now());
  begin(cursor);
  return {
    hear(form) {
      if (form.kind === 'ping') sayHere();
      else if (form.link === link) beginAgain(form.asOf);
    },
    close,
  };

  function close(): void {
    stopped = true;
    connection.close();
  }

  /** What a tab lacks comes again, for all tabs: the tabs that have it know it by position. */
  function beginAgain(asOf: string): void {
    close();
    // What another tab lacks may be on its way still.
    const last = asOfIn(connection.cursor);
    link += 1;
    begin(covers(last, asOf) ? last : asOf);
  }

  function begin(from: string): void {
    count = 0;
    start = asOfIn(from);
    stopped = false;
    let next: Next = 'LATER';
    const gap = () => tell({kind: 'gap', link});
    connection = open(from, {
      open() {
        sayHere();
        // Between this link and an earlier link there was nobody.
        if (wasOpen && !from) gap();
        wasOpen = false; // of its own reconnects a connection knows
      },
      form(form) {
        if (form.data !== undefined) count += 1;
        tell({kind: 'form', link, form, count});
      },
      gap,
      error(failure, after) {
        next = after;
        sayHere();
        tell({kind: 'error', link, failure});
      },
      close() {
        if (!stopped) tell({kind: 'over', link, next});
      },
    });
    sayHere();
  }

  function sayHere(): void {
    const {cursor, state, transport} = connection;
    const hidden = Boolean(globalThis.document?.hidden);
    tell({kind: 'here', link, count, start, cursor, state, transport, hidden});
  }
}
