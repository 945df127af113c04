// One's own settings: how the page looks, the password, keys for programs, and presets.
import { useEffect, useState } from "preact/hooks";
import { all, del, get, post, query } from "./api.js";
import { editPreset } from "./presets.js";
import { agents, attempt, complain, dialog, leave, loadAgents, me, nameOf, note, setTheme, sidebarOpen, theme } from "./store.js";
import { confirmed, copied, Empty, Field, html, IconButton } from "./ui.js";
import { choose, language, languages, moment, money, number, t } from "./words.js";

/** A page with a heading and sections. */
export const Sheet = ({ title, children, nav }) => html`
  <header class="head"><span class="only-narrow"><${IconButton} icon="menu" label=${t("sessions")} onClick=${() => (sidebarOpen.value = true)} /></span>
    <div class="head-text"><h1>${title}</h1></div></header>
  <div class="stage sheet" tabindex="0" role="region" aria-label=${title}>${nav}<div class="sheet-box">${children}</div></div>`;

export const Section = ({ title, text, action, children }) => html`
  <section class="panel"><header><h2>${title}</h2>${action}</header>${text && html`<p class="muted">${text}</p>`}${children}</section>`;

/** Rows with named columns, which scrolls where it is too wide. */
export const Table = ({ label, columns, rows }) => rows.length
  ? html`
    <div class="wide" tabindex="0" role="region" aria-label=${label}><table>
      <thead><tr>${columns.map((column) => html`<th scope="col">${column}</th>`)}</tr></thead>
      <tbody>${rows.map((cells) => html`<tr>${cells.map((cell) => html`<td>${cell}</td>`)}</tr>`)}</tbody>
    </table></div>`
  : html`<${Empty}>${t("empty")}<//>`;

/** Shows a secret this once. */
export function showSecret(title, text, secret) {
  dialog.value = {
    title,
    body: () => html`<p>${text}</p><div class="secret"><code>${secret}</code><${IconButton} icon="copy" label=${t("copy")} onClick=${() => copied(secret, note)} /></div>`,
  };
}

/** A list that is loaded, and loaded again after a change. */
export function useList(load) {
  const [list, setList] = useState(null);
  const reload = () => attempt(async () => setList(await load()));
  useEffect(() => void reload(), []);
  return [list, reload];
}

export const small = (label, onClick, danger) => html`<button type="button" class="small ${danger ? "danger-text quiet" : ""}" onClick=${onClick}>${label}</button>`;

export function Settings() {
  return html`
    <${Sheet} title=${t("settings")}>
      <p class="muted">${t("signedInAs", { name: me.value.name })} · ${t(`role_${me.value.role}`)}</p>
      <${Section} title=${t("theme")}>
        <div class="form two">
          <${Field} label=${t("theme")}><select value=${theme.value} onChange=${(event) => setTheme(event.target.value)}>
            ${["auto", "light", "dark"].map((name) => html`<option value=${name}>${t(name)}</option>`)}</select><//>
          <${Field} label=${t("language")}><select value=${language.value} onChange=${(event) => choose(event.target.value)}>
            ${Object.entries(languages).map(([code, name]) => html`<option value=${code} lang=${code}>${name}</option>`)}</select><//>
        </div>
      <//>
      <${Usage} /><${Presets} /><${Keys} /><${Password} />
    <//>`;
}

function Usage() {
  const [days] = useList(() => get(query("api/v1/usage", { group_by: "model", user_id: me.value.id, limit: 50 })));
  return html`
    <${Section} title=${t("usage")}>
      ${days && html`<${Table} label=${t("usage")} columns=${[t("model"), t("calls"), t("tokens"), t("cost")]}
        rows=${days.data.map((each) => [each.id, number(each.calls), number(each.total), money(each.cost)])} />`}
    <//>`;
}

function Presets() {
  const own = (agents.value ?? []).filter((each) => each.kind === "preset" && each.shared_with !== null);
  const remove = (preset) => confirmed(t("deleteSure", { name: preset.name }), t("presetGoes"), () => attempt(async () => (await del(`api/v1/agents/${preset.id}`), await loadAgents())));
  return own.length > 0 && html`
    <${Section} title=${t("presets")}>
      <${Table} label=${t("presets")} columns=${[t("name"), t("agent"), t("shared"), ""]}
        rows=${own.map((preset) => [preset.name, nameOf(preset.agent.id), preset.shared_with.join(", "),
          html`<div class="row end">${small(t("edit"), () => editPreset(preset))}${small(t("delete"), () => remove(preset), true)}</div>`])} />
    <//>`;
}

function Keys() {
  const [keys, reload] = useList(() => all("api/v1/keys"));
  const create = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const body = { name: form.get("name").trim(), days: Number(form.get("days")) || null };
    if (form.get("scopes")) body.scopes = [form.get("scopes")];
    const made = await attempt(() => post("api/v1/keys", body));
    if (!made) return;
    event.target.reset();
    showSecret(made.name, t("keyShown"), made.key);
    reload();
  };
  const remove = (key) => confirmed(t("deleteSure", { name: key.name }), key.name, () => attempt(async () => (await del(`api/v1/keys/${key.id}`), await reload())));
  return html`
    <${Section} title=${t("apiKeys")} text=${t("keysText")}>
      ${keys && html`<${Table} label=${t("apiKeys")} columns=${[t("name"), t("key"), t("may"), t("expires"), ""]}
        rows=${keys.map((key) => [key.name, html`<code>…${key.hint}</code>`, key.scopes.join(", "), key.expires_at ? moment(key.expires_at) : "", small(t("delete"), () => remove(key), true)])} />`}
      <form class="inline" onSubmit=${create}>
        <${Field} label=${t("name")}><input name="name" required maxlength="100" /><//>
        <${Field} label=${t("days")}><input name="days" type="number" min="1" max="3650" placeholder=${t("unlimited")} /><//>
        <${Field} label=${t("may")}><select name="scopes"><option value="">${t("scopeAll")}</option><option value="chat">${t("scopeChat")}</option></select><//>
        <button class="primary">${t("create")}</button>
      </form>
    <//>`;
}

function Password() {
  const [wrong, setWrong] = useState("");
  const change = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    try {
      await post("api/v1/auth/password", { old_password: form.get("old"), new_password: form.get("new") });
      note(t("passwordChanged"));
      await leave();
    } catch (error) {
      setWrong(error.message);
      complain(error);
    }
  };
  return html`
    <${Section} title=${t("password")}>
      <form class="inline" onSubmit=${change}>
        <input class="hidden" name="username" autocomplete="username" value=${me.value.name} readonly tabindex="-1" aria-hidden="true" />
        <${Field} label=${t("currentPassword")}><input name="old" type="password" required autocomplete="current-password" /><//>
        <${Field} label=${t("newPassword")} error=${wrong}><input name="new" type="password" required autocomplete="new-password" /><//>
        <button>${t("change")}</button>
      </form>
    <//>`;
}
