// The page: who is logged in decides between the login and the rest.
import { effect } from "@preact/signals";
import { render } from "preact";
import { lazily } from "./lazily.js";
import { get, onLoggedOut } from "./api.js";
import { Chat, NewChat } from "./chat.js";
import { Login } from "./login.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { announced, attempt, dropDrafts, forget, loadAgents, loadSessions, me, route, sidebarOpen, theme } from "./store.js";
import { Dialogs, html, Loading, Notes } from "./ui.js";
import { language, t, told } from "./words.js";
import "./style.css";

const Admin = lazily(() => import("./admin.js"));
const Invitation = lazily(() => import("./invite.js"));

/** Finds out who is logged in, and loads what everything needs. */
export async function enter() {
  try {
    const user = await get("api/v1/auth/users/me");
    forget();
    dropDrafts(user.id);
    me.value = user;
  } catch (error) {
    if (error.status !== 401 && error.status !== 403) throw error;
    me.value = null;
    return;
  }
  attempt(loadAgents);
  attempt(loadSessions);
}

onLoggedOut.call = forget;

function Page() {
  const { name, id } = route.value;
  if (name === "s") return html`<${Chat} key=${id} id=${id} />`;
  if (name === "settings") return html`<${Settings} />`;
  if (name === "admin" && me.value.role === "admin") return html`<${Admin} />`;
  return html`<${NewChat} />`;
}

function App() {
  if (route.value.name === "invite") return html`<${Invitation} key=${`${language.value} ${route.value.id}`} /><${Notes} />`;
  if (me.value === undefined) return html`<${Loading} />`;
  if (me.value === null) return html`<${Login} key=${language.value} /><${Notes} />`;
  return html`
    <a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), document.getElementById("main").focus())}>${t("message")}</a>
    <div class="frame ${sidebarOpen.value ? "with-sidebar" : ""}" key=${language.value}>
      <${Sidebar} />
      ${sidebarOpen.value && html`<div class="shade" onClick=${() => (sidebarOpen.value = false)} />`}
      <main id="main" tabindex="-1"><${Page} /></main>
    </div>
    <${Dialogs} /><${Notes} />
    <div class="hidden" role="status" aria-live="polite" id="announced">${announced.value}</div>`;
}

effect(() => (document.documentElement.lang = language.value));
effect(() => {
  if (theme.value === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
});
// After an upgrade of the server, what an open page still wants to load has another name.
addEventListener("vite:preloadError", () => location.reload());

render(html`<${App} />`, document.getElementById("app"));
enter().catch((error) => render(html`<main class="login"><p class="error" role="alert">${told(error)}</p><button class="primary" onClick=${() => location.reload()}>${t("retry")}</button></main>`, document.getElementById("app")));
