// The file of a SharedWorker that keeps one connection for all tabs of an origin.

import {sleep} from './delays.js';
import type {FromHolder} from './tabs/forms.js';
import {type Holder, holderOf} from './tabs/holder.js';
import type {FromWorker, Start, TokenAnswer, ToWorker} from './tabs/worker_port.js';

/** How long a tab may take to give a token, before the next tab is asked. */
const TOKEN_MS = 10_000;
/** Forms for a tab that has not said for as long that it is there: it is gone, or frozen. */
const MAX_UNANSWERED = 1_024;

/** By port, how many forms the tab has got since it last said something; last said, last here. */
const unanswered = new Map<MessagePort, number>();
let holder: Holder | null = null;
let asking: Promise<string> | null = null;
let answered: ((answer: TokenAnswer) => void) | null = null;

(globalThis as unknown as {onconnect: (event: MessageEvent) => void}).onconnect = ({ports}) => {
  const port = ports[0]!;
  port.onmessage = ({data}: MessageEvent<ToWorker>) => hear(data, port);
};

function hear(form: ToWorker, port: MessagePort): void {
  unanswered.delete(port);
  if (form.kind === 'bye') {
    if (!unanswered.size) leave();
    return;
  }
  unanswered.set(port, 0);
  if (form.kind === 'start') holder ??= hold(form);
  else if (form.kind === 'token') answered?.(form);
  else holder?.hear(form);
}

function hold({url, transport, hasToken, cursor, link}: Start): Holder {
  const token = hasToken ? askForToken : undefined;
  return holderOf({url: new URL(url), transport, token}, tellAll, cursor, link);
}

function leave(): void {
  holder?.close();
  holder = null;
}

function tellAll(form: FromHolder): void {
  for (const [port, count] of unanswered) {
    if (count === MAX_UNANSWERED) unanswered.delete(port);
    else {
      unanswered.set(port, count + 1);
      tell(port, form);
    }
  }
  if (form.kind === 'close') leave();
}

function tell(port: MessagePort, form: FromWorker): void {
  port.postMessage(form);
}

/** The tabs' next token. */
function askForToken(): Promise<string> {
  asking ??= askTabs().finally(() => (asking = null));
  return asking;
}

/** Of the tab that was heard last; if it gives none, of the tab that was heard before. */
async function askTabs(): Promise<string> {
  let reason = 'no tab has answered with a token';
  for (const port of Array.from(unanswered.keys()).reverse()) {
    const waiting = new AbortController();
    const answer = await new Promise<TokenAnswer | null>((resolve) => {
      answered = resolve;
      void sleep(TOKEN_MS, waiting.signal).then(() => resolve(null));
      tell(port, {kind: 'token'});
    });
    waiting.abort();
    if (answer?.token) return answer.token;
    reason = answer?.reason ?? reason;
  }
  throw new Error(reason);
}
