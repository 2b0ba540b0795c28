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
export class Choice {
  private readonly names: readonly TransportName[];
  private readonly key: string;
  private name: TransportName;
  /** When higher transports were last found not to pass, in epoch milliseconds. */
  private at = 0;

  /** Throws a TypeError for an option that is none, or that this JavaScript runtime can't serve. */
  constructor(option: TransportOption, host: string) {
    const possible = ALL.filter((name) => name !== 'ws' || globalThis.WebSocket);
    this.names = possible.filter((name) => option === 'auto' || option === name);
    this.key = `pushgate ${host}`;
    this.name = this.names[0]!;
    if (!this.name) throw new TypeError(`transport ${option}: here it is auto or ${possible}`);
    if (this.names[1]) this.recall();
  }

  /** What an attempt to connect begins with. */
  get first(): TransportName {
    return this.name;
  }

  below(name: TransportName): TransportName | undefined {
    return this.names[this.names.indexOf(name) + 1];
  }

  above(name: TransportName): readonly TransportName[] {
    return this.names.slice(0, this.names.indexOf(name));
  }

  /** In how many ms a higher transport is tried again. */
  get contentMs(): number {
    return Math.max(SETTLED_MS, this.at + CONTENT_MS - Date.now());
  }

  /** A link of this transport is open: higher ones did not pass, or were tried in vain again. */
  passed(name: TransportName, tried = name !== this.name): void {
    if (!tried) return;
    this.name = name;
    this.at = Date.now();
    try {
      if (globalThis.document) localStorage.setItem(this.key, `${name} ${this.at}`);
    } catch {
      // This page may store nothing: the next page load finds out again.
    }
  }

  private recall(): void {
    try {
      // Node.js warns of its localStorage: pages alone have a memory.
      const [name, at] = globalThis.document ? localStorage.getItem(this.key)!.split(' ') : [];
      if (!this.names.includes(name as TransportName)) return;
      this.name = name as TransportName;
      this.at = Math.min(Number(at), Date.now()) || 0;
    } catch {
      // Nothing is stored, or this page may not read it.
    }
  }
}
