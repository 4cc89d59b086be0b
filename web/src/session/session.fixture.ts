import type { Session, Step } from "../api/model";

/** A session for tests: under way, with the given steps 100 ms apart. */
export function sessionWith(over: Partial<Session> & { done?: Step[] } = {}): Session {
  const { done = [], ...fields } = over;
  return {
    sessionId: "00000000-0000-4000-8000-000000000001",
    userId: "me",
    provider: "codex",
    state: "starting",
    step: done.at(-1) ?? null,
    lane: "streamed_browser",
    steps: done.map((step, index) => ({ step, atMs: index * 100 })),
    error: null,
    device: null,
    browserVmId: null,
    cliVmId: null,
    queuePosition: null,
    createdAt: "2026-01-01T00:00:00Z",
    endedAt: null,
    version: 1,
    ...fields,
  };
}
