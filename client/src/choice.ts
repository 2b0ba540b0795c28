// Which transport is tried next.

/** WebSocket, server-sent events, long-poll. */
export type TransportName = 'ws' | 'sse' | 'poll';
/** `auto`: the best transport that passes. */
export type TransportOption = TransportName | 'auto';

/** The best first. */
const ALL: readonly TransportName[] = ['ws', 'sse', 'poll'];
/** How long the client is content with a lower transport before it tries a higher one again. */
const CONTENT_MS = 600_000;
/** A link that has just opened is left alone for so long. */
const SETTLED_MS = 2_000;

/** Remembers for a host, over page loads, the transport that passed and when it was chosen. */
export interface Choice {
  /** What an attempt to connect begins with. */
  readonly first: TransportName;
  /** In how many ms a higher transport is tried again. */
  readonly contentMs: number;
  below(name: TransportName): TransportName | undefined;
  above(name: TransportName): readonly TransportName[];
  /** A link of this transport is open: higher ones did not pass, or were `tried` in vain again. */
  passed(name: TransportName, tried?: boolean): void;
}

/** Throws a TypeError for an option that is none, or that this JavaScript runtime can't serve. */
export function choiceOf(host: string, option: TransportOption = 'auto'): Choice {
  const possible = ALL.filter((name) => name !== 'ws' || globalThis.WebSocket);
  const names = possible.filter((name) => option === 'auto' || option === name);
  const key = `pushgate ${host}`;
  let first = names[0]!;
  /** When higher transports were last found not to pass, in epoch milliseconds. */
  let triedAt = 0;
  if (!first) throw new TypeError(`transport ${option}: here it is auto or ${possible}`);
  const [name, at] = stored(key).split(' ');
  if (names[1] && names.includes(name as TransportName)) {
    first = name as TransportName;
    triedAt = Math.min(Number(at), Date.now()) || 0;
  }

  return {
    get first() {
      return first;
    },
    get contentMs() {
      return Math.max(SETTLED_MS, triedAt + CONTENT_MS - Date.now());
    },
    below: (name) => names[names.indexOf(name) + 1],
    above: (name) => names.slice(0, names.indexOf(name)),
    passed(name, tried = name !== first) {
      if (!tried) return;
      first = name;
      triedAt = Date.now();
      stored(key, `${name} ${triedAt}`);
    },
  };
}

/** The text under `key` in the page's memory, after a `text` is set; empty where there is none. */
function stored(key: string, text?: string): string {
  try {
    // Node.js warns of its localStorage: pages alone have a memory.
    const storage = globalThis.document && localStorage;
    if (text) storage.setItem(key, text);
    return storage.getItem(key) || '';
  } catch {
    return ''; // this page may not store: the next page load finds out again
  }
}
