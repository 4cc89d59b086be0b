// The name under which a person's CLI VM and credentials are kept; remembered by this browser.

const KEY = "polydev.user";
const DEFAULT = "me";

/** Same rule as the controller: 1 to 64 characters of [A-Za-z0-9._@-], not starting with a dot. */
export function isUserId(text: string): boolean {
  return /^[A-Za-z0-9_@-][A-Za-z0-9._@-]{0,63}$/.test(text);
}

export function rememberedUser(storage: Pick<Storage, "getItem"> = localStorage): string {
  const saved = storage.getItem(KEY);
  return saved !== null && isUserId(saved) ? saved : DEFAULT;
}

export function rememberUser(user: string, storage: Pick<Storage, "setItem"> = localStorage): void {
  if (isUserId(user)) storage.setItem(KEY, user);
}
