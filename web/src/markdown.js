// Markdown to DOM: sanitised, with code, tables and math, and cheap while it grows.
//
// A text that streams is cut into blocks. All but the last are final and rendered once; the last is rendered anew, at most so often
// that it takes a small part of the time.
import DOMPurify from "dompurify";
import MarkdownIt from "markdown-it";
import { t } from "./words.js";

const SLOWDOWN = 8; // how many times longer than a rendering took the next one waits
const LEAST_MS = 120; // between two renderings; at 60, 100 chunks a second took a third of a core in Chromium
const PLAIN = 200_000; // characters of a text beyond which it is shown as it is

const md = new MarkdownIt({ html: false, linkify: true, breaks: false });
const escape = md.utils.escapeHtml;

md.renderer.rules.fence = (tokens, at) => code(tokens[at].content, tokens[at].info.trim().split(/\s+/)[0]);
md.renderer.rules.code_block = (tokens, at) => code(tokens[at].content, "");
md.renderer.rules.table_open = () => `<div class="wide" tabindex="0" role="region" aria-label="${escape(t("table"))}"><table>`;
md.renderer.rules.table_close = () => "</table></div>";
md.renderer.rules.image = (tokens, at) => {
  const src = tokens[at].attrGet("src") ?? "";
  const alt = tokens[at].content || t("image");
  if (src.startsWith("data:image/")) return `<img src="${escape(src)}" alt="${escape(alt)}">`;
  return `<a class="remote" href="${escape(src)}" title="${escape(t("remoteImage"))}">↗ ${escape(alt)}</a>`;
};
md.renderer.rules.math_inline = (tokens, at) => `<span class="math">${escape(tokens[at].content)}</span>`;
md.renderer.rules.math_block = (tokens, at) =>
  `<div class="math wide" data-display="1" tabindex="0">${escape(tokens[at].content)}</div>`;

function code(text, language) {
  const label = language ? escape(language) : "";
  return (
    `<div class="code"><div class="code-head"><span>${label}</span>` +
    `<button type="button" class="quiet copy">${escape(t("copy"))}</button></div>` +
    `<pre tabindex="0"><code${label ? ` data-language="${label}"` : ""}>${escape(text)}</code></pre></div>`
  );
}

// $x$, \(x\), $$x$$ and \[x\]. A dollar before a space or a digit after the closing one is money.
md.inline.ruler.before("escape", "math", (state, silent) => {
  const rest = state.src.slice(state.pos);
  const found =
    /^\$\$([^$]+?)\$\$/.exec(rest) ??
    /^\$(?!\s)((?:[^$\\\n]|\\.)+?)(?<!\s)\$(?!\d)/.exec(rest) ??
    /^\\\((.+?)\\\)/s.exec(rest) ??
    /^\\\[(.+?)\\\]/s.exec(rest);
  if (!found) return false;
  if (!silent) state.push("math_inline", "math", 0).content = found[1].trim();
  state.pos += found[0].length;
  return true;
});
md.block.ruler.before("fence", "math_block", (state, start, end, silent) => {
  const first = line(state, start);
  const close = first.startsWith("$$") ? "$$" : first.startsWith("\\[") ? "\\]" : null;
  if (!close) return false;
  const opening = first.slice(2);
  if (opening.trim().length > close.length && opening.trim().endsWith(close)) {
    return blockOf(state, start, start + 1, opening.trim().slice(0, -close.length), silent);
  }
  if (opening.includes(close)) return false;
  const lines = [opening];
  for (let at = start + 1; at < end; at += 1) {
    const text = line(state, at);
    if (text.trimEnd().endsWith(close)) {
      lines.push(text.trimEnd().slice(0, -close.length));
      return blockOf(state, start, at + 1, lines.join("\n"), silent);
    }
    lines.push(text);
  }
  return false;
}, { alt: ["paragraph"] });

const line = (state, at) => state.src.slice(state.bMarks[at] + state.tShift[at], state.eMarks[at]);

function blockOf(state, start, next, content, silent) {
  if (silent) return true;
  const token = state.push("math_block", "math", 0);
  token.block = true;
  token.content = content.trim();
  token.map = [start, next];
  state.line = next;
  return true;
}

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
});
const ALLOWED = { FORBID_TAGS: ["style", "form", "input", "svg", "math", "iframe"], FORBID_ATTR: ["style", "id", "name"], ADD_ATTR: ["target"] };

const clean = (html) => DOMPurify.sanitize(html, ALLOWED);

/** Renders a whole text into an element. */
export function renderWhole(element, text) {
  if (text.length > PLAIN) {
    element.textContent = text;
    element.classList.add("plain");
    return;
  }
  element.innerHTML = clean(md.render(text));
  finish(element);
}

/** Renders a text that grows into an element; `update` as often as one likes, `end` once. */
export class Growing {
  constructor(element, onRendered = () => {}) {
    this.element = element;
    this.onRendered = onRendered;
    this.text = "";
    this.done = 0; // how much of it is in final blocks
    this.tail = document.createElement("div");
    this.tail.className = "tail";
    element.replaceChildren(this.tail);
    this.timer = 0;
    this.rest = 0;
  }

  update(text) {
    this.text = text;
    if (!this.timer) this.timer = setTimeout(() => requestAnimationFrame(() => this.render()), this.rest);
  }

  render() {
    this.timer = 0;
    if (!this.element.isConnected) return;
    const began = performance.now();
    let rest = this.text.slice(this.done);
    const edge = lastBlock(rest);
    if (edge > 0) {
      const block = document.createElement("div");
      block.className = "block";
      block.innerHTML = clean(md.render(rest.slice(0, edge)));
      this.tail.before(block);
      finish(block);
      this.done += edge;
      rest = rest.slice(edge);
    }
    this.tail.innerHTML = clean(md.render(rest));
    typeset(this.tail);
    this.rest = Math.max(LEAST_MS, SLOWDOWN * (performance.now() - began));
    this.onRendered();
  }

  stop() {
    clearTimeout(this.timer);
  }
}

/** Where the last block of a text begins: what is before it cannot change by what follows. */
function lastBlock(text) {
  const starts = [];
  let level = 0;
  for (const token of md.parse(text, {})) {
    if (level === 0 && token.nesting >= 0 && token.map) starts.push(token.map[0]);
    level += token.nesting;
  }
  if (starts.length < 2) return 0;
  let at = 0;
  for (let lines = starts.at(-1); lines > 0; lines -= 1) at = text.indexOf("\n", at) + 1;
  return at;
}

/** What is loaded when it is first needed: colours of code, and math. */
function finish(element) {
  typeset(element);
  const blocks = element.querySelectorAll("code[data-language]");
  if (blocks.length) import("./highlight.js").then(({ highlight }) => blocks.forEach(highlight));
}

let katex = null;
const set = new Map(); // what was typeset, by its text

function typeset(element) {
  const found = element.querySelectorAll(".math:not(.set)");
  if (!found.length) return;
  if (katex) found.forEach(formula);
  else import("./math.js").then((loaded) => {
    katex = loaded.default;
    element.querySelectorAll(".math:not(.set)").forEach(formula);
  });
}

function formula(node) {
  const key = `${node.dataset.display ?? ""}${node.textContent}`;
  node.classList.add("set");
  if (!set.has(key)) {
    const made = document.createElement("span");
    // Into the DOM, not as HTML: styles that a script sets are no inline styles to the Content-Security-Policy.
    katex.render(node.textContent, made, { displayMode: Boolean(node.dataset.display), throwOnError: false, maxExpand: 200, maxSize: 20 });
    if (set.size > 500) set.clear();
    set.set(key, made);
  }
  node.replaceChildren(set.get(key).cloneNode(true));
}
