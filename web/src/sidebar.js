// The list of conversations, and the way to everything else.
import { useEffect, useRef } from "preact/hooks";
import { exported } from "./export.js";
import { lazily } from "./lazily.js";
import {
  archived, attempt, changeSession, deleteSession, dialog, go, hits, isAdmin, leave, loadSessions, me, moreSessions, note, route, sessions, sidebarOpen, sought, titleOf,
} from "./store.js";
import { asked, confirmed, Empty, html, Icon, IconButton, isComposing, Loading, Menu } from "./ui.js";
import { t } from "./words.js";

const DAY = 86_400_000;
const Importing = lazily(() => import("./importing.js"));

function age(session) {
  const then = new Date(session.updated_at).setHours(0, 0, 0, 0);
  const days = Math.round((new Date().setHours(0, 0, 0, 0) - then) / DAY);
  return days <= 0 ? "today" : days === 1 ? "yesterday" : days < 7 ? "thisWeek" : "older";
}

export function actionsOf(session, change = (changes) => changeSession(session.id, changes)) {
  const isArchived = Boolean(session.archived_at);
  const archive = async () => {
    if (await attempt(() => change({ archived: !isArchived }))) note(t(isArchived ? "restored" : "archivedNow"));
  };
  return [
    { icon: "edit", label: t("rename"), action: () => asked(t("rename"), session.title ?? "", (title) => attempt(() => change({ title })), { label: t("title") }) },
    { icon: "archive", label: t(isArchived ? "unarchive" : "archive"), action: archive },
    { icon: "download", label: t("exportText"), action: () => attempt(() => exported(session, "markdown")) },
    { icon: "download", label: t("exportJson"), action: () => attempt(() => exported(session, "json")) },
    { icon: "trash", label: t("delete"), danger: true, action: () => confirmed(t("deleteSession"), t("deleteSessionText"), () => attempt(() => deleteSession(session.id))) },
  ];
}

function Item({ session }) {
  const isOpen = route.value.id === session.id;
  return html`
    <li class="session ${isOpen ? "open" : ""}">
      <a href="#/s/${session.id}" aria-current=${isOpen ? "page" : null} title=${titleOf(session)}>${titleOf(session)}</a>
      <${Menu} label="${t("more")}: ${titleOf(session)}" items=${actionsOf(session)} />
    </li>`;
}

function Sessions() {
  const list = sessions.value;
  if (!list) return html`<${Loading} />`;
  if (!list.length && !hits.value.length) return html`<${Empty}>${t(sought.value ? "noResults" : archived.value ? "empty" : "noSessions")}<//>`;
  const groups = [];
  for (const session of list) {
    const name = sought.value ? "contains" : age(session);
    if (groups.at(-1)?.name !== name) groups.push({ name, list: [] });
    groups.at(-1).list.push(session);
  }
  return html`
    ${groups.map(({ name, list }) => html`
      <section key=${name}><h2>${t(name)}</h2><ul>${list.map((session) => html`<${Item} key=${session.id} session=${session} />`)}</ul></section>`)}
    ${moreSessions.value && html`<button type="button" class="quiet wide-button" onClick=${() => attempt(() => loadSessions({ more: true }))}>${t("load")}</button>`}
    ${hits.value.length > 0 && html`
      <section><h2>${t("everywhere")}</h2>
        <ul>${hits.value.map((hit) => html`
          <li key=${hit.id} class="hit"><a href="#/s/${hit.session_id}/${hit.id}">${excerpt(hit.content, sought.value)}</a></li>`)}</ul>
      </section>`}`;
}

/** The words around what was sought. */
function excerpt(text, words) {
  const word = words.trim().split(/\s+/)[0].toLowerCase();
  const at = Math.max(0, text.toLowerCase().indexOf(word));
  const from = Math.max(0, at - 30);
  return html`${from > 0 ? "…" : ""}${text.slice(from, at)}<mark>${text.slice(at, at + word.length)}</mark>${text.slice(at + word.length, at + 90)}`;
}

export function Sidebar() {
  const timer = useRef();
  const nav = useRef();
  useEffect(() => {
    if (!sidebarOpen.value) return;
    nav.current.querySelector("a,button,input")?.focus();
    const keys = (event) => event.key === "Escape" && !isComposing(event) && (sidebarOpen.value = false);
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  }, [sidebarOpen.value]);
  const seek = (event) => {
    sought.value = event.target.value;
    clearTimeout(timer.current);
    timer.current = setTimeout(() => attempt(loadSessions), 200);
  };
  const showArchived = () => {
    archived.value = !archived.value;
    sessions.value = null;
    attempt(loadSessions);
  };
  return html`
    <nav class="sidebar" ref=${nav} aria-label=${t("sessions")}>
      <header>
        <a class="brand" href="#/" aria-label="Chattable"><span class="logo" aria-hidden="true" /><span>Chattable</span></a>
        <a class="icon-button" href="#/" aria-label=${t("newChat")} title=${t("newChat")}><${Icon} name="plus" /></a>
        <span class="only-narrow"><${IconButton} icon="close" label=${t("close")} onClick=${() => (sidebarOpen.value = false)} /></span>
      </header>
      <label class="search"><${Icon} name="search" size=${16} /><input type="search" value=${sought.value} placeholder=${t("search")} aria-label=${t("searchHint")} maxlength="200" onInput=${seek} /></label>
      <div class="sessions" tabindex="0" role="region" aria-label=${t("sessions")}><${Sessions} /></div>
      <footer>
        <button type="button" class="quiet" aria-pressed=${archived.value} onClick=${showArchived}><${Icon} name="archive" size=${16} />${t("showArchived")}</button>
        <${IconButton} icon="upload" size=${16} label=${t("importChats")} onClick=${() => (dialog.value = { title: t("importChats"), body: Importing })} />
        <${Menu} class="upward" label="${t("menu")}: ${me.value.name}" items=${[
          { icon: "settings", label: t("settings"), action: () => go("settings") },
          isAdmin.value && { icon: "user", label: t("admin"), action: () => go("admin") },
          { icon: "file", label: t("help"), action: () => open("docs", "_blank", "noopener") },
          { icon: "left", label: t("logOut"), action: leave },
        ]}><${Icon} name="user" size=${16} />${me.value.name}<//>
      </footer>
    </nav>`;
}
