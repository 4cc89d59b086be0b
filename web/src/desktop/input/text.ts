// What is typed into the hidden text field, found by comparing it before and after: it does not matter which events an
// input method makes, in which order, or whether several carry the same text.

/** What happened at the end of a text: `removed` characters were taken away, then `inserted` was added. */
export interface Edit {
  removed: number;
  inserted: string;
}

export function editOf(before: string, after: string): Edit {
  const old = [...before];
  const now = [...after];
  let same = 0;
  while (same < old.length && same < now.length && old[same] === now[same]) same += 1;
  return { removed: old.length - same, inserted: now.slice(same).join("") };
}

/** Writing without a stage of conversion: its letters may be typed while they are still part of a composition. */
export function isDirect(text: string): boolean {
  return /^[\p{Script=Latin}\p{Script=Cyrillic}\p{Script=Greek}\p{M}\p{N}\p{P}\p{S}\p{Z}]*$/u.test(text);
}
