// Colours of the terminal, in step with the page's own (src/app.css).

import type { ITheme } from "@xterm/xterm";

const DARK: ITheme = {
  background: "#0d1017",
  foreground: "#d6dbe6",
  cursor: "#8f85ff",
  cursorAccent: "#0d1017",
  selectionBackground: "#3a3f6e",
  black: "#1d222d",
  red: "#ff7a85",
  green: "#5fd7a7",
  yellow: "#f0c674",
  blue: "#7aa8ff",
  magenta: "#c79bff",
  cyan: "#5fd0dd",
  white: "#d6dbe6",
  brightBlack: "#7d869a",
  brightRed: "#ff9aa3",
  brightGreen: "#86e6c0",
  brightYellow: "#ffdb94",
  brightBlue: "#a3c3ff",
  brightMagenta: "#dbbdff",
  brightCyan: "#8ee4ee",
  brightWhite: "#ffffff",
};

const LIGHT: ITheme = {
  background: "#ffffff",
  foreground: "#1b2130",
  cursor: "#5a4ae0",
  cursorAccent: "#ffffff",
  selectionBackground: "#d6d2ff",
  black: "#1b2130",
  red: "#c02b3c",
  green: "#0f7a52",
  yellow: "#8a5a00",
  blue: "#1f58c7",
  magenta: "#7a3fc0",
  cyan: "#0b7285",
  white: "#565f72",
  brightBlack: "#6b7487",
  brightRed: "#d4485a",
  brightGreen: "#17936a",
  brightYellow: "#a06d0a",
  brightBlue: "#3a70e0",
  brightMagenta: "#9256d8",
  brightCyan: "#168aa0",
  brightWhite: "#1b2130",
};

export function themeFor(dark: boolean): ITheme {
  return dark ? DARK : LIGHT;
}
