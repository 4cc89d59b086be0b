import { expect, test } from "vitest";
import { ApiError, Client, logPath, sessionInputOf, sessionPath, socketUrl } from "./client";

function answering(status: number, body: string): { client: Client; calls: [string, RequestInit | undefined][] } {
  const calls: [string, RequestInit | undefined][] = [];
  const client = new Client((input, init) => {
    calls.push([input, init]);
    return Promise.resolve(new Response(status === 204 ? null : body, { status }));
  });
  return { client, calls };
}

test("a problem document becomes an error with its code", async () => {
  const { client } = answering(503, '{"title":"All places in use","status":503,"detail":"Try later.","code":"slots_exhausted"}');
  const error = await client.start("me", "codex").catch((cause: unknown) => cause);
  expect(error).toBeInstanceOf(ApiError);
  expect(error).toMatchObject({ status: 503, code: "slots_exhausted", title: "All places in use", detail: "Try later." });
});

test("an answer that is no problem document still becomes an error", async () => {
  const error = await answering(502, "<html>").client.health().catch((cause: unknown) => cause);
  expect(error).toMatchObject({ status: 502, code: "unknown" });
});

test("a controller that is away is an error with words for the person", async () => {
  const client = new Client(() => Promise.reject(new TypeError("fetch failed")));
  await expect(client.health()).rejects.toMatchObject({ status: 0, code: "unreachable" });
});

test("an empty answer is fine", async () => {
  const { client, calls } = answering(204, "");
  await client.deleteCredential("a b");
  expect(calls[0]?.[0]).toBe("/api/credentials/a%20b");
  expect(calls[0]?.[1]?.method).toBe("DELETE");
});

test("start sends user and tool as JSON", async () => {
  const { client, calls } = answering(200, '{"sessionId":"s","attached":true}');
  expect(await client.start("me", "codex")).toEqual({ sessionId: "s", attached: true });
  expect(calls[0]?.[1]?.body).toBe('{"userId":"me","provider":"codex"}');
});

test("a pasted address is a callback, anything else a code, nothing is nothing", () => {
  expect(sessionInputOf(" http://localhost:1455/auth/callback?code=x ")).toEqual({ callbackUrl: "http://localhost:1455/auth/callback?code=x" });
  expect(sessionInputOf("abc#def")).toEqual({ pasteCode: "abc#def" });
  expect(sessionInputOf("  \n")).toBeNull();
});

test("ids are escaped in addresses", () => {
  expect(sessionPath("a/b", "vnc")).toBe("/api/auth/session/a%2Fb/vnc");
  expect(logPath("x?y", "agent")).toBe("/api/vms/x%3Fy/logs/agent");
  expect(socketUrl("/api/x", "http://127.0.0.1:4000")).toBe("ws://127.0.0.1:4000/api/x");
});
