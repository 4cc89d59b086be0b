import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { ApiError } from "../api/client";
import type { Session } from "../api/model";
import { Backoff } from "../net/backoff";
import type { LinkState } from "../net/reconnector";
import { SessionFeed, type EventStream } from "./feed";
import { sessionWith } from "./session.fixture";

class Stream implements EventStream {
  closed = false;
  private readonly listeners = new Map<string, (event: { data?: unknown }) => void>();

  addEventListener(type: string, listener: (event: { data?: unknown }) => void): void {
    this.listeners.set(type, listener);
  }

  close(): void {
    this.closed = true;
  }

  emit(type: string, session?: Session): void {
    this.listeners.get(type)?.(session ? { data: JSON.stringify(session) } : {});
  }
}

function setUp(answer: () => Promise<Session>) {
  const streams: Stream[] = [];
  const seen = { versions: [] as number[], links: [] as LinkState[], refused: [] as number[] };
  const feed = new SessionFeed(
    "id",
    {
      session: (session) => seen.versions.push(session.version),
      link: (state) => seen.links.push(state),
      refused: (error) => seen.refused.push(error.status),
    },
    {
      openStream: () => {
        const stream = new Stream();
        streams.push(stream);
        return stream;
      },
      client: { session: answer },
      backoff: new Backoff({ firstMs: 100, random: () => 0 }),
    },
  );
  feed.start();
  return { feed, streams, seen };
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test("a change is passed on once, an older copy is dropped", () => {
  const { streams, seen } = setUp(() => Promise.reject(new Error("not asked")));
  streams[0]?.emit("open");
  streams[0]?.emit("session", sessionWith({ version: 2 }));
  streams[0]?.emit("session", sessionWith({ version: 1 }));
  streams[0]?.emit("session", sessionWith({ version: 3 }));
  expect(seen.versions).toEqual([2, 3]);
  expect(seen.links).toEqual(["connecting", "live"]);
});

test("a lost stream is opened again after a wait, and the state is asked for at once", async () => {
  const { streams, seen } = setUp(() => Promise.resolve(sessionWith({ version: 7 })));
  streams[0]?.emit("open");
  streams[0]?.emit("error");
  await vi.advanceTimersByTimeAsync(0);
  expect(streams[0]?.closed).toBe(true);
  expect(seen.versions).toEqual([7]);
  expect(seen.links.at(-1)).toBe("waiting");
  await vi.advanceTimersByTimeAsync(100);
  expect(streams).toHaveLength(2);
});

test("a controller that is away is tried again and again", async () => {
  const { streams } = setUp(() => Promise.reject(new TypeError("refused")));
  streams[0]?.emit("error");
  await vi.advanceTimersByTimeAsync(100);
  streams[1]?.emit("error");
  await vi.advanceTimersByTimeAsync(200);
  expect(streams).toHaveLength(3);
});

test("an unknown session is not tried again", async () => {
  const { streams, seen } = setUp(() => Promise.reject(new ApiError(404, "session_unknown", "Unknown", "")));
  streams[0]?.emit("error");
  await vi.advanceTimersByTimeAsync(60_000);
  expect(seen.refused).toEqual([404]);
  expect(streams).toHaveLength(1);
});

test("a settled session ends the feed", () => {
  const { streams, seen } = setUp(() => Promise.reject(new Error("not asked")));
  streams[0]?.emit("session", sessionWith({ state: "succeeded", done: ["closed"], version: 9 }));
  expect(streams[0]?.closed).toBe(true);
  expect(seen.links.at(-1)).toBe("stopped");
});
