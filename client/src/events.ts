// What a client tells its page.

/** A message as it was published. */
export interface Message {
  readonly id: string;
  /** The message's event name; null for a message without a type. */
  readonly type: string | null;
  /** The payload: a string, or bytes where the payload is not UTF-8. */
  readonly data: string | Uint8Array;
}

/** How a connection was lost or refused, and when the client tries again. */
export interface Failure {
  /** The HTTP status of a refusal; null where there was no HTTP answer. */
  readonly status: number | null;
  /** The reason in words. */
  readonly reason: string;
  /** The client tries again in so many milliseconds; null: the client has given up. */
  readonly retryIn: number | null;
}

/** A message has come. */
export class PushMessageEvent extends Event {
  readonly id: string;
  readonly messageType: string | null;
  readonly data: string | Uint8Array;

  constructor(readonly message: Message) {
    super('message');
    this.id = message.id;
    this.messageType = message.type;
    this.data = message.data;
  }
}

/** The connection was lost or refused. */
export class PushErrorEvent extends Event implements Failure {
  readonly status!: number | null;
  readonly reason!: string;
  readonly retryIn!: number | null;

  constructor(
    /** @internal */
    readonly failure: Failure,
  ) {
    super('error');
    Object.assign(this, failure);
  }
}

/** The events of a client, by name. */
export interface PushEventMap {
  message: PushMessageEvent;
  open: Event;
  gap: Event;
  error: PushErrorEvent;
  close: Event;
}

const EVENT_NAMES = ['open', 'message', 'gap', 'error', 'close'] as const;

/** Call `client.onopen` and so on with the detail of each event of the client. */
export function callHandlers(client: EventTarget, detail: (event: Event) => unknown): void {
  const handlers = client as unknown as Record<string, ((detail: unknown) => void) | null>;
  for (const name of EVENT_NAMES) {
    handlers[`on${name}`] = null;
    client.addEventListener(name, (event) => handlers[`on${name}`]?.(detail(event)));
  }
}
