// The live desktop of one session in one element: opens lanes as the plan says, shows the best, takes input, and keeps
// number and role when the lane changes. Knows no framework; element.ts and the page's own parts stand on it.

import { attachInput, type InputHandle } from "./input/attach";
import { LanePlan, LANES, type LaneAction, type LaneKind, type Why, type Wish } from "./lanes";
import { scalePercent, wantedSize, type Size } from "./geometry";
import { HeldInput } from "./handover";
import type { Lane, LaneContext, LaneHandlers } from "./lane";
import { newOpen, type Open } from "./open";
import { leaveToken, savedWish, saveWish, takeToken } from "./memory";
import { inputToPicture, type Figures } from "./meter";
import { refusedText } from "./present";
import type { ClipboardPolicy, CursorMoved, CursorShape, HubStats, Role, ToViewer } from "./protocol";
import { CLIPBOARD_MAX } from "./protocol";
import { Stage } from "./stage";
import { VncLane } from "./vnc";
import { hasWebRtc, WebRtcLane } from "./webrtc";
import { hasWebCodecs, WebSocketLane } from "./websocket";

export type Phase = "connecting" | "live" | "repairing" | "waiting" | "interrupted" | "ended";

/** What there is to know about a viewer. A new object for each change. */
export interface ViewerState {
  phase: Phase;
  lane: LaneKind | null;
  /** How the lane's packets travel: "UDP", "TCP", "relay" or empty. */
  path: string;
  wish: Wish;
  reasons: readonly { lane: LaneKind; why: Why }[];
  role: Role;
  mayControl: boolean;
  viewer: number | null;
  viewers: number;
  /** Another viewer that asks for the control. */
  asking: number | null;
  clipboard: ClipboardPolicy;
  desktop: Size;
  /** Why nothing more comes. */
  ended: string;
}

/** Figures of the last second. */
export interface ViewerFigures extends Figures {
  inputToPictureMs: number | null;
  hub: HubStats | null;
}

export interface ViewerOptions {
  sessionId: string;
  /** Address of the controller; empty for the page's own origin. */
  base?: string;
  /** `view` never takes part. */
  role?: Role;
  label?: string;
}

export interface ViewerEvents {
  state(state: ViewerState): void;
  figures(figures: ViewerFigures): void;
  /** The VM's clipboard changed; `taken` says whether the person's clipboard has it now. */
  clipboard(text: string, taken: boolean): void;
  /** Something to tell the person once. */
  notice(text: string): void;
  /** Ctrl+Alt+Home: the keyboard belongs to the page again. */
  leave(): void;
}

/** A window that is being dragged asks once, when it rests. */
const RESIZE_MS = 250;
const FIGURES_MS = 1_000;
/** A hand-over of the control to a better lane of the same person may take so long. */
const HAND_OVER_MS = 1_000;
/** Pastes of more, or of several lines, go through the VM's clipboard. */
const TYPED_PASTE_MAX = 256;
/** A soft keyboard takes at least this share of the height. */
const KEYBOARD_SHARE = 0.2;

export class DesktopViewer {
  readonly input: InputHandle;
  private readonly stage: Stage;
  private readonly plan: LanePlan;
  private readonly opens = new Map<LaneKind, Open>();
  private readonly wishRole: Role;
  private readonly context: Pick<LaneContext, "base" | "sessionId">;
  private readonly listeners = new AbortController();
  private readonly held = new HeldInput();
  private wish: Wish = savedWish();
  private front: Open | null = null;
  /** A lane that is over, and whose last picture is still seen. */
  private still: Open | null = null;
  private token: string | null;
  private asking: number | null = null;
  private ended: string | null = null;
  private wasLive = false;
  private path = "";
  private last: ViewerState | null = null;
  private announced = false;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private resizing: ReturnType<typeof setTimeout> | undefined;
  private readonly figuresTimer: ReturnType<typeof setInterval>;
  private asked = "";
  private room: Size | null = null;

  constructor(
    room: HTMLElement,
    options: ViewerOptions,
    private readonly events: ViewerEvents,
  ) {
    this.wishRole = options.role ?? "control";
    this.context = { base: (options.base ?? "").replace(/\/+$/, ""), sessionId: options.sessionId };
    this.token = takeToken(options.sessionId);
    this.plan = new LanePlan(supportedLanes(), this.wish);
    this.stage = new Stage(room, () => this.roomChanged());
    this.input = attachInput(
      this.stage.surface,
      {
        send: (message, reliable) => {
          if (!this.held.take(message, reliable)) this.front?.lane.send(message, reliable);
        },
        size: () => this.stage.desktopSize,
        toDesktop: (x, y) => this.stage.toDesktop(x, y),
      },
      {
        active: false,
        leave: () => this.events.leave(),
        paste: (text) => this.pasteAs(text),
        ...(options.label === undefined ? {} : { label: options.label }),
      },
    );
    this.listen();
    this.figuresTimer = setInterval(() => void this.measure(), FIGURES_MS);
    this.run(this.plan.start(performance.now()));
  }

  get state(): ViewerState {
    return this.last ?? this.describe();
  }

  focus(): void {
    this.input.focus();
  }

  /** Types a text into whatever has the focus in the VM. */
  type(text: string): void {
    this.input.typeText(text);
  }

  press(keysym: number, code = ""): void {
    this.input.pressKey(keysym, code);
  }

  /** Puts a text on the VM's clipboard. */
  sendClipboard(text: string): void {
    if (new TextEncoder().encode(text).length > CLIPBOARD_MAX) return this.events.notice(refusedText("too_long"));
    this.front?.lane.say({ type: "clipboard", text });
  }

  requestControl(): void {
    this.front?.lane.say({ type: "requestControl" });
  }

  /** Gives the control up, to a viewer if one is named. */
  releaseControl(to?: number): void {
    this.asking = null;
    this.front?.lane.say({ type: "releaseControl", ...(to === undefined ? {} : { to }) });
    this.changed();
  }

  /** Whoever asks for the control does not get it. */
  keepControl(): void {
    this.asking = null;
    this.changed();
  }

  chooseLane(wish: Wish): void {
    this.wish = wish;
    saveWish(wish);
    this.run(this.plan.choose(wish, performance.now()));
    this.changed();
  }

  stop(): void {
    clearTimeout(this.timer);
    clearTimeout(this.resizing);
    clearInterval(this.figuresTimer);
    this.listeners.abort();
    this.input.detach();
    for (const open of this.opens.values()) this.endLane(open);
    this.opens.clear();
    this.plan.stop();
    this.stage.destroy();
  }

  // -- lanes ---------------------------------------------------------------------------------------------------------

  private run(actions: LaneAction[]): void {
    for (const { do: what, lane } of actions) {
      if (what === "open") this.open(lane);
      else if (what === "show") this.show(lane);
      else this.close(lane);
    }
    clearTimeout(this.timer);
    const { nextAt } = this.plan;
    if (nextAt !== null) this.timer = setTimeout(() => this.run(this.plan.tick(performance.now())), Math.max(0, nextAt - performance.now()));
    this.changed();
  }

  private open(kind: LaneKind): void {
    // A lane that is opened behind the picture is a viewer of its own until the control is handed over to it.
    const resume = this.front ? null : this.token;
    const context: LaneContext = { ...this.context, role: this.wishRole, resume };
    const open: Open = newOpen(
      makeLane(kind, context, {
        connected: () => this.run(this.plan.connected(kind, performance.now())),
        picture: () => {
          open.hasPicture = true;
          this.settle(open);
        },
        words: (words) => this.hear(open, words),
        cursor: (cursor) => this.takeCursor(open, cursor),
        cursorStyle: (css) => {
          if (this.front === open) this.stage.setCursorStyle(css);
        },
        resume: (token) => {
          open.token = token;
          if (!this.front || this.front === open) this.token = token;
        },
        size: (width, height) => this.takeSize(open, { width, height }),
        repairing: (is) => {
          open.repairing = is;
          this.changed();
        },
        failed: (why) => {
          if (this.opens.get(kind) === open) this.run(this.plan.failed(kind, why, performance.now()));
        },
      }),
      this.wishRole,
    );
    this.opens.set(kind, open);
    this.stage.add(open.lane);
    open.lane.start();
  }

  /** A lane with a picture is shown as soon as it has what the person has on the lane before. */
  private settle(open: Open): void {
    const { kind } = open.lane;
    if (this.opens.get(kind) !== open || !open.hasPicture || this.front === open) return;
    const holder = this.front;
    const moves = holder !== null && holder.role === "control" && this.wishRole === "control";
    if (open.hello && (!moves || open.role === "control")) {
      clearTimeout(open.handingOver);
      this.run(this.plan.opened(kind, performance.now()));
      return;
    }
    // Better a picture without the control than none.
    open.handingOver ??= setTimeout(() => {
      if (this.opens.get(kind) === open && this.front !== open) this.run(this.plan.opened(kind, performance.now()));
    }, HAND_OVER_MS);
    if (moves && open.viewer !== null && !open.asked) {
      open.asked = true;
      this.input.releaseAll();
      this.held.begin();
      holder.lane.say({ type: "releaseControl", to: open.viewer });
    }
  }

  private show(kind: LaneKind): void {
    const open = this.opens.get(kind);
    if (!open) return;
    this.input.releaseAll();
    if (this.still) this.stage.remove(this.still.lane);
    this.still = null;
    this.front = open;
    this.token = open.token ?? this.token;
    this.asked = "";
    if (open.size.width > 0) this.stage.resize(open.size);
    this.stage.show(open.lane);
    if (open.shape) this.stage.setCursor(open.shape);
    if (open.moved) this.stage.setCursor(open.moved);
    open.lane.refit?.();
    this.path = "";
    this.wasLive = true;
    this.sendHeld();
    this.askForSize(0);
  }

  /** What waited for the control goes to the lane in front. */
  private sendHeld(): void {
    for (const message of this.held.end()) this.front?.lane.send(message, true);
  }

  private close(kind: LaneKind): void {
    const open = this.opens.get(kind);
    if (!open) return;
    this.opens.delete(kind);
    if (this.front === open) {
      this.input.releaseAll();
      this.front = null;
      if (this.still) this.stage.remove(this.still.lane);
      this.still = open;
      open.lane.stop();
      return;
    }
    // It may have taken the control with it.
    if (open.handingOver !== undefined && this.front && this.front.viewer !== null) open.lane.say({ type: "releaseControl", to: this.front.viewer });
    this.endLane(open);
    // What waits goes back with the control, if that comes.
    if (open.asked) setTimeout(() => this.sendHeld(), HAND_OVER_MS);
  }

  private endLane(open: Open): void {
    clearTimeout(open.handingOver);
    open.lane.stop();
    this.stage.remove(open.lane);
  }

  // -- what lanes say ------------------------------------------------------------------------------------------------

  private hear(open: Open, words: ToViewer): void {
    switch (words.type) {
      case "hello":
        Object.assign(open, { hello: true, role: words.role, mayControl: words.mayControl, viewer: words.viewer, viewers: words.viewers, clipboard: words.clipboard });
        this.takeSize(open, words);
        this.settle(open);
        if (this.front === open) this.askForSize(0);
        break;
      case "role": {
        // While the control goes to a lane of the same person, nobody has lost anything.
        const moving = [...this.opens.values()].some((other) => other !== open && other.handingOver !== undefined);
        if (this.front !== open || !moving) open.role = words.role;
        if (this.front === open && words.role === "control") this.sendHeld();
        if (words.role === "control") this.askForSize(0);
        else if (this.front === open) this.asking = null;
        this.settle(open);
        break;
      }
      case "viewers":
        open.viewers = words.viewers;
        break;
      case "controlRequested":
        if (this.front === open && !this.isOwn(words.viewer)) this.asking = words.viewer;
        break;
      case "size":
        this.takeSize(open, words);
        break;
      case "clipboard":
        if (this.front === open) void this.takeClipboard(words.text);
        break;
      case "interrupted":
        open.interrupted = words.interrupted;
        break;
      case "stats": {
        const { type: _, ...hub } = words;
        open.hub = hub;
        return;
      }
      case "refused": {
        const text = refusedText(words.code);
        if (this.front === open && text !== "") this.events.notice(text);
        return;
      }
      case "ended":
        if (this.front === open || !this.front) this.end(words.reason);
        return;
      case "pong":
      case "resume":
        return;
    }
    this.changed();
  }

  private takeSize(open: Open, { width, height }: Size): void {
    if (width === 0 || height === 0) return;
    open.size = { width, height };
    if (this.front === open || !this.front) this.stage.resize(open.size);
  }

  private takeCursor(open: Open, cursor: CursorShape | CursorMoved): void {
    if (cursor.type === "cursorShape") open.shape = cursor;
    else open.moved = cursor;
    if (this.front === open) this.stage.setCursor(cursor);
  }

  private async takeClipboard(text: string): Promise<void> {
    let taken = false;
    if (document.hasFocus()) {
      taken = await navigator.clipboard?.writeText(text).then(
        () => true,
        () => false,
      );
    }
    this.events.clipboard(text, taken === true);
  }

  private end(reason: string): void {
    this.ended = reason;
    this.run(this.plan.stop());
  }

  private isOwn(viewer: number): boolean {
    return [...this.opens.values()].some((open) => open.viewer === viewer);
  }

  // -- the room ------------------------------------------------------------------------------------------------------

  private roomChanged(): void {
    const room = this.stage.size;
    const before = this.room;
    const { field } = this.input;
    const typing = field.inputMode === "text" && field.matches(":focus");
    // A soft keyboard that comes up covers the desktop: show the touched part instead of squeezing the desktop.
    if (before && typing && room.width === before.width && room.height < before.height * (1 - KEYBOARD_SHARE)) {
      const touched = this.stage.touched;
      if (touched) this.stage.enlargeAt(touched);
      return;
    }
    if (before && room.width === before.width && room.height === before.height) return;
    this.room = room;
    this.askForSize(RESIZE_MS);
  }

  private askForSize(afterMs: number): void {
    clearTimeout(this.resizing);
    this.resizing = setTimeout(() => {
      const open = this.front;
      const wanted = wantedSize(this.stage.size);
      if (!open || !wanted || open.role !== "control" || open.lane.kind === "vnc") return;
      const scale = scalePercent(devicePixelRatio);
      const key = `${wanted.width}x${wanted.height}@${scale}`;
      if (key === this.asked) return;
      this.asked = key;
      open.lane.say({ type: "resize", ...wanted, scale });
    }, afterMs);
  }

  private pasteAs(text: string): "type" | "key" | "ignore" {
    const open = this.front;
    const isLong = text.length > TYPED_PASTE_MAX || /[\r\n]./.test(text);
    if (!isLong || !open || open.lane.kind === "vnc" || (open.clipboard !== "both" && open.clipboard !== "in")) return "type";
    this.sendClipboard(text);
    return "key";
  }

  private listen(): void {
    const { signal } = this.listeners;
    const wake = (): void => {
      if (document.visibilityState === "visible") this.run(this.plan.wake(performance.now()));
    };
    addEventListener("online", wake, { signal });
    document.addEventListener("visibilitychange", wake, { signal });
    const watching = (event: Event): void => {
      const types = !(event instanceof KeyboardEvent) || event.key.length === 1;
      if (types && this.front?.role === "view") this.events.notice(this.front.mayControl ? refusedText("view_only") : "You are watching.");
    };
    for (const act of ["pointerdown", "keydown"] as const) this.stage.surface.addEventListener(act, watching, { signal });
    // Only a page that goes away leaves its token behind: a second tab must not take the first one's place.
    const left = (): void => {
      leaveToken(this.context.sessionId, this.token);
      // Others need not wait until the connection is missed; a reload takes back what nobody took.
      if (this.front?.role === "control") this.front.lane.say({ type: "releaseControl" });
      for (const open of this.opens.values()) open.lane.stop();
    };
    addEventListener("pagehide", left, { signal });
  }

  // -- what is told --------------------------------------------------------------------------------------------------

  private async measure(): Promise<void> {
    const open = this.front;
    if (!open) return;
    const figures = await open.lane.figures();
    if (this.front !== open) return;
    const inputToPictureMs = inputToPicture(figures, open.hub?.inputServerMs ?? null);
    const known = (name: string, value: number | null): Record<string, number> => (value === null ? {} : { [name]: value });
    open.lane.say({
      type: "report",
      ...known("rttMs", figures.rttMs),
      ...known("presentMs", figures.presentMs),
      ...known("inputToPictureMs", inputToPictureMs),
      framesShown: figures.framesShown,
      framesDropped: figures.framesDropped,
      freezes: figures.freezes,
    });
    this.events.figures({ ...figures, inputToPictureMs, hub: open.hub });
    if (this.path !== figures.path) {
      this.path = figures.path;
      this.changed();
    }
  }

  private changed(): void {
    const isLive = this.front !== null && this.ended === null;
    this.input.setActive(isLive && this.front?.role === "control");
    this.stage.drawPointer(isLive && this.front?.role === "view");
    if (this.announced) return;
    this.announced = true;
    queueMicrotask(() => {
      this.announced = false;
      if (this.listeners.signal.aborted) return;
      this.last = this.describe();
      this.events.state(this.last);
    });
  }

  private describe(): ViewerState {
    const open = this.front ?? this.still;
    const own = [...this.opens.values()].filter((other) => other.hello).length;
    return {
      phase: this.phase(),
      lane: this.plan.lane,
      path: this.path,
      wish: this.wish,
      reasons: [...this.plan.reasons].map(([lane, why]) => ({ lane, why })),
      role: open?.role ?? "view",
      mayControl: open?.mayControl ?? this.wishRole === "control",
      viewer: open?.viewer ?? null,
      viewers: Math.max(1, (open?.viewers ?? 1) - Math.max(0, own - 1)),
      asking: this.asking,
      clipboard: open?.clipboard ?? "off",
      desktop: this.stage.desktopSize,
      ended: this.ended ?? "",
    };
  }

  private phase(): Phase {
    if (this.ended !== null) return "ended";
    if (!this.front) return this.wasLive || this.plan.isWaiting ? "waiting" : "connecting";
    if (this.front.repairing) return "repairing";
    return this.front.interrupted ? "interrupted" : "live";
  }
}

function makeLane(kind: LaneKind, context: LaneContext, handlers: LaneHandlers): Lane {
  switch (kind) {
    case "webrtc":
      return new WebRtcLane(context, handlers);
    case "websocket":
      return new WebSocketLane(context, handlers);
    case "vnc":
      return new VncLane(context, handlers);
  }
}

function supportedLanes(): ReadonlySet<LaneKind> {
  const has: Record<LaneKind, boolean> = { webrtc: hasWebRtc(), websocket: hasWebCodecs(), vnc: true };
  return new Set(LANES.filter((lane) => has[lane]));
}
