// The channel to a SharedWorker, which is the holder for all tabs.

import type {TransportOption} from '../choice.js';
import type {ConnectionOptions} from '../connection.js';
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
  readonly options: ConnectionOptions;
  readonly cursor: string;
  readonly link: number;
  /** A worker has answered before. */
  readonly hasJoined: boolean;
  /** Undefined: the tabs share without a worker. */
  workerUrl: string | URL | undefined;
  hear(form: FromHolder): void;
  nextToken(): Promise<string | undefined>;
  leave(): void;
  enter(): void;
}

export class WorkerPort implements Channel {
  readonly holds = true;
  private readonly port: MessagePort;

  constructor(
    file: string | URL,
    name: string,
    private readonly owner: PortOwner,
  ) {
    const worker = new SharedWorker(file, {name, type: 'module'});
    worker.onerror = () => this.giveUp();
    this.port = worker.port;
    this.port.onmessage = ({data}: MessageEvent<FromWorker>) => {
      if (data.kind === 'token') void this.answer();
      else owner.hear(data);
    };
    const {url, transport, token} = owner.options;
    const {cursor, link} = owner;
    const hasToken = token !== undefined;
    this.tell({kind: 'start', url: url.href, transport, hasToken, cursor, link: link + 1});
  }

  tell(form: ToWorker): void {
    this.port.postMessage(form);
  }

  take(): void {
    if (!this.owner.hasJoined) this.giveUp();
    else this.enterAgain();
  }

  close(): void {
    this.tell({kind: 'bye'});
    this.port.close();
  }

  private giveUp(): void {
    this.owner.workerUrl = undefined;
    this.enterAgain();
  }

  private enterAgain(): void {
    this.owner.leave();
    this.owner.enter();
  }

  private async answer(): Promise<void> {
    try {
      this.tell({kind: 'token', token: await this.owner.nextToken()});
    } catch (error) {
      this.tell({kind: 'token', reason: asEnded(error).message});
    }
  }
}
