// Sticky modifiers of the soft keys: tapped once they hold for the next key, tapped twice until tapped again.

import { KEYSYM } from "./keysyms";

export const LATCHES = { ctrl: KEYSYM.ControlL, alt: KEYSYM.AltL, shift: KEYSYM.ShiftL, super: KEYSYM.SuperL } as const;
export type LatchName = keyof typeof LATCHES;
export type LatchState = "off" | "next" | "locked";
export type LatchStates = Readonly<Record<LatchName, LatchState>>;

const AFTER: Record<LatchState, LatchState> = { off: "next", next: "locked", locked: "off" };
const OFF: LatchStates = { ctrl: "off", alt: "off", shift: "off", super: "off" };

/** A Svelte store of their states. */
export class Latches {
  private states = OFF;
  private readonly watchers = new Set<(states: LatchStates) => void>();

  subscribe(watcher: (states: LatchStates) => void): () => void {
    this.watchers.add(watcher);
    watcher(this.states);
    return () => this.watchers.delete(watcher);
  }

  tap(name: LatchName): void {
    this.set({ ...this.states, [name]: AFTER[this.states[name]] });
  }

  clear(): void {
    this.set(OFF);
  }

  /** Keysyms that hold now. */
  held(): number[] {
    return this.names().map((name) => LATCHES[name]);
  }

  /** A key was pressed: what held for it alone holds no longer. */
  used(): void {
    if (this.names().some((name) => this.states[name] === "next")) {
      const left = Object.entries(this.states).map(([name, state]) => [name, state === "next" ? "off" : state]);
      this.set(Object.fromEntries(left) as LatchStates);
    }
  }

  private names(): LatchName[] {
    return (Object.keys(LATCHES) as LatchName[]).filter((name) => this.states[name] !== "off");
  }

  private set(states: LatchStates): void {
    this.states = states;
    for (const watcher of this.watchers) watcher(states);
  }
}
