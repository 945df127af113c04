// Builds the page into dist/, each text file also compressed, so that the server need not.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { defineConfig } from "vite";

const compressed = {
  name: "compressed",
  apply: "build",
  writeBundle({ dir }) {
    for (const entry of readdirSync(dir, { recursive: true })) {
      if (!/\.(js|css|html|svg)$/.test(entry)) continue;
      const path = join(dir, entry);
      writeFileSync(`${path}.gz`, gzipSync(readFileSync(path), { level: 9 }));
    }
  },
};

// KaTeX names each font three times; every browser that runs this page takes the first.
const oneFontEach = {
  name: "one-font-each",
  enforce: "pre",
  transform(code, id) {
    if (!id.includes("katex") || !id.endsWith(".css")) return;
    return code.replace(/,url\([^)]*\.(?:woff|ttf)\) format\("(?:woff|truetype)"\)/g, "");
  },
};

export default defineConfig({
  base: "./",
  plugins: [oneFontEach, compressed],
  build: {
    target: ["chrome111", "firefox115", "safari16.4"],
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: { output: { entryFileNames: "assets/[name]-[hash].js", chunkFileNames: "assets/[name]-[hash].js" } },
  },
  server: { proxy: { "^/(api|v1|docs|openapi.json)": process.env.CHATTABLE_URL ?? "http://127.0.0.1:8080" } },
});
