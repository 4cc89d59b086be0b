// The controller's routes of the live desktop.

import type { LaneContext } from "./lane";
import type { Role } from "./protocol";

/** How long an answer to the offer may take, and the list of ICE servers. */
const OFFER_MS = 5_000;
const SERVERS_MS = 2_000;

export interface OfferRequest {
  sdp: string;
  role?: Role;
  resume?: string;
  viewerId?: string | number;
}

export interface OfferAnswer {
  viewerId: string | number;
  resume: string;
  sdp: string;
}

/** The controller did not take an offer. */
export class OfferRefused extends Error {
  constructor(readonly status: number) {
    super(`the offer was answered with ${status}`);
  }
}

export function streamUrl({ base, sessionId, role }: LaneContext, resume: string | null): string {
  return socketAddress(`${base}/api/stream/${encodeURIComponent(sessionId)}?${asViewer(role, resume)}`);
}

export function vncUrl({ base, sessionId, role, resume }: LaneContext): string {
  return socketAddress(`${base}/api/auth/session/${encodeURIComponent(sessionId)}/vnc?${asViewer(role, resume)}`);
}

function asViewer(role: Role, resume: string | null): URLSearchParams {
  return new URLSearchParams({ role, ...(resume === null ? {} : { resume }) });
}

/** One round trip: the page's offer for the controller's answer. */
export async function sendOffer({ base, sessionId }: LaneContext, offer: OfferRequest): Promise<OfferAnswer> {
  const response = await fetch(`${base}/api/webrtc/session/${encodeURIComponent(sessionId)}/offer`, {
    method: "POST",
    credentials: "same-origin",
    cache: "no-store",
    headers: { "content-type": "application/json", accept: "application/json" },
    body: JSON.stringify(offer),
    signal: AbortSignal.timeout(OFFER_MS),
  });
  if (!response.ok) throw new OfferRefused(response.status);
  const { viewerId, resume, answer } = (await response.json()) as { viewerId: string | number; resume: string; answer: { sdp: string } };
  return { viewerId, resume, sdp: answer.sdp };
}

/** The servers that help a connection through firewalls; none when the controller names none in time. */
export async function iceServers({ base }: LaneContext): Promise<RTCIceServer[]> {
  try {
    const response = await fetch(`${base}/api/webrtc/ice-servers`, { credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(SERVERS_MS) });
    const { iceServers: servers } = (await response.json()) as { iceServers: (string | RTCIceServer)[] };
    return servers.map((server) => (typeof server === "string" ? { urls: server } : server));
  } catch {
    return [];
  }
}

function socketAddress(path: string): string {
  return new URL(path, location.href).href.replace(/^http/, "ws");
}
