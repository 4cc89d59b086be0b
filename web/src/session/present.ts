// What a session means for the person: words, progress and which parts of the page are of use. No DOM, no clock.

import type { Session, SessionState, Step } from "../api/model";

export type Tone = "busy" | "act" | "good" | "bad" | "quiet";

export interface Presentation {
  tone: Tone;
  headline: string;
  /** What the person should do now, or what they wait for. */
  advice: string;
  /** The live browser can be of use now. */
  showDesktop: boolean;
  /** A page and a code to show instead of the live browser. */
  showDevice: boolean;
  /** The person may hand over a code or a callback address. */
  showFallback: boolean;
  canCancel: boolean;
  isFinal: boolean;
}

export type StepStatus = "done" | "current" | "todo" | "skipped";

export interface StepRow {
  step: Step;
  label: string;
  status: StepStatus;
  /** "1.8 s" after the start; empty while it has not happened. */
  at: string;
}

const FINAL: readonly SessionState[] = ["succeeded", "failed", "expired", "cancelled"];

/** The session has its outcome. */
export function isFinal(state: SessionState): boolean {
  return FINAL.includes(state);
}

/** The outcome is known and the browser VM is gone: nothing can change any more. */
export function isSettled(session: Session): boolean {
  return isFinal(session.state) && session.steps.some((entry) => entry.step === "closed");
}

const LABELS: Record<Step, string> = {
  vm_requested: "Disposable VM asked for",
  vm_ready: "VM is running",
  cli_started: "Tool started its sign-in",
  url_captured: "Sign-in page found",
  desktop_ready: "Live browser is up",
  user_active: "You at the keyboard",
  callback_seen: "Page returned to the tool",
  credential_seen: "Tool wrote its credential",
  sealed: "Credential sealed",
  transferred: "Moved to your CLI VM",
  closed: "Browser VM destroyed",
};

const ORDER = Object.keys(LABELS) as Step[];
/** Steps that only happen when the person uses the live browser. */
const DESKTOP_ONLY: readonly Step[] = ["desktop_ready", "user_active", "callback_seen"];

/** The steps in order, each with its time. */
export function stepRows(session: Session): StepRow[] {
  const times = new Map(session.steps.map((entry) => [entry.step, entry.atMs]));
  const final = isFinal(session.state);
  const device = session.lane === "device_code";
  const planned = ORDER.filter((step) => times.has(step) || !(device && (DESKTOP_ONLY.includes(step) || step === "url_captured")));
  const lastDone = planned.reduce((last, step, index) => (times.has(step) ? index : last), -1);
  return planned.map((step, index) => {
    const atMs = times.get(step);
    let status: StepStatus = "todo";
    if (atMs !== undefined) status = "done";
    else if (index < lastDone || (final && step !== "closed")) status = "skipped";
    else if (index === lastDone + 1) status = "current";
    return { step, label: LABELS[step], status, at: atMs === undefined ? "" : formatElapsed(atMs) };
  });
}

/** "0.42 s", "12.3 s", "2 min 05 s". */
export function formatElapsed(ms: number): string {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 9.995) return `${seconds.toFixed(2)} s`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
}

function happened(session: Session, step: Step): boolean {
  return session.steps.some((entry) => entry.step === step);
}

/** What to say and show for a session; `tool` is the provider's name. */
export function present(session: Session, tool: string): Presentation {
  const waiting = session.state === "awaiting_user";
  const device = session.device !== null;
  const final = isFinal(session.state);
  const common = {
    showDesktop: waiting && !device && happened(session, "url_captured"),
    showDevice: waiting && device,
    showFallback: waiting && !device && happened(session, "url_captured"),
    // What is sealed is not called back.
    canCancel: !final && !(session.state === "verifying" && happened(session, "credential_seen")),
    isFinal: final,
  };
  switch (session.state) {
    case "queued":
      return { ...common, tone: "busy", headline: "Waiting for a free place", advice: queueAdvice(session.queuePosition) };
    case "starting":
      return { ...common, tone: "busy", headline: "Getting things ready", advice: startingAdvice(session, tool) };
    case "awaiting_user":
      return { ...common, tone: "act", ...awaitingWords(session, tool) };
    case "verifying":
      return { ...common, tone: "busy", headline: "Almost done", advice: verifyingAdvice(session, tool) };
    case "succeeded":
      return { ...common, tone: "good", headline: `${tool} is signed in`, advice: succeededAdvice(session) };
    case "failed":
      return {
        ...common,
        tone: "bad",
        headline: session.error?.title ?? "The sign-in failed",
        advice: session.error?.detail ?? "Nothing was stored. You can start again.",
      };
    case "expired":
      return {
        ...common,
        tone: "bad",
        headline: session.error?.title ?? "The sign-in took too long",
        advice: session.error?.detail ?? "The time for this sign-in is over. Nothing was stored; you can start again.",
      };
    case "cancelled":
      return { ...common, tone: "quiet", headline: "Sign-in cancelled", advice: "Nothing was stored and the browser VM is being destroyed." };
  }
}

function queueAdvice(position: number | null): string {
  if (position === null) return "All places for VMs are in use. Yours starts by itself as soon as one is free.";
  if (position <= 1) return "All places for VMs are in use. You are next.";
  return `All places for VMs are in use. ${position - 1} ${position === 2 ? "person is" : "people are"} ahead of you.`;
}

function startingAdvice(session: Session, tool: string): string {
  if (happened(session, "url_captured")) return "The live browser is opening the sign-in page.";
  if (happened(session, "cli_started")) return `${tool} runs its own sign-in and is about to ask for a browser.`;
  if (happened(session, "vm_ready")) return `The VM is up; ${tool} is starting in it.`;
  return "A fresh browser VM is starting, for this sign-in only. There is nothing to do yet.";
}

function awaitingWords(session: Session, tool: string): { headline: string; advice: string } {
  if (session.device) {
    return { headline: "Enter this code", advice: `Open the page on any device, sign in and enter the code. ${tool} notices by itself.` };
  }
  if (!happened(session, "desktop_ready")) {
    return { headline: "Opening the live browser", advice: "The sign-in page appears in a moment." };
  }
  if (happened(session, "callback_seen")) {
    return { headline: "Finishing", advice: `You are signed in on the page; ${tool} is fetching its credential.` };
  }
  return { headline: "Your turn: sign in", advice: "Sign in on the page below, with mouse and keyboard as usual. polydev notices by itself when you are done." };
}

function verifyingAdvice(session: Session, tool: string): string {
  if (happened(session, "sealed")) return "The sealed credential is on its way to your CLI VM.";
  if (happened(session, "credential_seen")) return "The credential is being sealed.";
  return `${tool} is checking with its provider. You need not do anything.`;
}

function succeededAdvice(session: Session): string {
  const gone = happened(session, "closed") ? "The browser VM is destroyed." : "The browser VM is being destroyed.";
  return `The credential is sealed and lives in your CLI VM. ${gone}`;
}
