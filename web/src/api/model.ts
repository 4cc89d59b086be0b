// The controller's answers, as the page uses them.

export type SessionState =
  | "queued"
  | "starting"
  | "awaiting_user"
  | "verifying"
  | "succeeded"
  | "failed"
  | "expired"
  | "cancelled";

export type Step =
  | "vm_requested"
  | "vm_ready"
  | "cli_started"
  | "url_captured"
  | "desktop_ready"
  | "user_active"
  | "callback_seen"
  | "credential_seen"
  | "sealed"
  | "transferred"
  | "closed";

export type Lane = "streamed_browser" | "callback_relay" | "device_code";

export interface StepTime {
  step: Step;
  /** Milliseconds after the session was created. */
  atMs: number;
}

export interface SessionError {
  code: string;
  title: string;
  detail: string;
}

export interface Session {
  sessionId: string;
  userId: string;
  provider: string;
  state: SessionState;
  step: Step | null;
  lane: Lane;
  steps: StepTime[];
  error: SessionError | null;
  device: { url: string; code: string } | null;
  browserVmId: string | null;
  cliVmId: string | null;
  queuePosition: number | null;
  createdAt: string;
  endedAt: string | null;
  /** Grows with every change. */
  version: number;
}

export interface Provider {
  id: string;
  name: string;
  lanes: Lane[];
  version: string | null;
}

export interface Health {
  status: string;
  version: string;
  driver: string;
  sharedKernel: boolean;
  image: string | null;
  slots: { used: number; total: number };
  sessions: { active: number };
}

export interface Vm {
  id: string;
  kind: "browser" | "cli";
  userId: string | null;
  state: string;
}

export interface Credential {
  id: string;
  userId: string;
  provider: string;
  createdAt: string;
}
