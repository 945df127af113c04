// What the whole page knows: who is logged in, where one is, the agents and the list of sessions.
import { batch, computed, signal } from "@preact/signals";
import { all, del, get, logOut, patch, query } from "./api.js";
import { t, told } from "./words.js";

export const me = signal(undefined); // undefined: not known yet; null: nobody
export const theme = signal(localStorage.getItem("theme") ?? "auto");
export const route = signal(parse());
export const agents = signal(null);
export const notes = signal([]); // short messages at the edge
export const announced = signal(""); // for screen readers
export const sidebarOpen = signal(false);
export const dialog = signal(null); // {title, body}

function parse() {
  const [name = "", id = "", rest = ""] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  return { name, id, rest };
}
addEventListener("hashchange", () => {
  route.value = parse();
  sidebarOpen.value = false;
});

export const go = (path) => (location.hash = `#/${path}`);
export const isAdmin = computed(() => me.value?.role === "admin");

export function setTheme(name) {
  theme.value = name;
  localStorage.setItem("theme", name);
}

/** Shows a sentence for some seconds, and tells it to screen readers. */
export function note(text, kind = "info") {
  const id = crypto.getRandomValues(new Uint32Array(1))[0];
  notes.value = [...notes.value.slice(-3), { id, text, kind }];
  setTimeout(() => (notes.value = notes.value.filter((each) => each.id !== id)), kind === "error" ? 9000 : 4000);
}

export const complain = (error) => {
  if (error?.name !== "AbortError" && error?.status !== 401) note(told(error), "error");
};

/** Does something that may fail, and says so then. Gives undefined for a failure. */
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    complain(error);
  }
}

export async function loadAgents() {
  agents.value = await all("api/v1/agents");
}

export const usable = computed(() => (agents.value ?? []).filter((each) => each.id && !(each.kind === "preset" && each.error)));

export const agentOf = (id) => (agents.value ?? []).find((each) => each.id === id);

export function nameOf(id) {
  const found = agentOf(id);
  return found?.name ?? id ?? "";
}

/** The schema of an agent's parameters: a preset's is that of the agent it is made of. */
export function schemaOf(id) {
  const found = agentOf(id);
  return found?.kind === "preset" ? agentOf(found.agent.id)?.params_schema : found?.params_schema;
}

// The list of sessions

const PAGE = 30;
export const sessions = signal(null);
export const moreSessions = signal(false);
export const archived = signal(false);
export const sought = signal("");
export const hits = signal([]); // messages that have what is sought
let loading = 0;

export async function loadSessions({ more = false } = {}) {
  const turn = ++loading;
  const after = more ? sessions.value?.at(-1)?.id : undefined;
  const title = sought.value.trim();
  const wanted = [get(query("api/v1/sessions", { limit: PAGE, after, archived: archived.value, title }))];
  if (title && !more) wanted.push(get(query("api/v1/messages", { q: title, limit: 20 })));
  const [page, found] = await Promise.all(wanted);
  if (turn !== loading) return;
  sessions.value = more ? [...sessions.value, ...page.data] : page.data;
  moreSessions.value = page.has_more;
  if (!more) hits.value = found?.data ?? [];
}

/** Puts a session that has changed into the list, first if it was used. */
export function listed(session, { first = false } = {}) {
  if (!sessions.value || sought.value) return;
  const rest = sessions.value.filter((each) => each.id !== session.id);
  const at = sessions.value.findIndex((each) => each.id === session.id);
  const belongs = Boolean(session.archived_at) === archived.value;
  if (!belongs) sessions.value = rest;
  else if (first || at < 0) sessions.value = [session, ...rest];
  else sessions.value = sessions.value.map((each) => (each.id === session.id ? { ...each, ...session } : each));
}

export async function changeSession(id, changes) {
  const changed = await patch(`api/v1/sessions/${id}`, changes);
  listed(changed);
  return changed;
}

export async function deleteSession(id) {
  if (route.value.id === id) go(""); // first, or the conversation would ask for what is gone
  await del(`api/v1/sessions/${id}`);
  sessions.value = sessions.value?.filter((each) => each.id !== id) ?? null;
}

export const titleOf = (session) => session?.title || t("untitled");

// What belongs to who is logged in

/** Forgets whose page this was, and all that it knew: the next one may be somebody else. */
export function forget() {
  loading += 1; // a list that is still on its way comes too late
  batch(() => {
    me.value = agents.value = sessions.value = dialog.value = null;
    hits.value = [];
    sought.value = announced.value = "";
    moreSessions.value = archived.value = sidebarOpen.value = false;
  });
}

/** What the tab keeps a text under that was written and not sent. */
export const keyOfDraft = (name) => `draft:${me.peek().id}:${name}`;

/** Drops what was written and not sent, but for that of the user of this id. */
export function dropDrafts(userId) {
  const others = Object.keys(sessionStorage).filter((key) => key.startsWith("draft:") && !key.startsWith(`draft:${userId}:`));
  for (const key of others) sessionStorage.removeItem(key);
}

export async function leave() {
  await attempt(logOut);
  dropDrafts();
  forget();
  go("");
}
