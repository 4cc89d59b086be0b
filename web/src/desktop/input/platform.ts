// Whose keyboard it is: browsers report some keys differently on each system.

export type Platform = "mac" | "windows" | "linux" | "android" | "ios" | "other";

interface NavigatorLike {
  platform?: string;
  userAgent?: string;
  maxTouchPoints?: number;
  userAgentData?: { platform?: string };
}

export function platformOf(navigator: NavigatorLike): Platform {
  const name = `${navigator.userAgentData?.platform ?? ""} ${navigator.platform ?? ""} ${navigator.userAgent ?? ""}`;
  if (/android/i.test(name)) return "android";
  // An iPad says that it is a Mac; no Mac has a touch screen.
  if (/iphone|ipad|ipod/i.test(name) || (/mac/i.test(name) && (navigator.maxTouchPoints ?? 0) > 1)) return "ios";
  if (/mac/i.test(name)) return "mac";
  if (/win/i.test(name)) return "windows";
  return /linux|x11|cros/i.test(name) ? "linux" : "other";
}

/** Whether keys come from the system's own soft keyboard, as edits of a text rather than as keys. */
export function hasSoftKeyboard(platform: Platform): boolean {
  return platform === "android" || platform === "ios";
}
