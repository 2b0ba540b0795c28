// The side of a group of tabs that has the link, in one of the tabs or in a worker.

import {type Connection, type ConnectionOptions, openConnection} from '../connection.js';
import {isHidden} from '../page.js';
import {covers, type FromHolder, type FromTab} from './forms.js';

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
  options: ConnectionOptions,
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
      if (form.lacks === link) beginAgain(form.cursor!);
      else sayHere();
    },
    close,
  };

  function close(): void {
    stopped = true;
    connection.close();
  }

  /** What a tab lacks comes again, for all tabs: the tabs that have it know it by position. */
  function beginAgain(cursor: string): void {
    close();
    link += 1;
    // What another tab lacks may be on its way still.
    const first = covers(connection.cursor, cursor) ? connection.cursor : cursor;
    begin(first.split(',', 1)[0]!); // the time alone: the positions are of one tab
  }

  function begin(from: string): void {
    count = 0;
    start = from;
    stopped = false;
    connection = openConnection({...options, cursor: from}, (event) => {
      if (stopped) return;
      if (event.kind === 'form') count += Number(event.form.data !== undefined);
      else if (event.kind !== 'close') sayHere();
      tell({...event, link, count});
      if (event.kind !== 'open') return;
      // Between this link and an earlier link there was nobody.
      if (wasOpen && !from) tell({kind: 'gap', link, count});
      wasOpen = false; // of its own reconnects a connection knows
    });
    sayHere();
  }

  function sayHere(): void {
    const {cursor, state, transport} = connection;
    tell({kind: 'here', link, count, start, cursor, state, transport, hidden: isHidden()});
  }
}
