// The channel among tabs that elect the holder from among themselves.

import type {Channel, FromHolder, FromTab} from './forms.js';
import type {Holder} from './holder.js';

/**
 * The holder has a Web Lock, which the browser frees when the tab closes or crashes. From a tab
 * that is frozen, or hangs, the lock is taken away.
 */
export class Election implements Channel {
  private readonly channel: BroadcastChannel;
  private holder: Holder | null = null;
  /** Aborted when this tab does not ask for the lock any more. */
  private queue!: AbortController;
  private free = (): void => {};

  /** `hear` takes what a holder tells; `hold` starts a holder in this tab. */
  constructor(
    private readonly name: string,
    private readonly hear: (form: FromHolder) => void,
    private readonly hold: (tell: (form: FromHolder) => void) => Holder,
  ) {
    this.channel = new BroadcastChannel(name);
    this.channel.onmessage = ({data}: MessageEvent<FromHolder | FromTab>) => {
      if (data.kind === 'ping' || data.kind === 'back') this.holder?.hear(data);
      else this.hear(data);
    };
    void this.request();
  }

  get holds(): boolean {
    return this.holder !== null;
  }

  tell(form: FromTab): void {
    if (!this.holder) this.channel.postMessage(form); // else this tab has nothing to ask
  }

  take(): void {
    if (this.holder) return;
    this.queue.abort();
    void this.request(true);
  }

  close(): void {
    this.queue.abort();
    this.lose();
    this.channel.close();
  }

  private async request(steal = false): Promise<void> {
    this.queue = new AbortController();
    const {signal} = this.queue;
    const options = steal ? {steal} : {signal}; // both at once are refused
    try {
      await navigator.locks.request(this.name, options, () => this.begin(signal));
    } catch (error) {
      if ((error as Error).name !== 'AbortError') {
        void this.begin(signal); // a page in a sandbox has neither locks nor other tabs
      } else if (!signal.aborted) {
        this.lose(); // another tab has taken the lock
        void this.request();
      }
    }
  }

  /** Hold the link until the promise resolves. */
  private begin(signal: AbortSignal): Promise<void> | undefined {
    if (signal.aborted) return;
    return new Promise((free) => {
      this.free = free;
      this.holder = this.hold((form) => {
        this.channel.postMessage(form);
        this.hear(form);
      });
    });
  }

  private lose(): void {
    this.holder?.close();
    this.holder = null;
    this.free();
  }
}
