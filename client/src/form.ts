// The forms in which messages and controls come from a gateway (docs/protocol.md).

/** A message has `data`; a control has none. */
export interface Form {
  control?: string;
  id?: string;
  type?: string | null;
  data?: string;
  encoding?: string;
  /** How far the page has come with this form; null: the gateway has no cursors. */
  cursor?: string | null;
  /** The cursor of a poll's answer: names of the session, a comma, and how far the page has come. */
  session?: string;
  /** Of the controls hello and heartbeat; reconnect; expiring. */
  heartbeat_ms?: number;
  after_ms?: number;
  in_ms?: number;
  /** Of the control close of an event stream. */
  code?: number;
  reason?: string;
}

/** The payload as published. */
export function payload({data = '', encoding}: Form): string | Uint8Array {
  if (encoding !== 'base64') return data;
  return Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
}
