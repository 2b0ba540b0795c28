// The side of a group of tabs that has the link, in one of the tabs or in a worker.

import type {Connection, ConnectionEvents} from '../connection.js';
import type {Next} from '../ended.js';
import {asOfIn, covers, type FromHolder, type FromTab} from './forms.js';

/** Opens a connection that resumes from a cursor. */
export type Open = (cursor: string, events: ConnectionEvents) => Connection;

/** Keeps a link, tells all tabs what comes, and answers the tabs. */
export class Holder {
  private count = 0;
  private start = '';
  private next: Next = 'LATER';
  private stopped = false;
  private connection!: Connection;

  /**
   * `cursor`: how far the tabs have come. `link`: greater than the numbers of earlier links that
   * are known here. `wasOpen`: tabs had an earlier link. `tell` gives a form to all tabs.
   */
  constructor(
    private readonly open: Open,
    private readonly tell: (form: FromHolder) => void,
    cursor: string,
    private link: number,
    private wasOpen = false,
  ) {
    this.link = Math.max(link, Date.now());
    this.begin(cursor);
  }

  hear(form: FromTab): void {
    if (form.kind === 'ping') this.sayHere();
    else if (form.link === this.link) this.beginAgain(form.asOf);
  }

  close(): void {
    this.stopped = true;
    this.connection.close();
  }

  /** What a tab lacks comes again, for all tabs: the tabs that have it know it by position. */
  private beginAgain(asOf: string): void {
    this.close();
    // What another tab lacks may be on its way still.
    const last = asOfIn(this.connection.cursor);
    this.link += 1;
    this.begin(covers(last, asOf) ? last : asOf);
  }

  private begin(cursor: string): void {
    this.count = 0;
    this.start = asOfIn(cursor);
    this.stopped = false;
    const {link} = this;
    this.connection = this.open(cursor, {
      open: () => {
        this.sayHere();
        // Between this link and an earlier link there was nobody.
        if (this.wasOpen && !cursor) this.tell({kind: 'gap', link});
        this.wasOpen = false; // of its own reconnects a connection knows
      },
      form: (form) => {
        if (form.data !== undefined) this.count += 1;
        this.tell({kind: 'form', link, form, count: this.count});
      },
      gap: () => this.tell({kind: 'gap', link}),
      error: (failure, next) => {
        this.next = next;
        this.sayHere();
        this.tell({kind: 'error', link, failure});
      },
      close: () => {
        if (!this.stopped) this.tell({kind: 'over', link, next: this.next});
      },
    });
    this.sayHere();
  }

  private sayHere(): void {
    const {link, count, start} = this;
    const {cursor, state, transport} = this.connection;
    const hidden = Boolean(globalThis.document?.hidden);
    this.tell({kind: 'here', link, count, start, cursor, state, transport, hidden});
  }
}
