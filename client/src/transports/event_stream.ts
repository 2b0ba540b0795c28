// Server-sent events, read by fetch.

import {Ended} from '../ended.js';
import type {Form} from '../form.js';
import type {Link} from '../link.js';
import {read, request} from '../request.js';

interface Fields {
  id?: string;
  event?: string;
  data?: string;
}

/**
 * With fetch and not EventSource. An EventSource dispatches only events of types that have a
 * listener, never retries after a 503, and does not say why a request was refused.
 */
export async function eventStream(link: Link): Promise<never> {
  const query = link.cursor && `?cursor=${encodeURIComponent(link.cursor)}`;
  const response = await request(link, `sse${query}`);
  let notBefore = 0;
  const parse = eventParser(dispatch, (ms) => {
    notBefore = ms;
  });
  link.controls.close = ({code, reason}) => {
    throw new Ended(String(reason), Number(code));
  };
  await read(response, link, parse);
  throw new Ended('the stream ended', 0, notBefore);

  function dispatch({id, event = '', data = ''}: Fields): void {
    if (event === 'pushgate.cursor') {
      link.opened();
      link.silence.expect(Number(data));
      link.beat({cursor: id ?? null});
    } else if (event.startsWith('pushgate.') && event !== 'pushgate.binary') {
      link.controls[event.slice(9)]?.(JSON.parse(data));
    } else if (id !== undefined) {
      link.opened(); // without an id it is no event of a gateway
      link.received(message(id, event, data));
    }
  }
}

/** The message in an event; `eventId` is the message's cursor, if there is one, and id. */
function message(eventId: string, event: string, data: string): Form {
  const space = eventId.lastIndexOf(' ');
  const cursor = space < 0 ? {} : {cursor: eventId.slice(0, space)};
  if (event === 'pushgate.binary') return {...JSON.parse(data), ...cursor};
  return {id: eventId.slice(space + 1), type: event || null, data, ...cursor};
}

/** The event stream format (HTML standard §9.2.6): lines end with LF, CR or CRLF, nothing else. */
function eventParser(
  dispatch: (fields: Fields) => void,
  retry: (ms: number) => void,
): (text: string) => void {
  let unfinished = ''; // the last line, as far as it has arrived
  let fields: Fields = {};
  return (text) => {
    const lines = (unfinished + text).split(/\r\n|\n|\r(?!$)/); // a last CR may be half of a CRLF
    unfinished = lines.pop()!;
    for (const line of lines) {
      const [, name, value = ''] = /^([^:]*)(?:: ?([^]*))?$/.exec(line)!;
      if (line === '') {
        if (fields.data !== undefined) dispatch(fields);
        fields = {};
      } else if (name === 'data' && fields.data !== undefined) {
        fields.data += `\n${value}`;
      } else if (name === 'retry') {
        if (/^[0-9]+$/.test(value)) retry(Number(value));
      } else {
        fields[name as keyof Fields] = value;
      }
    }
  };
}
