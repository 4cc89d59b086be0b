import { describe, expect, test } from "vitest";
import type { SessionState, Step } from "../api/model";
import { formatElapsed, isSettled, present, stepRows } from "./present";
import { sessionWith } from "./session.fixture";

const UP_TO_DESKTOP: Step[] = ["vm_requested", "vm_ready", "cli_started", "url_captured", "desktop_ready"];

describe("what the person is told", () => {
  test("while the VM starts there is nothing to do and no live browser", () => {
    const view = present(sessionWith({ done: ["vm_requested"] }), "Codex");
    expect(view.tone).toBe("busy");
    expect(view.showDesktop).toBe(false);
    expect(view.canCancel).toBe(true);
    expect(view.advice).toContain("nothing to do yet");
  });

  test("with the page open it is the person's turn, in the live browser", () => {
    const view = present(sessionWith({ state: "awaiting_user", done: UP_TO_DESKTOP }), "Codex");
    expect(view).toMatchObject({ tone: "act", showDesktop: true, showFallback: true, showDevice: false });
    expect(view.headline).toBe("Your turn: sign in");
  });

  test("a device code replaces the live browser and the paste field", () => {
    const view = present(sessionWith({ state: "awaiting_user", lane: "device_code", device: { url: "https://example.test/device", code: "ABCD-1234" } }), "gh");
    expect(view).toMatchObject({ showDevice: true, showDesktop: false, showFallback: false });
  });

  test("the picture goes away while the tool checks, since its last page can hold a token", () => {
    expect(present(sessionWith({ state: "verifying", done: [...UP_TO_DESKTOP, "callback_seen"] }), "Codex").showDesktop).toBe(false);
  });

  test("an error's own words are shown when there are any", () => {
    const view = present(sessionWith({ state: "failed", error: { code: "cli_exited", title: "codex ended early", detail: "It exited with 1." } }), "Codex");
    expect(view).toMatchObject({ tone: "bad", headline: "codex ended early", advice: "It exited with 1.", isFinal: true, canCancel: false });
  });

  test.each<[number | null, string]>([
    [null, "as soon as one is free"],
    [1, "You are next"],
    [2, "1 person is ahead"],
    [4, "3 people are ahead"],
  ])("queue position %s says %s", (queuePosition, words) => {
    expect(present(sessionWith({ state: "queued", queuePosition }), "Codex").advice).toContain(words);
  });

  test.each<SessionState>(["queued", "starting", "awaiting_user", "verifying", "succeeded", "failed", "expired", "cancelled"])("state %s has words of its own", (state) => {
    const view = present(sessionWith({ state }), "Codex");
    expect(view.headline).not.toBe("");
    expect(view.advice).not.toBe("");
    expect(view.canCancel).toBe(!view.isFinal);
  });
});

describe("the steps", () => {
  test("the first step that has not happened is the current one", () => {
    const rows = stepRows(sessionWith({ done: ["vm_requested", "vm_ready"] }));
    expect(rows.filter((row) => row.status === "current").map((row) => row.step)).toEqual(["cli_started"]);
    expect(rows.map((row) => row.at).slice(0, 3)).toEqual(["0.00 s", "0.10 s", ""]);
  });

  test("a step that was overtaken did not happen", () => {
    const rows = stepRows(sessionWith({ state: "verifying", done: [...UP_TO_DESKTOP, "credential_seen"] }));
    expect(rows.find((row) => row.step === "callback_seen")?.status).toBe("skipped");
  });

  test("after a failure nothing is current but the destruction of the VM", () => {
    const rows = stepRows(sessionWith({ state: "failed", done: ["vm_requested"] }));
    expect(rows.filter((row) => row.status === "current")).toEqual([]);
    expect(rows.find((row) => row.step === "closed")?.status).toBe("todo");
    expect(rows.find((row) => row.step === "sealed")?.status).toBe("skipped");
  });

  test("a device code sign-in has no live browser steps", () => {
    const steps = stepRows(sessionWith({ lane: "device_code" })).map((row) => row.step);
    expect(steps).not.toContain("desktop_ready");
    expect(steps).toContain("credential_seen");
  });

  test("nothing can change once the outcome is known and the VM is gone", () => {
    expect(isSettled(sessionWith({ state: "succeeded", done: ["transferred"] }))).toBe(false);
    expect(isSettled(sessionWith({ state: "succeeded", done: ["transferred", "closed"] }))).toBe(true);
    expect(isSettled(sessionWith({ state: "verifying", done: ["closed"] }))).toBe(false);
  });

  test.each([
    [0, "0.00 s"],
    [421, "0.42 s"],
    [9994, "9.99 s"],
    [12_340, "12.3 s"],
    [59_960, "1 min 00 s"],
    [125_000, "2 min 05 s"],
    [-5, "0.00 s"],
  ])("%d ms reads %s", (ms, words) => {
    expect(formatElapsed(ms)).toBe(words);
  });
});
