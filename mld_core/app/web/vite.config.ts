/// <reference types="vitest/config" />
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

/** `--mode file`, and `solid` with the 3D view: one script and style sheet, which `mld report` writes into a page. */
const oneFile = {
  rollupOptions: {
    input: "src/main.ts",
    output: { inlineDynamicImports: true, entryFileNames: "app.js", assetFileNames: "app[extname]" },
  },
};

// Relative paths only: the pages also lie behind a proxy's prefix.
export default defineConfig(({ mode }) => ({
  base: "./",
  plugins: [svelte()],
  build: {
    outDir: "../static",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    reportCompressedSize: true,
    ...(mode === "production" || mode === "development" ? {} : oneFile),
  },
  server: { proxy: { "/api": { target: process.env.MLD_UI ?? "http://127.0.0.1:7860/ui" } } },
  test: { include: ["src/**/*.test.ts"], environment: "node" },
}));
