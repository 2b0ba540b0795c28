// The page: its events, and whether it is seen.

/** Act on events of the page by their names, until `signal` is aborted. */
export function listen(acts: Record<string, (event: Event) => void>, signal: AbortSignal): void {
  for (const [name, act] of Object.entries(acts)) {
    // Node.js has no events of its own. With `capture`: some events are the document's, and don't bubble.
    globalThis.addEventListener?.(name, act, {signal, capture: true});
  }
}

/** Whether the page is in the background; false where there is no page. */
export function isHidden(): boolean {
  return Boolean(globalThis.document?.hidden);
}
