// Follows one session over server-sent events until nothing can change any more.

import { ApiError, asApiError, client, sessionPath, type Client } from "../api/client";
import type { Session } from "../api/model";
import { Backoff } from "../net/backoff";
import { Reconnector, wakeOnReturn, type LinkState } from "../net/reconnector";
import { isSettled } from "./present";

export interface FeedHandlers {
  session: (session: Session) => void;
  link: (state: LinkState) => void;
  /** The session cannot be followed at all: unknown, or no access. */
  refused: (error: ApiError) => void;
}

/** The part of EventSource that is used; a test passes its own. */
export interface EventStream {
  addEventListener(type: string, listener: (event: { data?: unknown }) => void): void;
  close(): void;
}

export interface FeedParts {
  openStream: (url: string) => EventStream;
  client: Pick<Client, "session">;
  backoff?: Backoff;
}

const REAL: FeedParts = {
  openStream: (url) => new EventSource(url) as unknown as EventStream,
  client,
};

/** One followed session. */
export class SessionFeed {
  private stream: EventStream | undefined;
  private version = -1;
  private stopWaking: () => void = () => {};
  private readonly link: Reconnector;

  constructor(
    private readonly id: string,
    private readonly handlers: FeedHandlers,
    private readonly parts: FeedParts = REAL,
  ) {
    this.link = new Reconnector({
      connect: () => this.connect(),
      changed: handlers.link,
      ...(parts.backoff ? { backoff: parts.backoff } : {}),
    });
  }

  start(): void {
    if (typeof document !== "undefined") this.stopWaking = wakeOnReturn(this.link);
    this.link.start();
  }

  stop(): void {
    this.stopWaking();
    this.stream?.close();
    this.link.stop();
  }

  private connect(): void {
    const stream = this.parts.openStream(sessionPath(this.id, "events"));
    this.stream = stream;
    stream.addEventListener("open", () => this.link.opened());
    stream.addEventListener("session", (event) => {
      this.link.opened();
      if (typeof event.data === "string") this.take(JSON.parse(event.data) as Session);
    });
    stream.addEventListener("error", () => {
      // EventSource would retry by itself, but without telling why it failed.
      stream.close();
      if (this.stream === stream) void this.diagnose();
    });
  }

  /** Asks once in the plain way: that answer says whether a further attempt makes sense. */
  private async diagnose(): Promise<void> {
    try {
      this.take(await this.parts.client.session(this.id));
    } catch (cause) {
      const error = asApiError(cause);
      if (error.status >= 400 && error.status < 500 && error.status !== 429) {
        this.handlers.refused(error);
        this.stop();
        return;
      }
    }
    this.link.lost();
  }

  private take(session: Session): void {
    if (session.version <= this.version) return;
    this.version = session.version;
    this.handlers.session(session);
    if (isSettled(session)) this.stop();
  }
}
