// The page's own addresses.

export type Route = { page: "home" } | { page: "open" } | { page: "session"; id: string } | { page: "terminal"; vmId: string } | { page: "missing" };

/** Which page an address path means. */
export function routeOf(path: string): Route {
  const [first = "", second = "", ...rest] = path.split("/").filter((part) => part !== "");
  if (rest.length > 0) return { page: "missing" };
  if (first === "") return { page: "home" };
  if (first === "open" && second === "") return { page: "open" };
  if (first === "session" && second !== "") return { page: "session", id: decodeSafely(second) };
  if (first === "terminal" && second !== "") return { page: "terminal", vmId: decodeSafely(second) };
  return { page: "missing" };
}

function decodeSafely(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

type Listener = (route: Route) => void;
const listeners = new Set<Listener>();

/** Goes to an address of this page; `replace` leaves no trace of the current one in the history. */
export function navigate(path: string, replace = false): void {
  if (replace) history.replaceState(null, "", path);
  else history.pushState(null, "", path);
  announce();
}

function announce(): void {
  const route = routeOf(location.pathname);
  for (const listener of listeners) listener(route);
}

/** Calls `listener` on every change of the route; returns the undo. */
export function onRoute(listener: Listener): () => void {
  listeners.add(listener);
  addEventListener("popstate", announce);
  return () => {
    listeners.delete(listener);
    removeEventListener("popstate", announce);
  };
}

/** Click handler for links within the page: follows them without a reload, leaves modified clicks to the browser. */
export function follow(event: MouseEvent): void {
  if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const link = event.currentTarget as HTMLAnchorElement;
  event.preventDefault();
  navigate(link.pathname);
}
