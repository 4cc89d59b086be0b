// <polydev-desktop session="…">: the live desktop of one session as a custom element. docs/src/viewer.md describes it.

import type { LaneKind, Wish } from "./lanes";
import { laneName, phaseText } from "./present";
import type { Role } from "./protocol";
import { DesktopViewer, type ViewerState } from "./viewer";

const STYLE = `
  :host { display: block; position: relative; min-width: 0; min-height: 0; overflow: hidden; background: var(--polydev-stage, light-dark(#e8eaf2, #07090d)); color: var(--polydev-muted, light-dark(#565f72, #98a1b5)); font: 16px/1.5 system-ui, sans-serif; }
  :host([hidden]) { display: none; }
  .room { position: absolute; inset: 0; }
  .cover { position: absolute; inset: 0; z-index: 3; display: flex; align-items: center; justify-content: center; gap: 0.75rem; padding: 1rem; text-align: center; pointer-events: none; background: color-mix(in oklab, var(--polydev-stage, light-dark(#e8eaf2, #07090d)) 78%, transparent); }
  .cover[hidden] { display: none; }
  .cover:not(.ended) { animation: appear 0.2s 0.4s backwards; }
  .spinner { flex: none; width: 1.25rem; height: 1.25rem; border: 2.5px solid currentColor; border-top-color: var(--polydev-accent, #6d5ef6); border-radius: 50%; animation: turn 0.9s linear infinite; }
  .cover.ended .spinner { display: none; }
  .spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
  @keyframes turn { to { rotate: 1turn; } }
  @keyframes appear { from { opacity: 0; } }
  @media (prefers-reduced-motion: reduce) { .spinner { animation-duration: 4s; } }
`;

export class PolydevDesktop extends HTMLElement {
  static readonly observedAttributes = ["session", "base", "mode"];
  private made: DesktopViewer | undefined;
  private readonly room = document.createElement("div");
  private readonly cover = document.createElement("div");
  private readonly words = document.createElement("span");
  private readonly spoken = document.createElement("p");

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open", delegatesFocus: true });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
    root.adoptedStyleSheets = [sheet];
    this.room.className = "room";
    this.room.setAttribute("part", "room");
    this.cover.className = "cover";
    this.cover.setAttribute("part", "cover");
    const spinner = document.createElement("span");
    spinner.className = "spinner";
    this.cover.append(spinner, this.words);
    this.cover.setAttribute("aria-hidden", "true");
    this.spoken.className = "spoken";
    this.spoken.setAttribute("role", "status");
    root.append(this.room, this.cover, this.spoken);
  }

  /** The viewer itself; undefined while the element is not in a page or has no session. */
  get viewer(): DesktopViewer | undefined {
    return this.made;
  }

  get state(): ViewerState | undefined {
    return this.made?.state;
  }

  /** The best lane that works, or one before all others. */
  get lane(): Wish {
    return this.made?.state.wish ?? "auto";
  }

  set lane(wish: Wish) {
    this.made?.chooseLane(wish);
  }

  override focus(): void {
    this.made?.focus();
  }

  /** Types a text into what has the focus in the VM. */
  typeText(text: string): void {
    this.made?.type(text);
  }

  pressKey(keysym: number, code = ""): void {
    this.made?.press(keysym, code);
  }

  requestControl(): void {
    this.made?.requestControl();
  }

  releaseControl(to?: number): void {
    this.made?.releaseControl(to);
  }

  connectedCallback(): void {
    this.begin();
  }

  disconnectedCallback(): void {
    this.end();
  }

  attributeChangedCallback(_name: string, before: string | null, now: string | null): void {
    if (!this.isConnected || before === now) return;
    this.end();
    this.begin();
  }

  private begin(): void {
    const sessionId = this.getAttribute("session");
    if (!sessionId || this.made) return;
    const tell = (name: string, detail: unknown): void => void this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
    const role: Role = this.getAttribute("mode") === "view" ? "view" : "control";
    this.made = new DesktopViewer(
      this.room,
      { sessionId, base: this.getAttribute("base") ?? "", role },
      {
        state: (state) => {
          this.present(state);
          tell("polydev-state", state);
        },
        figures: (figures) => tell("polydev-figures", figures),
        clipboard: (text, taken) => tell("polydev-clipboard", { text, taken }),
        notice: (text) => tell("polydev-notice", text),
        leave: () => tell("polydev-leave", null),
      },
    );
    this.present(this.made.state);
  }

  private end(): void {
    this.made?.stop();
    this.made = undefined;
  }

  private present(state: ViewerState): void {
    const text = phaseText(state.phase, state.ended);
    this.cover.hidden = state.phase === "live";
    this.cover.classList.toggle("ended", state.phase === "ended");
    this.words.textContent = state.phase === "ended" ? text : `${text}…`;
    const role = state.role === "control" ? "You are in control." : "You are watching.";
    const spoken = state.phase === "live" && state.lane ? `${text} by ${laneName(state.lane satisfies LaneKind, state.path)}. ${role}` : `${text}.`;
    if (this.spoken.textContent !== spoken) this.spoken.textContent = spoken;
    this.dataset["phase"] = state.phase;
    this.dataset["lane"] = state.lane ?? "";
    this.dataset["control"] = state.role;
  }
}

/** Makes the element known to the page; again and again is no harm. */
export function defineDesktopElement(): void {
  if (!customElements.get("polydev-desktop")) customElements.define("polydev-desktop", PolydevDesktop);
}
