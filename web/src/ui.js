// Small parts that everything is made of.
import { html } from "htm/preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { dialog, notes } from "./store.js";
import { choose, language, languages, t } from "./words.js";

export { html };

const PATHS = {
  plus: "M12 5v14M5 12h14",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16 16l4.500 4.500",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  menu: "M4 7h16M4 12h16M4 17h16",
  more: "M5.500 12h.5M11.800 12h.5M18 12h.5",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v10H9zM5 15V5h10",
  edit: "M4 20h4L19 9l-4-4L4 16zM13.500 6.500l4 4",
  again: "M4 12a8 8 0 1 0 2.500-5.800M4 4v4.500h4.500",
  up: "M7 11v9H4v-9zM7 11l4-7c1.500 0 2.500 1 2.500 2.500L13 10h5.500a1.500 1.500 0 0 1 1.500 1.800l-1.300 6.700A2 2 0 0 1 16.800 20H7",
  down: "M7 13V4H4v9zM7 13l4 7c1.500 0 2.500-1 2.500-2.500L13 14h5.500a1.500 1.500 0 0 0 1.500-1.800l-1.300-6.700A2 2 0 0 0 16.800 4H7",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  downward: "M12 5v14M6 13l6 6 6-6",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  attach: "M8 12.500l6-6a3 3 0 0 1 4.300 4.300l-8 8a5 5 0 0 1-7-7l7.500-7.500",
  archive: "M4 5h16v4H4zM6 9v10h12V9M10 13h4",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  upload: "M12 15V4M7 8l5-5 5 5M5 20h14",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  file: "M7 3h7l4 4v14H7zM14 3v4h4",
  tree: "M5 5h6M5 5v14M5 12h8M5 19h8M17 5h2M17 12h2M17 19h2",
  check: "M5 13l4.500 4.500L19 7",
  user: "M12 4a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM5 20c.5-4 3.300-6 7-6s6.500 2 7 6",
};

export const Icon = ({ name, size = 18 }) => html`
  <svg class="icon" width=${size} height=${size} viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width=${name === "more" ? 2.600 : 1.700}
    stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;

/** A button that is a picture: its label is for screen readers and the pointer. */
export const IconButton = ({ icon, label, size, class: extra = "", ...rest }) => html`
  <button type="button" class="icon-button ${extra}" aria-label=${label} title=${label} ...${rest}><${Icon} name=${icon} size=${size} /></button>`;

export const Loading = () => html`<p class="loading" role="status"><span class="dots" aria-hidden="true"><i /><i /><i /></span>${t("loading")}</p>`;

export const Empty = ({ children }) => html`<p class="empty">${children}</p>`;

export const Notes = () => html`
  <div class="notes" role="status" aria-live="polite">
    ${notes.value.map(({ id, text, kind }) => html`<p key=${id} class="note ${kind}">${text}</p>`)}
  </div>`;

/** A dialog over the page, with the focus in it; Escape and the cross close it. */
export function Modal({ title, onClose, wide, children }) {
  const ref = useRef();
  useEffect(() => {
    const before = document.activeElement;
    ref.current.showModal();
    return () => before?.isConnected && before.focus();
  }, []);
  return html`
    <dialog ref=${ref} class=${wide ? "wide-dialog" : ""} aria-label=${title} onClose=${onClose}
      onClick=${(event) => event.target === ref.current && ref.current.close()}>
      <div class="dialog-box">
        <header><h2>${title}</h2><${IconButton} icon="close" label=${t("close")} onClick=${() => ref.current.close()} /></header>
        ${children}
      </div>
    </dialog>`;
}

export const closeDialog = () => (dialog.value = null);

/** Asks before something that cannot be undone. */
export function confirmed(title, text, action, label = t("delete")) {
  dialog.value = {
    title,
    body: () => html`
      <p>${text}</p>
      <div class="row end">
        <button type="button" onClick=${closeDialog}>${t("cancel")}</button>
        <button type="button" class="danger" onClick=${() => (closeDialog(), action())}>${label}</button>
      </div>`,
  };
}

/** Asks for one line of text. */
export function asked(title, value, action, { label = title, type = "text" } = {}) {
  dialog.value = {
    title,
    body: () => {
      const [text, setText] = useState(value);
      const submit = (event) => {
        event.preventDefault();
        closeDialog();
        action(text.trim());
      };
      return html`
        <form onSubmit=${submit}>
          <label class="field"><span>${label}</span>
            <input autofocus type=${type} maxlength="200" value=${text} onInput=${(event) => setText(event.target.value)} />
          </label>
          <div class="row end">
            <button type="button" onClick=${closeDialog}>${t("cancel")}</button>
            <button class="primary" disabled=${!text.trim()}>${t("save")}</button>
          </div>
        </form>`;
    },
  };
}

export const Dialogs = () => {
  const shown = dialog.value;
  return shown && html`<${Modal} key=${shown.title} title=${shown.title} wide=${shown.wide} onClose=${() => dialog.value === shown && closeDialog()}><${shown.body} /><//>`;
};

/** A button with a list of actions: arrows go through it, Escape leaves. */
export function Menu({ icon = "more", label, items, class: extra = "", children }) {
  const [open, setOpen] = useState(false);
  const root = useRef();
  const button = useRef();
  useEffect(() => {
    if (!open) return;
    root.current.querySelector("[role=menuitem]")?.focus();
    const outside = (event) => !root.current.contains(event.target) && setOpen(false);
    addEventListener("pointerdown", outside);
    return () => removeEventListener("pointerdown", outside);
  }, [open]);
  const leave = () => (setOpen(false), button.current.focus());
  const keys = (event) => {
    const all = [...root.current.querySelectorAll("[role=menuitem]")];
    const at = all.indexOf(document.activeElement);
    if (event.key === "Escape") event.stopPropagation(), leave();
    else if (event.key === "ArrowDown") all[(at + 1) % all.length].focus();
    else if (event.key === "ArrowUp") all[(at + all.length - 1) % all.length].focus();
    else if (event.key === "Tab") return setOpen(false);
    else return;
    event.preventDefault();
  };
  return html`
    <div class="menu ${extra}" ref=${root}>
      <button ref=${button} type="button" class=${children ? "quiet" : "icon-button"} aria-haspopup="menu" aria-expanded=${open} aria-label=${label} title=${label}
        onClick=${(event) => (event.stopPropagation(), event.preventDefault(), setOpen(!open))}>${children ?? html`<${Icon} name=${icon} />`}</button>
      ${open && html`
        <ul role="menu" aria-label=${label} onKeyDown=${keys}>
          ${items.filter(Boolean).map((item) => html`
            <li role="none"><button type="button" role="menuitem" tabindex="-1" class=${item.danger ? "danger-text" : ""}
              onClick=${(event) => (event.stopPropagation(), leave(), item.action())}>${item.icon && html`<${Icon} name=${item.icon} size=${16} />`}${item.label}</button></li>`)}
        </ul>`}
    </div>`;
}

/** Whether a key goes to an input method, which chooses a word by it or closes its list (Safari tells it by 229 alone). */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

/** A field with its label, a word of help and what is wrong with it. */
export const Field = ({ label, help, error, children }) => html`
  <label class="field ${error ? "wrong" : ""}"><span>${label}</span>${children}
    ${help && html`<small>${help}</small>`}${error && html`<small class="error" role="alert">${error}</small>`}
  </label>`;

export async function copied(text, say) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https there is no clipboard: the old way.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(t("copied"));
}

/** The choice of a language for who is not logged in. */
export const Languages = () => html`
  <div class="languages">
    ${Object.entries(languages).map(([code, name]) => html`
      <button type="button" lang=${code} class="quiet" aria-pressed=${language.value === code} onClick=${() => choose(code)}>${name}</button>`)}
  </div>`;
