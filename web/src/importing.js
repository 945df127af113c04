// Conversations from files: of Chattable, ChatGPT or Open WebUI. Loaded when it is first opened.
import { useState } from "preact/hooks";
import { fetched, query } from "./api.js";
import { archived, loadSessions, sought, usable, nameOf } from "./store.js";
import { Field, html } from "./ui.js";
import { number, t, told } from "./words.js";

const PIECE = 8_000_000; // bytes that are sent at once, if one chat alone is not more
const CHATS = 50;

/** The file as bodies of requests: a document as it is, a list in lists of bounded size. */
function* pieces(text) {
  const given = JSON.parse(text);
  if (!Array.isArray(given)) {
    yield { body: text, chats: 1, of: 1 };
    return;
  }
  let piece = [];
  let size = 0;
  for (const chat of given) {
    const each = JSON.stringify(chat);
    if (piece.length && (size + each.length > PIECE || piece.length === CHATS)) {
      yield { body: `[${piece.join()}]`, chats: piece.length, of: given.length };
      piece = [];
      size = 0;
    }
    piece.push(each);
    size += each.length;
  }
  yield { body: `[${piece.join()}]`, chats: piece.length, of: given.length };
}

const headers = { "content-type": "application/json" };

export default function Importing() {
  const [state, setState] = useState({});
  const { at, of, counts, refused = [], error, busy } = state;
  const take = async (file, agent) => {
    const sum = { made: 0, known: 0, empty: 0, left_out: 0 };
    const wrong = [];
    let done = 0;
    setState({ busy: true });
    try {
      for (const piece of pieces(await file.text())) {
        const path = query("api/v1/imports", { agent });
        const made = await (await fetched(path, { method: "POST", body: piece.body, headers })).json();
        if (made.object !== "import") sum.made += 1;
        else {
          for (const name of ["made", "known", "empty"]) sum[name] += made[name];
          for (const each of made.data) {
            sum.left_out += each.left_out;
            if (each.status === "refused") wrong.push(each.error.replace(/^\[\d+\]/, `[${done + each.index}]`));
          }
        }
        done += piece.chats;
        setState({ busy: true, at: done, of: piece.of });
      }
      setState({ counts: sum, refused: wrong });
    } catch (failure) {
      setState({ error: failure instanceof SyntaxError ? t("notJson") : told(failure), counts: sum.made ? sum : null, refused: wrong });
    }
    sought.value = "";
    archived.value = false;
    loadSessions().catch(() => {});
  };
  const submit = (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    take(form.get("file"), form.get("agent"));
  };
  return html`
    <form onSubmit=${submit} class="form">
      <p class="muted">${t("importText")}</p>
      <${Field} label=${t("file")}><input type="file" name="file" accept=".json,application/json" required disabled=${busy} /><//>
      <${Field} label=${t("importAgent")}>
        <select name="agent" disabled=${busy}>${usable.value.map((each) => html`<option value=${each.id}>${nameOf(each.id)}</option>`)}</select><//>
      <div role="status" aria-live="polite">
        ${busy && html`<p>${of ? t("importing", { at: number(at), of: number(of) }) : t("loading")}</p>`}
        ${of && busy && html`<progress max=${of} value=${at} aria-label=${t("importChats")} />`}
        ${error && html`<p class="error">${error}</p>`}
        ${counts && html`<p class="good">${t("importDone", { made: number(counts.made), known: number(counts.known) })}</p>`}
        ${counts?.left_out > 0 && html`<p class="muted">${t("importLeftOut", { n: number(counts.left_out) })}</p>`}
        ${refused.length > 0 && html`<p class="error">${t("importRefused", { n: number(refused.length) })}</p><ul class="muted">${refused.slice(0, 10).map((each) => html`<li>${each}</li>`)}</ul>`}
      </div>
      <div class="row end"><button class="primary" disabled=${busy}>${t("import")}</button></div>
    </form>`;
}
