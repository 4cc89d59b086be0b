// The part of noVNC's RFB object that the viewer uses: docs/API.md of noVNC 1.7, and, for a pointer that is not noVNC's
// own, the messages and the socket of core/rfb.js of exactly that version.
declare module "@novnc/novnc" {
  interface RfbOptions {
    shared?: boolean;
  }

  interface RfbSocket {
    flush(): void;
  }

  export default class RFB extends EventTarget {
    constructor(target: HTMLElement, channel: WebSocket, options?: RfbOptions);
    static messages: {
      pointerEvent(socket: RfbSocket, x: number, y: number, mask: number): void;
    };
    readonly _sock: RfbSocket;
    scaleViewport: boolean;
    resizeSession: boolean;
    focusOnClick: boolean;
    viewOnly: boolean;
    showDotCursor: boolean;
    background: string;
    qualityLevel: number;
    compressionLevel: number;
    disconnect(): void;
    focus(options?: FocusOptions): void;
    blur(): void;
    sendKey(keysym: number, code: string | null, down?: boolean): void;
  }
}
