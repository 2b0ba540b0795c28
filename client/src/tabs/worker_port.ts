// The channel to a SharedWorker, which is the holder for all tabs.

import type {TransportOption} from '../choice.js';
import type {ConnectionOptions} from '../connection.js';
import {asEnded} from '../ended.js';
import type {Channel, FromHolder, FromTab, Hear} from './forms.js';

/** After so many forms a tab says that it is there: a worker forgets a tab that never does. */
const FORMS_PER_ANSWER = 256;

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
  readonly hear: Hear;
  nextToken(): Promise<string | undefined>;
  /** Find another holder; by default with the worker, if one has answered before. */
  enterAgain(withWorker?: boolean): void;
}

export function workerPort(file: string | URL, name: string, owner: PortOwner): Channel {
  const worker = new SharedWorker(file, {name, type: 'module'});
  const {port} = worker;
  const tell = (form: ToWorker) => port.postMessage(form);
  let heardForms = 0;

  worker.onerror = () => owner.enterAgain(false);
  port.onmessage = ({data}: MessageEvent<FromWorker>) => {
    heardForms += 1;
    if (heardForms % FORMS_PER_ANSWER === 0) tell({kind: 'ping'});
    if (data.kind === 'token') void answer();
    else owner.hear(data, true);
  };
  const {url, transport, token} = owner.options;
  const {cursor, link} = owner;
  const hasToken = token !== undefined;
  tell({kind: 'start', url: url.href, transport, hasToken, cursor, link: link + 1});
  return {
    tell,
    take: () => owner.enterAgain(),
    close() {
      tell({kind: 'bye'});
      port.close();
    },
  };

  async function answer(): Promise<void> {
    try {
      tell({kind: 'token', token: await owner.nextToken()});
    } catch (error) {
      tell({kind: 'token', reason: asEnded(error).message});
    }
  }
}
