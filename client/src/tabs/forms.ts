// What the tabs of a group and the holder of their link tell each other.

import type {TransportName} from '../choice.js';
import type {State} from '../connection.js';
import type {Next} from '../ended.js';
import type {Failure} from '../events.js';
import type {Form} from '../form.js';

/** What a holder says of its link when it takes or changes the link, and in answer to a ping. */
export interface Here {
  kind: 'here';
  /** How many messages the link has brought. */
  count: number;
  /** The as-of behind which the link has brought everything; empty: it began with its opening. */
  start: string;
  cursor: string;
  state: State;
  transport: TransportName | null;
  /** The holder's page is in the background, where timers seldom run. */
  hidden: boolean;
}

/**
 * What a holder tells all tabs. `link` names the link: the later of two links has the greater
 * number.
 */
export type FromHolder = {link: number} & (
  | Here
  | {kind: 'form'; form: Form; count: number}
  | {kind: 'gap'}
  | {kind: 'error'; failure: Failure}
  /** The holder has given up. */
  | {kind: 'over'; next: Next}
);

/** What a tab tells the holder; `back`: of `link` the tab lacks everything behind its `asOf`. */
export type FromTab = {kind: 'ping'} | {kind: 'back'; link: number; asOf: string};

/** How a tab reaches the holder. */
export interface Channel {
  /** The holder serves this tab first: its end is the tab's. */
  readonly holds: boolean;
  tell(form: FromTab): void;
  /** Nothing comes from the holder any more: become the holder, or find another one. */
  take(): void;
  close(): void;
}

/** The time in a cursor, empty where there is none. */
export function asOfIn(cursor: string): string {
  return cursor.split(',', 1)[0]!;
}

/** Whether everything behind the time `asOf` comes on a link that begins at `start`. */
export function covers(start: string, asOf: string): boolean {
  return parseInt(start, 36) <= parseInt(asOf, 36); // false where there is no start
}
