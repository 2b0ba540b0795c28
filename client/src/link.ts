// One link: a connection as a transport sees it.

import type {TransportName} from './choice.js';
import {asEnded, type Ended} from './ended.js';
import type {Form} from './form.js';
import type {Overlap} from './overlap.js';
import type {Place} from './place.js';
import {type Silence, silence} from './silence.js';
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

type Mutable<T> = {-readonly [Key in keyof T]: T[Key]};

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
export interface Link {
  readonly owner: LinkOwner;
  readonly name: TransportName;
  token: string | undefined;
  /** From where the link resumes; empty where it does not. */
  cursor: string;
  /** The gateway has said hello. */
  open: boolean;
  /** The predecessor was still there when the link opened. */
  covered: boolean;
  /** A successor is planned, or on its way. */
  leaving: boolean;
  /** The link that is taking over from this link. */
  successor: Link | null;
  /** With the successor, or with the predecessor. */
  overlap: Overlap | null;
  readonly silence: Silence;
  /** By the control's name. */
  readonly controls: Record<string, ((form: Form) => void) | undefined>;
  /** Aborted by `stop`, and once the link has ended by itself. */
  readonly signal: AbortSignal;
  readonly stop: () => void;
  /** Resolves with how the link has ended. */
  readonly ended: Promise<Ended>;
  readonly openOrEnded: Promise<unknown>;
  /** The first form of the gateway has come. */
  opened(): void;
  /**
   * A hello or a heartbeat. If it has no cursor, the gateway does not resume: it has ignored the
   * cursor with which the link came, and can't tell of the gap.
   */
  beat(form: Form): void;
  /** Take a message, or a control for its cursor. */
  received(form: Form): void;
}

/** `isHasty`: another transport can be tried where no hello comes. */
export function openLink(
  owner: LinkOwner,
  name: TransportName,
  token: string | undefined,
  isHasty: boolean,
): Link {
  const stopper = new AbortController();
  const {signal} = stopper;
  const stop = () => stopper.abort();
  let resolveOpen: (value?: unknown) => void;
  const opened = new Promise((resolve) => (resolveOpen = resolve));
  const isCovered = () => Boolean(link.overlap && !link.overlap.over);

  const link = {
    owner,
    name,
    token,
    cursor: owner.place.cursor,
    successor: null,
    overlap: null,
    silence: silence(isHasty),
    controls: {
      __proto__: null as never,
      gap: owner.gap,
      reconnect(form: Form) {
        link.received(form);
        owner.handOver(link, Number(form.after_ms));
      },
    },
    signal,
    stop,
    opened() {
      if (link.open || signal.aborted) return;
      link.open = true;
      link.silence.greeted();
      link.covered = isCovered();
      owner.opened(link);
      resolveOpen();
    },
    beat({cursor = null}) {
      link.received({cursor});
      if (cursor !== null || !link.cursor) return;
      link.cursor = '';
      if (!link.covered) owner.gap();
    },
    received(form) {
      if (signal.aborted) return;
      if (!link.overlap) owner.give(form);
      else if (link.successor) link.overlap.older(form);
      else link.overlap.newer(form);
    },
  } as Partial<Link> as Mutable<Link>;
  owner.closed.addEventListener('abort', stop, {signal});
  link.ended = Promise.race([TRANSPORTS[name](link), link.silence.noticed(signal)])
    .catch(asEnded)
    .finally(stop);
  link.openOrEnded = Promise.race([opened, link.ended]);
  return link;
}
