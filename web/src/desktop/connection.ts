// The live browser: noVNC over the controller's WebSocket, connected again whenever it is lost.

import type RFB from "@novnc/novnc";
import { sessionPath, socketUrl } from "../api/client";
import { Reconnector, wakeOnReturn, type LinkState } from "../net/reconnector";
import { typeText } from "./typing";

/** Narrower than this a desktop of the same width is of no use: Chromium's window cannot become smaller, so the picture is scaled instead. */
const REMOTE_RESIZE_MIN_WIDTH = 560;

export class DesktopConnection {
  private rfb: RFB | undefined;
  private readonly link: Reconnector;
  private readonly stopWaking: () => void;

  constructor(
    private readonly screen: HTMLElement,
    private readonly sessionId: string,
    changed: (state: LinkState) => void,
  ) {
    this.link = new Reconnector({ connect: () => void this.connect(), changed });
    this.stopWaking = wakeOnReturn(this.link);
    this.link.start();
  }

  focus(): void {
    this.rfb?.focus({ preventScroll: true });
  }

  /** Types a text into whatever has the focus in the live browser. */
  async type(text: string): Promise<void> {
    const rfb = this.rfb;
    if (!rfb) return;
    await typeText(text, (keysym) => rfb.sendKey(keysym, null), undefined, () => this.rfb === rfb);
  }

  press(keysym: number): void {
    this.rfb?.sendKey(keysym, null);
  }

  /** The room for the picture changed: ask for a desktop of that size only where one makes sense. */
  fit(): void {
    if (this.rfb) this.rfb.resizeSession = this.screen.clientWidth >= REMOTE_RESIZE_MIN_WIDTH;
  }

  stop(): void {
    this.stopWaking();
    this.link.stop();
    this.rfb?.disconnect();
    this.rfb = undefined;
  }

  private async connect(): Promise<void> {
    const { default: Rfb } = await import("@novnc/novnc");
    this.screen.replaceChildren();
    const rfb = new Rfb(this.screen, socketUrl(sessionPath(this.sessionId, "vnc")), { shared: true, wsProtocols: ["binary"] });
    this.rfb = rfb;
    rfb.background = "transparent";
    rfb.scaleViewport = true;
    rfb.focusOnClick = true;
    rfb.showDotCursor = true;
    rfb.qualityLevel = 7;
    rfb.compressionLevel = 2;
    this.fit();
    rfb.addEventListener("connect", () => {
      this.link.opened();
      this.fit();
    });
    rfb.addEventListener("disconnect", () => {
      if (this.rfb === rfb) this.rfb = undefined;
      this.link.lost();
    });
  }
}
