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
  handOver(link: Link, afterMs: number): Promise<void>;
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
  successor?: Link | null;
  /** With the predecessor. */
  overlap?: Overlap;
  readonly silence: Silence;
  /** By the control's name. */
  readonly controls: Record<string, ((form: Form) => void) | undefined>;
  /** Aborted by `stop`, and once the link has ended by itself. */
  readonly over: AbortSignal;
  readonly stop: () => void;
  /** Resolves with how the link has ended. */
  readonly ended: Promise<Ended>;
  /** The first hello, message or answer of the gateway has come. */
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

  const link = {
    owner,
    name,
    token,
    cursor: owner.place.cursor,
    silence: silence(isHasty),
    controls: {
      __proto__: null as never,
      gap: owner.gap,
      reconnect(form: Form) {
        link.received(form);
        void owner.handOver(link, form.after_ms!);
      },
    },
    over: signal,
    stop,
    opened() {
      if (link.open || signal.aborted) return;
      link.open = true;
      link.silence.greeted();
      link.covered = Boolean(link.overlap?.lasts);
      owner.opened(link);
      void link.overlap?.begin(signal);
    },
    beat({cursor = null, heartbeat_ms: everyMs}) {
      link.received({cursor});
      link.silence.heard(everyMs);
      if (cursor !== null || !link.cursor) return;
      link.cursor = '';
      if (!link.covered) owner.gap();
    },
    received(form) {
      if (signal.aborted) return;
      link.opened();
      if (link.successor) link.successor.overlap!.older(form);
      else if (link.overlap) link.overlap.newer(form);
      else owner.give(form);
    },
  } as Partial<Link> as Mutable<Link>;
  owner.closed.addEventListener('abort', stop, {signal});
  link.ended = Promise.race([TRANSPORTS[name](link), link.silence.noticed(signal)])
    .catch(asEnded)
    .finally(stop);
  return link;
}
