// Where a message is written, with pictures and files if one likes.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { upload } from "./api.js";
import { MOST_PICTURES, partOf, pictureOf } from "./pictures.js";
import { announced, complain, keyOfDraft, note } from "./store.js";
import { html, Icon, IconButton, isComposing } from "./ui.js";
import { t } from "./words.js";

const TEXT_BYTES = 200_000; // the largest file whose text goes along
const IS_TEXT = /^text\/|json|xml|yaml|toml|csv|javascript|typescript|x-sh|x-python/;
const TEXT_NAME = /\.(txt|md|csv|tsv|json|jsonl|ya?ml|toml|ini|xml|html?|css|m?js|ts|tsx|py|rb|rs|go|java|kt|c|h|cpp|cs|php|sh|sql|log|tex|r|swift)$/i;

function keep(key, text) {
  if (text) sessionStorage.setItem(key, text);
  else sessionStorage.removeItem(key);
}

/** What was not taken, before what has been written since. */
const joined = (said, now) => [said, now].filter(Boolean).join("\n\n");

/**
 * `onSend(content, {extra, parts}, {text, files})` gives whether it was taken; what was written comes back if not. `draft` is the name it
 * is kept under. `first`, as `onSend` was given it elsewhere, is sent at once.
 */
export function Composer({ onSend, onStop, busy, mayQueue, draft, first, autofocus }) {
  const key = useMemo(() => keyOfDraft(draft), [draft]);
  const [text, setText] = useState(first?.text ?? sessionStorage.getItem(key) ?? "");
  const [files, setFiles] = useState(first?.files ?? []);
  const [over, setOver] = useState(false);
  const [sending, setSending] = useState(false);
  const [waits, setWaits] = useState(Boolean(first)); // to be sent as soon as its files are there
  const latest = useRef(files); // what there is when something has been waited for
  latest.current = files;
  const area = useRef();
  const picker = useRef();
  useEffect(() => {
    if (autofocus && matchMedia("(pointer: fine)").matches) area.current.focus();
  }, [draft]);
  useLayoutEffect(() => {
    const { current } = area;
    current.style.height = "auto";
    current.style.height = `${Math.min(current.scrollHeight, innerHeight * 0.4)}px`;
    keep(key, text);
  }, [text]);

  const drop = ({ key }) => setFiles((now) => now.filter((each) => each.key !== key));
  const remove = (file) => {
    drop(file);
    area.current.focus();
  };
  const add = async (chosen) => {
    for (const file of [...chosen]) {
      const local = { key: Math.random(), name: file.name, busy: true };
      setFiles((now) => [...now, local]);
      try {
        const picture = await pictureOf(file);
        if (picture && latest.current.filter((each) => each.picture).length >= MOST_PICTURES) {
          drop(local);
          note(t("picturesAtMost", { n: MOST_PICTURES }), "error");
          continue;
        }
        const done = { ...local, busy: false, ...(picture ? { picture } : await uploaded(file)) };
        setFiles((now) => now.map((each) => (each.key === local.key ? done : each)));
        if (picture) announced.value = t("pictureAdded", { name: file.name });
      } catch (error) {
        drop(local);
        note(t("uploadFailed", { name: file.name }), "error");
        complain(error);
      }
    }
  };
  const send = async () => {
    const said = text.trim();
    if ((!said && !files.length) || sending || (busy && !mayQueue)) return;
    if (files.some((file) => file.busy)) return setWaits(true);
    setWaits(false);
    setSending(true);
    const stored = files.filter((file) => !file.picture);
    const parts = files.filter((file) => file.picture).map((file) => partOf(file.picture));
    const typed = said || (stored.length ? t("file") : "");
    const extra = stored.length ? { typed: typed.length, files: stored.map(({ id, name, bytes }) => ({ id, name, bytes })) } : undefined;
    setText("");
    setFiles([]);
    const taken = await onSend(typed + stored.map(attached).join(""), { extra, parts }, { text: said, files });
    setSending(false);
    if (!taken) {
      keep(key, joined(said, sessionStorage.getItem(key))); // this composer may be gone by now
      setText((now) => joined(said, now));
      setFiles((now) => [...files, ...now]);
    }
    area.current?.focus();
  };
  const keys = (event) => {
    if (isComposing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      send();
    }
    if (event.key === "Escape" && busy) onStop();
  };
  const dropped = (event) => {
    event.preventDefault();
    setOver(false);
    add(event.dataTransfer.files);
  };
  const pasted = (event) => event.clipboardData.files.length && (event.preventDefault(), add(event.clipboardData.files));

  useLayoutEffect(() => {
    if (waits && !files.some((file) => file.busy)) send();
  }, [waits, files]);
  const canSend = (text.trim() || files.length) && !waits && !sending;
  return html`
    <div class="composer ${over ? "over" : ""}" onDragOver=${(event) => (event.preventDefault(), setOver(true))} onDragLeave=${() => setOver(false)} onDrop=${dropped}>
      <div class="composer-box">
        ${files.length > 0 && html`
          <ul class="files">
            ${files.map((file) => html`
              <li key=${file.key} class=${file.busy ? "busy" : file.picture ? "picture" : ""}>
                ${file.picture ? html`<img src=${file.picture} alt=${file.name} />` : html`<${Icon} name="file" size=${14} />${file.busy ? t("uploading", { name: file.name }) : file.name}`}
                ${typeof file.content === "string" && html`
                  <label class="check small"><input type="checkbox" checked=${file.withText} onChange=${(event) => setFiles(files.map((each) => (each === file ? { ...each, withText: event.target.checked } : each)))} />${t("fileText")}</label>`}
                <${IconButton} icon="close" size=${13} label="${t("remove")}: ${file.name}" onClick=${() => remove(file)} /></li>`)}
          </ul>`}
        <div class="composer-row">
          <input ref=${picker} type="file" multiple hidden onChange=${(event) => (add([...event.target.files]), (event.target.value = ""))} />
          <${IconButton} icon="attach" label=${t("attach")} onClick=${() => picker.current.click()} />
          <textarea ref=${area} rows="1" maxlength="1000000" value=${text} placeholder=${over ? t("drop") : t("ask")} aria-label=${t("ask")} aria-describedby="hint" enterkeyhint="send"
            onInput=${(event) => setText(event.target.value)} onKeyDown=${keys} onPaste=${pasted} />
          ${busy && html`<${IconButton} class="round" icon="stop" label=${t("stop")} onClick=${onStop} />`}
          ${(!busy || mayQueue) && html`<${IconButton} class="round primary" icon="send" label=${t("send")} disabled=${!canSend} onClick=${send} />`}
        </div>
      </div>
      <p class="hint" id="hint">${t("askHint")}</p>
    </div>`;
}

/** A file as the server keeps it, with its text if it is short. */
async function uploaded(file) {
  const made = await upload(file);
  const isText = (IS_TEXT.test(file.type) || TEXT_NAME.test(file.name)) && file.size <= TEXT_BYTES;
  return { id: made.id, bytes: made.bytes, content: isText ? await file.text() : null, withText: isText };
}

/** How a file stands in the message: by its id, for agents that read files, and with its text for all others. */
function attached({ id, name, content, withText }) {
  const fence = content?.includes("```") ? "~~~~" : "```";
  return `\n\n[${name}] ${id}${withText ? `\n${fence}\n${content}\n${fence}` : ""}`;
}
