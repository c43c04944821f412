// Bundles src/ into dist/ and records what went in and what came out, so that a test can say when the two differ.
// Usage: node build.mjs [FOLDER]      (dist by default)
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "dist");
const BUNDLED = ["preact", "marked", "dompurify", "highlight.js"];

const sha256 = (path) => createHash("sha256").update(readFileSync(path)).digest("hex");

function sources() {
  const files = ["build.mjs", "package.json", "package-lock.json"].map((name) => join(here, name));
  for (const entry of readdirSync(join(here, "src"), { recursive: true, withFileTypes: true }))
    if (entry.isFile()) files.push(join(entry.parentPath ?? entry.path, entry.name));
  return files.sort();
}

function licences() {
  const parts = BUNDLED.map((name) => {
    const folder = join(here, "node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((entry) => /^licen[sc]e/i.test(entry));
    return `${name} ${version} (${license})\n\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
  });
  return parts.join(`\n${"-".repeat(80)}\n\n`);
}

const digest = (paths, base) =>
  Object.fromEntries(paths.map((path) => [relative(base, path).replaceAll("\\", "/"), sha256(path)]));

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
await build({
  entryPoints: { app: join(here, "src", "main.jsx"), style: join(here, "src", "style", "index.css") },
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  logLevel: "warning",
});
copyFileSync(join(here, "src", "index.html"), join(out, "index.html"));
copyFileSync(join(here, "src", "icon.svg"), join(out, "icon.svg"));
writeFileSync(join(out, "LICENSES.txt"), licences());
const built = readdirSync(out).sort().map((name) => join(out, name));
writeFileSync(
  join(out, "build.json"),
  `${JSON.stringify({ sources: digest(sources(), here), built: digest(built, out) }, null, 1)}\n`,
);
