// Keyboard, pointer and touch of the person, attached to the element that shows the desktop.

import { Keyboard, type Later } from "./keyboard";
import { TypedText } from "./ime";
import { Latches } from "./latches";
import { Output, PASTE_LIMIT, type InputSink } from "./output";
import { hasSoftKeyboard, platformOf, type Platform } from "./platform";
import { Pointer } from "./pointer";
import { Touch } from "./touch";
import { Wheel } from "./wheel";

export type { InputSink } from "./output";

export interface InputOptions {
  /** For screen readers: what the keyboard goes to. */
  label?: string;
  /** Whether input is sent from the start. */
  active?: boolean;
  /**
   * What a paste is to be: typed as keys, pressed as the VM's own paste (after the caller gave the VM the text), or
   * nothing. Without it pastes are typed.
   */
  paste?(text: string): "type" | "key" | "ignore";
  /** The person pressed Ctrl+Alt+Home: the keyboard belongs to the page again. */
  leave?(): void;
  /** The keyboard came to the desktop, or went. */
  focused?(has: boolean): void;
  /** What one moving finger does. */
  oneFinger?: "scroll" | "drag";
  /** Tests may say whose keyboard it is. */
  platform?: Platform;
}

export interface InputHandle {
  detach(): void;
  /** Lets every key and button go in the VM. */
  releaseAll(): void;
  typeText(text: string): void;
  pressKey(keysym: number, code?: string): void;
  /** Inactive: nothing is sent, and the browser's own keys work. */
  setActive(active: boolean): void;
  focus(): void;
  /** Shows or hides the system's soft keyboard; must be called by a touch of the person. */
  showKeyboard(show: boolean): void;
  /** Sticky modifiers, for soft keys. */
  readonly latches: Latches;
  /** Where the keyboard's events arrive. */
  readonly field: HTMLTextAreaElement;
}

interface KeyboardLock {
  lock?(): Promise<void>;
  unlock?(): void;
}

export function attachInput(target: HTMLElement, sink: InputSink, options: InputOptions = {}): InputHandle {
  return new Attached(target, sink, options);
}

const later: Later = (run, delayMs) => {
  const timer = setTimeout(run, delayMs);
  return () => clearTimeout(timer);
};

class Attached implements InputHandle {
  readonly latches = new Latches();
  readonly field: HTMLTextAreaElement;
  private readonly output: Output;
  private readonly keyboard: Keyboard;
  private readonly typed: TypedText;
  private readonly pointer: Pointer;
  private readonly touch: Touch;
  private readonly wheel = new Wheel();
  private readonly listeners = new AbortController();
  private frameWanted = 0;
  private wheelAt: { x: number; y: number } | null = null;

  constructor(
    private readonly target: HTMLElement,
    private readonly sink: InputSink,
    private readonly options: InputOptions,
  ) {
    const platform = options.platform ?? platformOf(navigator);
    this.field = hiddenField(target.ownerDocument, options.label ?? "Keyboard of the live browser. Ctrl+Alt+Home leaves it.");
    // A touch of the desktop is not a wish for the soft keyboard; see `showKeyboard`.
    if (hasSoftKeyboard(platform)) this.field.inputMode = "none";
    target.append(this.field);
    this.output = new Output(sink);
    this.output.active = options.active ?? true;
    this.keyboard = new Keyboard(this.output, { platform, latches: this.latches, later, pastes: true });
    this.typed = new TypedText(this.field, this.keyboard, hasSoftKeyboard(platform));
    this.pointer = new Pointer({
      emit: (event) => this.output.emit(event),
      toDesktop: (x, y) => sink.toDesktop(x, y),
      requestFrame: () => this.requestFrame(),
    });
    this.touch = this.makeTouch();
    this.listenToKeys();
    this.listenToPointer();
    this.listenToPage();
  }

  detach(): void {
    this.releaseAll();
    this.listeners.abort();
    cancelAnimationFrame(this.frameWanted);
    this.frameWanted = 0;
    lockOf(navigator)?.unlock?.();
    this.field.remove();
  }

  releaseAll(): void {
    this.forget();
    this.output.emit({ type: "releaseAll" });
  }

  typeText(text: string): void {
    this.keyboard.withoutModifiers(() => this.output.text(text.slice(0, PASTE_LIMIT)));
  }

  pressKey(keysym: number, code = ""): void {
    this.keyboard.tap(keysym, code);
  }

  setActive(active: boolean): void {
    if (active === this.output.active) return;
    this.forget();
    this.output.active = active;
  }

  focus(): void {
    this.field.focus({ preventScroll: true });
  }

  showKeyboard(show: boolean): void {
    this.field.inputMode = show ? "text" : "none";
    // The mode is looked at when the focus comes.
    this.field.blur();
    this.focus();
  }

  private forget(): void {
    this.keyboard.forget();
    this.pointer.forget();
    this.touch.forget();
    this.wheel.clear();
    this.typed.reset();
  }

  /** The focus or the page went away: no release of a key will be seen any more. */
  private lost(): void {
    if (this.keyboard.holds || this.pointer.holds) this.releaseAll();
    else this.forget();
  }

  private listenToKeys(): void {
    const { field, keyboard, typed } = this;
    const on = this.adder(field);
    on("keydown", (event) => {
      if (!this.output.active) return;
      if (event.key === "Home" && event.ctrlKey && event.altKey) {
        this.releaseAll();
        field.blur();
        this.options.leave?.();
        event.preventDefault();
        return;
      }
      if (!event.isComposing) typed.idle();
      this.judge(event, keyboard.down(event));
    });
    on("keyup", (event) => {
      if (this.output.active) this.judge(event, keyboard.up(event));
    });
    on("compositionstart", () => {
      placeField(field, this.target, this.wheelAt);
      field.style.opacity = "1";
      typed.compositionStart();
    });
    on("compositionend", () => {
      field.style.opacity = "0";
      typed.compositionEnd();
    });
    on("input", (event) => typed.input(event instanceof globalThis.InputEvent ? event.inputType : ""));
    on("paste", (event) => {
      event.preventDefault();
      const text = event.clipboardData?.getData("text/plain") ?? "";
      const wish = text === "" ? "key" : (this.options.paste?.(text) ?? "type");
      const as = this.output.active ? wish : "ignore";
      keyboard.pasted(as === "key");
      if (as === "type") this.typeText(text);
    });
    on("focus", () => this.options.focused?.(true));
    on("blur", () => {
      this.lost();
      this.options.focused?.(false);
    });
  }

  private listenToPointer(): void {
    const { target } = this;
    target.style.touchAction = "none";
    const on = this.adder(target);
    const mouse = (event: PointerEvent) => {
      if (event.pointerType === "touch") return this.finger(event);
      this.wheelAt = { x: event.clientX, y: event.clientY };
      if (!this.output.active) return;
      if (event.type === "pointerdown") {
        target.setPointerCapture(event.pointerId);
        this.focus();
        this.keyboard.releaseLost(event);
      }
      this.pointer.event(event);
    };
    for (const type of ["pointerdown", "pointermove", "pointerup"] as const) on(type, mouse);
    on("pointercancel", (event) => (event.pointerType === "touch" ? this.touch.cancel(event.pointerId) : this.pointer.release()));
    on("lostpointercapture", (event) => {
      if (event.pointerType !== "touch" && event.buttons === 0) this.pointer.release();
    });
    // The focus stays in the field, nothing is dragged or selected, and the back button is the VM's.
    for (const type of ["mousedown", "mouseup", "auxclick", "dragstart", "contextmenu"] as const) {
      on(type, (event) => {
        if (this.output.active && event.target !== this.field) event.preventDefault();
      });
    }
    on(
      "wheel",
      (event) => {
        // Control that is not held as a key is a pinch on a touchpad: the viewer's zoom.
        if (!this.output.active || (event.ctrlKey && !this.keyboard.holds)) return;
        event.preventDefault();
        this.turn(event, { x: event.clientX, y: event.clientY });
      },
      { passive: false },
    );
    on("focus", () => this.focus());
  }

  private listenToPage(): void {
    const page = this.target.ownerDocument;
    const { signal } = this.listeners;
    const lost = () => this.lost();
    window.addEventListener("blur", lost, { signal });
    window.addEventListener("pagehide", lost, { signal });
    const hidden = () => {
      if (page.visibilityState === "hidden") this.lost();
    };
    page.addEventListener("visibilitychange", hidden, { signal });
    const resized = () => {
      const root = this.target.getRootNode();
      const full = page.fullscreenElement?.contains(root instanceof ShadowRoot ? root.host : this.target);
      // Without it Escape, Ctrl+W and the like go to the person's own browser; where it is missing, so be it.
      if (full) lockOf(navigator)?.lock?.().catch(() => {});
      else lockOf(navigator)?.unlock?.();
    };
    page.addEventListener("fullscreenchange", resized, { signal });
  }

  private finger(event: PointerEvent): void {
    if (!this.output.active) return;
    const at = { x: event.clientX, y: event.clientY };
    if (event.type === "pointerdown") {
      this.target.setPointerCapture(event.pointerId);
      this.touch.down(event.pointerId, at);
    } else if (event.type === "pointermove") {
      this.touch.move(event.pointerId, at);
    } else {
      this.touch.up(event.pointerId);
    }
  }

  private makeTouch(): Touch {
    const click = (button: number) => (at: { x: number; y: number }) => {
      this.wheelAt = at;
      const place = this.sink.toDesktop(at.x, at.y);
      if (place) this.pointer.click(button, place);
      this.focus();
    };
    const right = click(3);
    return new Touch({
      oneFinger: this.options.oneFinger ?? "scroll",
      later,
      tap: click(1),
      longPress: (at) => {
        navigator.vibrate?.(10);
        right(at);
      },
      scroll: (by, at) => this.turn({ deltaX: -by.x, deltaY: -by.y, deltaMode: 0 }, at),
      drag: (phase, at) => this.pointer.event({ clientX: at.x, clientY: at.y, buttons: phase === "end" ? 0 : 1 }),
    });
  }

  private turn(event: { deltaX: number; deltaY: number; deltaMode: number }, at: { x: number; y: number }): void {
    this.wheelAt = at;
    this.wheel.turn(event, { width: this.target.clientWidth, height: this.target.clientHeight });
    this.requestFrame();
  }

  private requestFrame(): void {
    if (this.frameWanted !== 0) return;
    this.frameWanted = requestAnimationFrame(() => {
      this.frameWanted = 0;
      this.pointer.frame();
      this.turned();
    });
  }

  private turned(): void {
    const place = this.wheelAt && this.sink.toDesktop(this.wheelAt.x, this.wheelAt.y);
    if (!place) return this.wheel.clear();
    const turn = this.wheel.take();
    if (turn) this.output.emit({ type: "wheel", ...turn, ...place });
  }

  private judge(event: KeyboardEvent, verdict: "taken" | "native"): void {
    if (verdict === "native") return;
    event.preventDefault();
    event.stopPropagation();
  }

  private adder(element: HTMLElement) {
    return <K extends keyof HTMLElementEventMap>(type: K, listener: (event: HTMLElementEventMap[K]) => void, more: AddEventListenerOptions = {}) =>
      element.addEventListener(type, listener, { ...more, signal: this.listeners.signal });
  }
}

function lockOf(from: Navigator): KeyboardLock | undefined {
  return (from as Navigator & { keyboard?: KeyboardLock }).keyboard;
}

function hiddenField(page: Document, label: string): HTMLTextAreaElement {
  const field = page.createElement("textarea");
  const attributes = { autocomplete: "off", autocorrect: "off", autocapitalize: "none", spellcheck: "false", wrap: "off", "data-testid": "desktop-keyboard" };
  for (const [name, value] of Object.entries(attributes)) field.setAttribute(name, value);
  field.setAttribute("aria-label", label);
  // Below 16 px iOS zooms in on focus. It is seen only while something is composed.
  Object.assign(field.style, {
    position: "absolute", left: "0", top: "0", width: "16em", height: "1.5em", margin: "0", padding: "0 4px", border: "0",
    outline: "none", resize: "none", overflow: "hidden", font: "16px/1.5 system-ui, sans-serif", opacity: "0",
    pointerEvents: "none", zIndex: "2",
  });
  return field;
}

/** Where the person works: input methods show their candidates at the field. */
function placeField(field: HTMLElement, target: HTMLElement, at: { x: number; y: number } | null): void {
  if (!at) return;
  const box = target.getBoundingClientRect();
  const within = (value: number, max: number) => `${Math.max(0, Math.min(value, max))}px`;
  field.style.left = within(at.x - box.left, box.width - field.offsetWidth);
  field.style.top = within(at.y - box.top + 16, box.height - field.offsetHeight);
}
