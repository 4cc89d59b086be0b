// Entry for pages of others: knows <polydev-desktop> when it is loaded.

import { defineDesktopElement } from "./element";

defineDesktopElement();

export { PolydevDesktop } from "./element";
export { DesktopViewer, type ViewerEvents, type ViewerFigures, type ViewerOptions, type ViewerState } from "./viewer";
