// The channel among tabs that elect the holder from among themselves.

import type {Channel, FromHolder, FromTab, Hear} from './forms.js';
import type {Holder} from './holder.js';

/**
 * The holder has a Web Lock, which the browser frees when the tab closes or crashes. From a tab
 * that is frozen, or hangs, the lock is taken away.
 *
 * `hear` takes what a holder tells; `hold` starts a holder in this tab.
 */
export function election(
  name: string,
  hear: Hear,
  hold: (tell: (form: FromHolder) => void) => Holder,
): Channel {
  const channel = new BroadcastChannel(name);
  let holder: Holder | null = null;
  /** Aborted when this tab does not ask for the lock any more. */
  let queue!: AbortController;
  let free: (() => void) | undefined;

  channel.onmessage = ({data}: MessageEvent<FromHolder | FromTab>) => {
    if (data.kind === 'ping') holder?.hear(data);
    else hear(data, false);
  };
  void request();
  return {
    tell(form) {
      if (!holder) channel.postMessage(form); // else this tab has nothing to ask
    },
    take() {
      if (holder) return;
      queue.abort();
      void request(true);
    },
    close() {
      queue.abort();
      lose();
      channel.close();
    },
  };

  async function request(steal = false): Promise<void> {
    queue = new AbortController();
    const {signal} = queue;
    const options = steal ? {steal} : {signal}; // both at once are refused
    try {
      await navigator.locks.request(name, options, () => begin(signal));
    } catch (error) {
      if ((error as Error).name !== 'AbortError') {
        void begin(signal); // a page in a sandbox has neither locks nor other tabs
      } else if (!signal.aborted) {
        lose(); // another tab has taken the lock
        void request();
      }
    }
  }

  /** Hold the link until the promise resolves. */
  function begin(signal: AbortSignal): Promise<void> | undefined {
    if (signal.aborted) return;
    return new Promise((resolve) => {
      free = resolve;
      holder = hold((form) => {
        channel.postMessage(form);
        hear(form, true);
      });
    });
  }

  function lose(): void {
    holder?.close();
    holder = null;
    free?.();
  }
}
