// What the tabs of a group and the holder of their link tell each other.

import type {TransportName} from '../choice.js';
import type {ConnectionEvent, State} from '../connection.js';

/** What a holder says of its link when it takes or changes the link, and in answer to a ping. */
export interface Here {
  kind: 'here';
  /** The cursor behind which the link has brought everything; empty: it began with its opening. */
  start: string;
  cursor: string;
  state: State;
  transport: TransportName | null;
  /** The holder's page is in the background, where timers seldom run. */
  hidden: boolean;
}

/**
 * What a holder tells all tabs, with what its connection tells. `link` names the link: the later of
 * two links has the greater number. `count`: how many messages the link has brought.
 */
export type FromHolder = {link: number; count: number} & (Here | ConnectionEvent);

/** What a tab asks the holder: to say what there is. */
export interface FromTab {
  kind: 'ping';
  /** The tab lacks what this link has brought behind the tab's cursor: it is to come again. */
  lacks?: number;
  cursor?: string;
}

/** Takes what a holder tells; `isOwn`: the holder serves this tab first, its end is the tab's. */
export type Hear = (form: FromHolder, isOwn: boolean) => void;

/** How a tab reaches the holder. */
export interface Channel {
  tell(form: FromTab): void;
  /** Nothing comes from the holder any more: become the holder, or find another one. */
  take(): void;
  close(): void;
}

/** Whether everything behind the time in `cursor` comes on a link that begins at `start`. */
export function covers(start: string, cursor: string): boolean {
  return parseInt(start, 36) <= parseInt(cursor, 36); // false where there is no start
}
