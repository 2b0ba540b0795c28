// The channel to a SharedWorker, which is the holder for all tabs.

import type {TransportOption} from '../choice.js';
import {asEnded} from '../ended.js';
import type {Channel, FromHolder, FromTab} from './forms.js';

/** The first form of a tab: what the worker connects with, if this tab is the first. */
export interface Start {
  kind: 'start';
  url: string;
  transport: TransportOption | undefined;
  /** Tabs have tokens; without, the cookie has to do. */
  hasToken: boolean;
  cursor: string;
  /** Greater than the number of any link that the tab has heard of. */
  link: number;
}

/** A token for the worker, which has asked, or why there is none. */
export interface TokenAnswer {
  kind: 'token';
  token?: string | undefined;
  reason?: string;
}

export type ToWorker = FromTab | Start | TokenAnswer | {kind: 'bye'};
export type FromWorker = FromHolder | {kind: 'token'};

/** The tab that a port belongs to. */
export interface PortOwner {
  hear(form: FromHolder): void;
  nextToken(): Promise<string | undefined>;
  /** The worker does not answer, or can't be had (`isRefused`). */
  lost(isRefused: boolean): void;
}

export class WorkerPort implements Channel {
  readonly holds = true;
  private readonly port: MessagePort;

  constructor(
    url: string | URL,
    name: string,
    start: Start,
    private readonly owner: PortOwner,
  ) {
    const worker = new SharedWorker(url, {name, type: 'module'});
    worker.onerror = () => owner.lost(true);
    this.port = worker.port;
    this.port.onmessage = ({data}: MessageEvent<FromWorker>) => {
      if (data.kind === 'token') void this.answer();
      else owner.hear(data);
    };
    this.tell(start);
  }

  tell(form: ToWorker): void {
    this.port.postMessage(form);
  }

  take(): void {
    this.owner.lost(false);
  }

  close(): void {
    this.tell({kind: 'bye'});
    this.port.close();
  }

  private async answer(): Promise<void> {
    try {
      this.tell({kind: 'token', token: await this.owner.nextToken()});
    } catch (error) {
      this.tell({kind: 'token', reason: asEnded(error).message});
    }
  }
}
