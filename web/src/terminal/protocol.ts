// What goes over the terminal's WebSocket: binary frames are bytes in both directions, text frames are control messages.

/** Whether the VM stands still because its host's disk is nearly full. */
export type VmMotion = "running" | "paused";

export type ServerMessage = { kind: "output"; bytes: Uint8Array } | { kind: "exit"; code: number | null } | { kind: "state"; state: VmMotion } | { kind: "unknown" };

/** Reads one message of the controller. */
export function readMessage(data: unknown): ServerMessage {
  if (data instanceof ArrayBuffer) return { kind: "output", bytes: new Uint8Array(data) };
  if (typeof data !== "string") return { kind: "unknown" };
  let message: unknown;
  try {
    message = JSON.parse(data);
  } catch {
    return { kind: "unknown" };
  }
  if (typeof message !== "object" || message === null || !("type" in message)) return { kind: "unknown" };
  if (message.type === "state" && "state" in message && (message.state === "running" || message.state === "paused")) return { kind: "state", state: message.state };
  if (message.type !== "exit") return { kind: "unknown" };
  const code = "code" in message && typeof message.code === "number" ? message.code : null;
  return { kind: "exit", code };
}

/** Control message: the terminal has this size now. */
export function resizeMessage(cols: number, rows: number): string {
  return JSON.stringify({ type: "resize", cols: clampSize(cols), rows: clampSize(rows) });
}

/** Path of a VM's terminal for a terminal of this size. */
export function terminalPath(vmId: string, cols: number, rows: number): string {
  const query = new URLSearchParams({ cols: String(clampSize(cols)), rows: String(clampSize(rows)) });
  return `/api/vms/${encodeURIComponent(vmId)}/terminal?${query}`;
}

function clampSize(value: number): number {
  return Math.min(Math.max(Math.trunc(value) || 1, 1), 1000);
}
