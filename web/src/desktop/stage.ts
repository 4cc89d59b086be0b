// The room in which the picture is seen: places it, enlarges it, draws the pointer, and knows which pixel is under a hand.

import { cursorCss, cursorImage } from "./cursor";
import { fitPicture, NO_ZOOM, pixelAt, zoomed, type Size, type Zoom } from "./geometry";
import type { Lane } from "./lane";
import { Pinch } from "./pinch";
import type { CursorMoved, CursorShape, Place } from "./protocol";

/** How much a turn of the wheel with Control enlarges, per pixel. */
const WHEEL_ZOOM = 0.01;

export class Stage {
  /** Takes the person's input. */
  readonly surface = document.createElement("div");
  private readonly pane = document.createElement("div");
  private readonly pinch = new Pinch();
  private readonly listeners = new AbortController();
  private readonly observer: ResizeObserver;
  private front: Lane | null = null;
  private desktop: Size = { width: 0, height: 0 };
  private zoom: Zoom = NO_ZOOM;
  private cursor: CursorShape | null = null;
  private pointer: HTMLCanvasElement | null = null;
  private pointerAt: Place | null = null;
  private drawsPointer = false;
  private lastTouch: Place | null = null;

  constructor(
    readonly room: HTMLElement,
    private readonly changed: () => void,
  ) {
    Object.assign(this.surface.style, { position: "absolute", inset: "0", overflow: "hidden", outline: "none", cursor: "default" });
    Object.assign(this.pane.style, { position: "absolute", inset: "0", transformOrigin: "0 0" });
    this.surface.append(this.pane);
    room.append(this.surface);
    this.observer = new ResizeObserver(() => this.relayout());
    this.observer.observe(room);
    this.listen();
  }

  get size(): Size {
    return { width: this.room.clientWidth, height: this.room.clientHeight };
  }

  get desktopSize(): Size {
    return this.desktop;
  }

  /** The last place that a finger touched. */
  get touched(): Place | null {
    return this.lastTouch;
  }

  /** Takes a lane's view in, behind the one that is shown. */
  add(lane: Lane): void {
    Object.assign(lane.view.style, { position: "absolute", zIndex: "0" });
    lane.view.setAttribute("role", "img");
    lane.view.setAttribute("aria-label", "Picture of the live browser");
    this.pane.prepend(lane.view);
    this.place(lane);
  }

  /** From now on this lane's view is seen, and no other of those that are over. */
  show(lane: Lane): void {
    if (this.front) delete this.front.view.dataset["front"];
    this.front = lane;
    lane.view.style.zIndex = "1";
    lane.view.dataset["front"] = lane.kind;
    this.place(lane);
  }

  /** Puts a view away. One that is shown stays as a still picture until the next is shown. */
  remove(lane: Lane): void {
    lane.view.remove();
  }

  resize(desktop: Size): void {
    if (desktop.width === this.desktop.width && desktop.height === this.desktop.height) return;
    this.desktop = desktop;
    this.relayout();
  }

  relayout(): void {
    this.zoom = zoomed(this.zoom, this.size, 1, { x: 0, y: 0 });
    this.applyZoom();
    if (this.front) this.place(this.front);
    this.drawCursor();
    this.movePointer();
    this.changed();
  }

  /** The desktop's pixel under a place of the page. */
  toDesktop(x: number, y: number): Place | null {
    const shown = this.picture()?.getBoundingClientRect();
    return shown ? pixelAt(shown, this.desktop, { x, y }) : null;
  }

  setCursor(cursor: CursorShape | CursorMoved): void {
    if (cursor.type === "cursorShape") {
      this.cursor = cursor;
      this.pointer?.remove();
      this.pointer = null;
      this.drawCursor();
    } else {
      this.pointerAt = { x: cursor.x, y: cursor.y };
    }
    this.movePointer();
  }

  setCursorStyle(css: string): void {
    this.cursor = null;
    this.surface.style.cursor = css || "default";
  }

  /** Whether somebody else moves the pointer, so that it has to be drawn. */
  drawPointer(draws: boolean): void {
    this.drawsPointer = draws;
    this.movePointer();
  }

  /** Makes the picture as wide as the room and moves a place of it into sight; used while a soft keyboard takes the room. */
  enlargeAt(place: Place): void {
    const { width, height } = this.size;
    const fit = fitPicture(this.size, this.desktop, devicePixelRatio);
    if (fit.width <= 0) return;
    this.resetZoom();
    const box = this.room.getBoundingClientRect();
    const around = { x: width / 2, y: Math.min(Math.max(place.y - box.top, 0), height) };
    this.zoom = zoomed(NO_ZOOM, this.size, width / fit.width, around, { x: 0, y: height / 2 - around.y });
    this.applyZoom();
  }

  resetZoom(): void {
    this.zoom = NO_ZOOM;
    this.applyZoom();
  }

  destroy(): void {
    this.observer.disconnect();
    this.listeners.abort();
    this.surface.remove();
  }

  private picture(): Element | null {
    return this.front?.ownPlacement ? this.front.ownPlacement() : (this.front?.view ?? null);
  }

  private place(lane: Lane): void {
    const { style } = lane.view;
    if (lane.ownPlacement) {
      style.inset = "0";
      lane.refit?.();
      return;
    }
    const box = fitPicture(this.size, this.desktop, devicePixelRatio);
    for (const side of ["left", "top", "width", "height"] as const) style[side] = `${box[side]}px`;
  }

  private applyZoom(): void {
    const { scale, x, y } = this.zoom;
    this.pane.style.transform = scale === 1 ? "" : `translate(${x}px, ${y}px) scale(${scale})`;
  }

  private drawCursor(): void {
    if (!this.cursor || this.desktop.width === 0) return;
    const fit = fitPicture(this.size, this.desktop, devicePixelRatio);
    const scale = (fit.width / this.desktop.width) * this.zoom.scale;
    if (scale <= 0) return;
    for (const css of cursorCss(this.cursor, scale, devicePixelRatio)) this.surface.style.cursor = css;
  }

  private movePointer(): void {
    if (!this.drawsPointer || !this.cursor || this.cursor.width === 0 || !this.pointerAt || this.desktop.width === 0) {
      this.pointer?.remove();
      this.pointer = null;
      return;
    }
    if (!this.pointer) {
      this.pointer = cursorImage(this.cursor);
      Object.assign(this.pointer.style, { position: "absolute", left: "0", top: "0", zIndex: "2", pointerEvents: "none", transformOrigin: "0 0" });
      this.pane.append(this.pointer);
    }
    const fit = fitPicture(this.size, this.desktop, devicePixelRatio);
    const scale = fit.width / this.desktop.width;
    const at = (offset: number, place: number, hot: number): number => offset + (place - hot) * scale;
    const { x, y } = this.pointerAt;
    this.pointer.style.transform = `translate(${at(fit.left, x, this.cursor.hotX)}px, ${at(fit.top, y, this.cursor.hotY)}px) scale(${scale})`;
  }

  private listen(): void {
    const { signal } = this.listeners;
    const touch = (event: PointerEvent): void => {
      if (event.pointerType !== "touch") return;
      const at = { x: event.clientX, y: event.clientY };
      if (event.type === "pointerdown") {
        this.lastTouch = at;
        this.pinch.down(event.pointerId, at);
      } else if (event.type === "pointermove") {
        const step = this.pinch.move(event.pointerId, at);
        if (step) this.enlarge(step.factor, step.around, step.moved);
      } else {
        this.pinch.up(event.pointerId);
      }
    };
    for (const type of ["pointerdown", "pointermove", "pointerup", "pointercancel"] as const) this.surface.addEventListener(type, touch, { signal, capture: true });
    const wheel = (event: WheelEvent): void => {
      if (event.defaultPrevented || !event.ctrlKey) return;
      event.preventDefault();
      this.enlarge(Math.exp(-event.deltaY * WHEEL_ZOOM), { x: event.clientX, y: event.clientY }, { x: 0, y: 0 });
    };
    this.room.addEventListener("wheel", wheel, { signal, passive: false });
    addEventListener("resize", () => this.relayout(), { signal });
  }

  private enlarge(factor: number, around: Place, moved: Place): void {
    const box = this.room.getBoundingClientRect();
    this.zoom = zoomed(this.zoom, this.size, factor, { x: around.x - box.left, y: around.y - box.top }, moved);
    this.applyZoom();
    this.drawCursor();
  }
}
