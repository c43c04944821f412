// Markdown to safe HTML. HTML in the text is shown as text, pictures become links, and DOMPurify looks over the result:
// what a model writes can neither run nor fetch anything.
import DOMPurify from "dompurify";
import { Marked } from "marked";
import { highlighted } from "./highlight.js";

const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escape = (text) => text.replace(/[&<>"']/g, (char) => ENTITIES[char]);
const unix = (text) => text.replace(/\r\n?/g, "\n");
const LINK = /^(https?:|mailto:)/i;

const marked = new Marked({ gfm: true, breaks: true });
marked.use({
  renderer: {
    html: ({ text }) => escape(text),
    image: ({ href, text }) => link(href, escape(text || "picture")),
    link({ href, tokens }) {
      return link(href, this.parser.parseInline(tokens));
    },
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    code({ text, lang }) {
      const language = (lang ?? "").match(/^\S*/)[0];
      return (
        `<div class="code"><div class="code-head"><span>${escape(language)}</span>` +
        `<button type="button" class="quiet" data-copy>Copy</button></div>` +
        `<pre tabindex="0"><code>${highlighted(text, language) ?? escape(text)}</code></pre></div>\n`
      );
    },
    table(token) {
      const cell = ({ tokens, align }, tag) =>
        `<${tag}${align ? ` align="${align}"` : ""}>${this.parser.parseInline(tokens)}</${tag}>`;
      const row = (cells, tag) => `<tr>${cells.map((one) => cell(one, tag)).join("")}</tr>`;
      const body = token.rows.map((cells) => row(cells, "td")).join("");
      return (
        `<div class="table" tabindex="0"><table><thead>${row(token.header, "th")}</thead>` +
        `<tbody>${body}</tbody></table></div>`
      );
    },
  },
});

function link(href, html) {
  if (!LINK.test(href)) return html;
  return `<a href="${escape(href)}" target="_blank" rel="noopener noreferrer nofollow">${html}</a>`;
}

// Attributes whose values are no addresses, and so need not look like one.
const PLAIN = ["target", "rel", "align", "start", "tabindex", "type", "data-copy"];
const SANITIZE = {
  ALLOWED_TAGS: [
    ..."a blockquote br button code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre span strong".split(" "),
    ..."table tbody td th thead tr ul".split(" "),
  ],
  ALLOWED_ATTR: ["href", "class", ...PLAIN],
  ADD_URI_SAFE_ATTR: PLAIN,
  ALLOW_DATA_ATTR: false,
  ALLOWED_URI_REGEXP: LINK,
};

/** The top-level blocks of a text, each the HTML of one paragraph, list, table or code. */
export function blocks(text) {
  const tokens = marked.lexer(unix(text));
  return tokens.filter(({ type }) => type !== "space" && type !== "def").map(html);
}

function html(token) {
  return DOMPurify.sanitize(marked.parser([token]), SANITIZE);
}

/**
 * Blocks of a text that grows at its end. All but the last two blocks are finished, and kept; only the rest is read
 * again, so that a long answer costs no more a token than a short one.
 */
export class GrowingMarkdown {
  #done = [];
  #start = 0;

  blocks(text) {
    const tokens = marked.lexer(unix(text.slice(this.#start)));
    const finished = tokens.slice(0, -2);
    for (const token of finished) {
      if (token.type !== "space" && token.type !== "def") this.#done.push(html(token));
      this.#start += token.raw.length;
    }
    const open = tokens.slice(finished.length).filter(({ type }) => type !== "space" && type !== "def");
    return [...this.#done, ...open.map(html)];
  }
}
