import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

/** Where `npm run dev` finds a running `polydev serve`. */
const CONTROLLER = "http://127.0.0.1:4000";

export default defineConfig({
  plugins: [svelte()],
  build: {
    target: "es2022",
    sourcemap: false,
    // A data: URL would need an exception in the content security policy.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 700,
    rollupOptions: {
      input: { page: "index.html", "polydev-desktop": "src/desktop/embed.ts" },
      preserveEntrySignatures: "exports-only",
      // Pages of others name this file: it has no hash.
      output: { entryFileNames: (chunk) => (chunk.name === "polydev-desktop" ? "embed/[name].js" : "assets/[name]-[hash].js") },
    },
  },
  server: {
    host: "127.0.0.1",
    proxy: {
      "/api": { target: CONTROLLER, ws: true, changeOrigin: true, rewriteWsOrigin: true, headers: { origin: CONTROLLER } },
      "/health": { target: CONTROLLER, changeOrigin: true },
    },
  },
});
