// Typed access to the controller's HTTP API. Every failure becomes an ApiError with a stable code.

import type { Credential, Health, Provider, Session, Vm } from "./model";

/** What went wrong, in words for the person, and a stable code for machines. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    readonly title: string,
    readonly detail: string,
  ) {
    super(detail || title);
    this.name = "ApiError";
  }

  /** The page has no valid access cookie: the one-time link has to be opened (again). */
  get needsLink(): boolean {
    return this.status === 401;
  }
}

/** Turns anything thrown into an ApiError, so that a page shows one kind of error. */
export function asApiError(cause: unknown): ApiError {
  if (cause instanceof ApiError) return cause;
  return new ApiError(0, "unreachable", "polydev does not answer", "Is `polydev serve` still running? The page tries again by itself.");
}

type FetchLike = (input: string, init?: RequestInit) => Promise<Response>;

async function problemOf(response: Response): Promise<ApiError> {
  const fallback = `The controller answered ${response.status}.`;
  try {
    const body: unknown = await response.json();
    const field = (name: string): string => {
      const value = (body as Record<string, unknown>)[name];
      return typeof value === "string" ? value : "";
    };
    return new ApiError(response.status, field("code") || "unknown", field("title") || fallback, field("detail"));
  } catch {
    return new ApiError(response.status, "unknown", fallback, "");
  }
}

/** The routes the page uses. */
export class Client {
  constructor(private readonly fetchLike: FetchLike = (input, init) => fetch(input, init)) {}

  private async call<T>(method: string, path: string, body?: unknown): Promise<T> {
    const init: RequestInit = { method, credentials: "same-origin", cache: "no-store", headers: { accept: "application/json" } };
    if (body !== undefined) {
      init.headers = { ...init.headers, "content-type": "application/json" };
      init.body = JSON.stringify(body);
    }
    let response: Response;
    try {
      response = await this.fetchLike(path, init);
    } catch (cause) {
      throw asApiError(cause);
    }
    if (!response.ok) throw await problemOf(response);
    const text = await response.text();
    return (text === "" ? undefined : JSON.parse(text)) as T;
  }

  health(): Promise<Health> {
    return this.call("GET", "/health");
  }

  async providers(): Promise<Provider[]> {
    return (await this.call<{ providers: Provider[] }>("GET", "/api/providers")).providers;
  }

  async vms(): Promise<Vm[]> {
    return (await this.call<{ vms: Vm[] }>("GET", "/api/vms")).vms;
  }

  async credentials(userId: string): Promise<Credential[]> {
    const query = new URLSearchParams({ userId });
    return (await this.call<{ credentials: Credential[] }>("GET", `/api/credentials?${query}`)).credentials;
  }

  deleteCredential(id: string): Promise<void> {
    return this.call("DELETE", `/api/credentials/${encodeURIComponent(id)}`);
  }

  /** Starts a sign-in, or attaches to the one already under way for this person and tool. */
  start(userId: string, provider: string): Promise<{ sessionId: string; attached: boolean }> {
    return this.call("POST", "/api/auth/start", { userId, provider });
  }

  session(id: string): Promise<Session> {
    return this.call("GET", sessionPath(id));
  }

  cancel(id: string): Promise<unknown> {
    return this.call("POST", sessionPath(id, "cancel"));
  }

  input(id: string, input: SessionInput): Promise<unknown> {
    return this.call("POST", sessionPath(id, "input"), input);
  }

  async signInAddress(id: string): Promise<string> {
    return (await this.call<{ oauthURL: string }>("GET", sessionPath(id, "oauth-url"))).oauthURL;
  }

  /** Redeems the token of the one-time link; the answer sets the access cookie. */
  open(token: string): Promise<unknown> {
    return this.call("POST", "/api/open", { token });
  }
}

/** What a person can hand to the waiting CLI: exactly one of the two. */
export type SessionInput = { callbackUrl: string } | { pasteCode: string };

/** A pasted text is a callback address if it looks like one, else a code. */
export function sessionInputOf(text: string): SessionInput | null {
  const trimmed = text.trim();
  if (trimmed === "") return null;
  return /^https?:\/\//i.test(trimmed) ? { callbackUrl: trimmed } : { pasteCode: trimmed };
}

/** Path of a session's resource. */
export function sessionPath(id: string, part = ""): string {
  return `/api/auth/session/${encodeURIComponent(id)}${part && `/${part}`}`;
}

/** Address of a VM's log for the person to read. */
export function logPath(vmId: string, log: "console" | "driver" | "agent"): string {
  return `/api/vms/${encodeURIComponent(vmId)}/logs/${log}`;
}

/** WebSocket address on the page's own origin. */
export function socketUrl(path: string, origin: string = location.origin): string {
  return origin.replace(/^http/, "ws") + path;
}

export const client = new Client();
