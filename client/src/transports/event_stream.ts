// Server-sent events, read by fetch.

import {Ended} from '../ended.js';
import type {Link} from '../link.js';
import {request} from '../request.js';

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
  let notBefore = 0;
  let unfinished = ''; // the last line, as far as it has arrived
  let fields: Fields = {};
  link.controls.close = ({code, reason}) => {
    throw new Ended(reason!, code);
  };
  await request(link, `sse${query}`, (text) => {
    const lines = (unfinished + text).split(/\r\n|\n|\r(?!$)/); // a last CR may be half of a CRLF
    unfinished = lines.pop()!;
    lines.forEach(take);
  });
  throw new Ended('the stream ended', 0, notBefore);

  /** The event stream format (HTML standard §9.2.6): lines end with LF, CR or CRLF, nothing else. */
  function take(line: string): void {
    const [name, value = ''] = line.split(/: ?([^]*)/);
    if (line === '') {
      if (fields.data !== undefined) dispatch(fields);
      fields = {};
    } else if (name === 'data' && fields.data !== undefined) {
      fields.data += `\n${value}`;
    } else if (name === 'retry') {
      notBefore = Number(value) || notBefore;
    } else {
      fields[name as keyof Fields] = value;
    }
  }

  function dispatch({id, event = '', data = ''}: Fields): void {
    if (event === 'pushgate.cursor') {
      link.beat({cursor: id, heartbeat_ms: Number(data)});
    } else if (event.startsWith('pushgate.') && event !== 'pushgate.binary') {
      link.controls[event.slice(9)]?.(JSON.parse(data));
    } else if (id !== undefined) { // without an id it is no event of a gateway
      const [ownId, cursor] = id.split(' ').reverse();
      const isBinary = event === 'pushgate.binary';
      const form = isBinary ? JSON.parse(data) : {id: ownId, type: event || null, data};
      link.received({...form, cursor});
    }
  }
}
