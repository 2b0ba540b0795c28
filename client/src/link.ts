// One link: a connection as a transport sees it.

import type {TransportName} from './choice.js';
import {asEnded, Ended} from './ended.js';
import type {Form} from './form.js';
import type {Overlap} from './overlap.js';
import type {Place} from './place.js';
import {Silence} from './silence.js';
import type {Tokens} from './tokens.js';
import {eventStream} from './transports/event_stream.js';
import {longPoll} from './transports/long_poll.js';
import {webSocket} from './transports/websocket.js';

/** A transport brings what comes on a link, and rejects with the link's end. */
const TRANSPORTS: Record<TransportName, (link: Link) => Promise<never>> = {
  ws: webSocket,
  sse: eventStream,
  poll: longPoll,
};

/** The connection that a link belongs to. */
export interface LinkOwner {
  /** The folder of the gateway's paths. */
  readonly base: URL;
  readonly place: Place;
  readonly tokens: Tokens;
  readonly closed: AbortSignal;
  opened(link: Link): void;
  /** Move on by a form's cursor, and give a message to the page, unless it is a repeat. */
  give(form: Form, isRepeat?: boolean): void;
  gap(): void;
  /** The gateway asks to open a second link after so many ms. */
  handOver(link: Link, afterMs: number): void;
}

/** A WebSocket, an event stream, or the polls of one attempt. */
export class Link {
  /** From where the link resumes; empty where it does not. */
  cursor: string;
  /** The gateway has said hello. */
  open = false;
  /** The predecessor was still there when the link opened. */
  covered = false;
  /** A successor is planned, or on its way. */
  leaving = false;
  /** The link that is taking over from this link. */
  successor: Link | null = null;
  /** With the successor, or with the predecessor. */
  overlap: Overlap | null = null;
  readonly silence: Silence;
  readonly controls: Map<unknown, (form: Form) => void>;
  /** Resolves with how the link has ended. */
  readonly ended: Promise<Ended>;
  readonly openOrEnded: Promise<unknown>;
  private readonly stopper = new AbortController();
  private resolveOpen!: () => void;

  constructor(
    readonly owner: LinkOwner,
    readonly name: TransportName,
    public token: string | undefined,
    isHasty: boolean,
  ) {
    this.cursor = owner.place.cursor;
    this.silence = new Silence(isHasty);
    this.controls = new Map([
      ['gap', this.gap],
      [
        'reconnect',
        (form: Form) => {
          this.received(form);
          owner.handOver(this, Number(form.after_ms));
        },
      ],
    ]);
    const opened = new Promise<void>((resolve) => {
      this.resolveOpen = resolve;
    });
    owner.closed.addEventListener('abort', this.stop, {signal: this.signal});
    this.ended = Promise.race([this.run(), this.silence.noticed(this.signal)])
      .catch(asEnded)
      .finally(this.stop);
    this.openOrEnded = Promise.race([opened, this.ended]);
  }

  /** Aborted by `stop`, and once the link has ended by itself. */
  get signal(): AbortSignal {
    return this.stopper.signal;
  }

  readonly stop = (): void => this.stopper.abort();

  /** The first form of the gateway has come. */
  opened(): void {
    if (this.open || this.signal.aborted) return;
    this.open = true;
    this.silence.greeted();
    this.covered = Boolean(this.overlap && !this.overlap.over);
    this.owner.opened(this);
    this.resolveOpen();
  }

  /**
   * A hello or a heartbeat. If it has no cursor, the gateway does not resume: it has ignored the
   * cursor with which the link came, and can't tell of the gap.
   */
  readonly beat = ({cursor = null}: Form): void => {
    this.received({cursor});
    if (cursor !== null || !this.cursor) return;
    this.cursor = '';
    if (!this.covered) this.gap();
  };

  /** Take a message, or a control for its cursor. */
  readonly received = (form: Form): void => {
    if (this.signal.aborted) return;
    if (!this.overlap) this.owner.give(form);
    else if (this.successor) this.overlap.older(form);
    else this.overlap.newer(form);
  };

  readonly gap = (): void => this.owner.gap();

  // Async, so that what a transport throws at once rejects too.
  private async run(): Promise<never> {
    return TRANSPORTS[this.name](this);
  }
}
