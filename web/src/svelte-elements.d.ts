// The custom elements that templates use.
import type { PolydevDesktop } from "./desktop/element";

declare module "svelte/elements" {
  export interface SvelteHTMLElements {
    "polydev-desktop": HTMLAttributes<PolydevDesktop> & { session: string; base?: string; "mode"?: "control" | "view"; "bind:this"?: PolydevDesktop };
  }
}
