// The controller's answers, as the page uses them: the fields of the API's own description (openapi.d.ts, made by
// `npm run types`), with the texts that are really a choice of a few spelled out.

import type { components } from "./openapi";

type Schemas = components["schemas"];
/** The named fields; the controller always sends them, empty ones as null. */
type Fields<Name extends keyof Schemas, Field extends keyof Schemas[Name]> = Pick<Required<Schemas[Name]>, Field>;

export type SessionState = "queued" | "starting" | "awaiting_user" | "verifying" | "succeeded" | "failed" | "expired" | "cancelled";

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

export type StepTime = Omit<Schemas["StepDto"], "step"> & { step: Step };

export type Session = Fields<
  "SessionDto",
  "sessionId" | "userId" | "provider" | "error" | "device" | "browserVmId" | "cliVmId" | "queuePosition" | "createdAt" | "endedAt" | "version"
> & {
  state: SessionState;
  step: Step | null;
  lane: Lane;
  steps: StepTime[];
};

export type Provider = Fields<"ProviderDto", "id" | "name" | "version"> & { lanes: Lane[] };

export type Health = Fields<"Health", "status" | "version" | "driver" | "sharedKernel" | "image" | "slots" | "sessions">;

export type Vm = Fields<"VmDto", "id" | "userId" | "state"> & { kind: "browser" | "cli" };

export type Credential = Fields<"CredentialDto", "id" | "userId" | "provider" | "createdAt">;
