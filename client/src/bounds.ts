// Bounds of what is remembered.

/** Delete the oldest entry of a map or a set that has more than `most` entries. */
export function forgetOldest<Key>(
  entries: {size: number; keys(): Iterator<Key>; delete(key: Key): boolean},
  most: number,
): void {
  if (entries.size > most) entries.delete(entries.keys().next().value!);
}
