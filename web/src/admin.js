// What administrators do: users, groups, agents, models, usage and budgets. Loaded when it is first opened.
import { useEffect, useState } from "preact/hooks";
import { all, del, download, get, patch, post, put } from "./api.js";
import { Section, Sheet, small, showSecret, Table, useList } from "./settings.js";
import { agents, attempt, loadAgents, me, nameOf, note, route } from "./store.js";
import { confirmed, Field, html, Loading } from "./ui.js";
import { moment, money, number, t } from "./words.js";

const TABS = { users: Users, groups: Groups, agents: Agents, models: Models, usage: Usage, budgets: Budgets };

export default function Admin() {
  const name = TABS[route.value.id] ? route.value.id : "users";
  const Tab = TABS[name];
  const nav = html`
    <nav class="tabs" aria-label=${t("admin")}>
      ${Object.keys(TABS).map((each) => html`<a href="#/admin/${each}" aria-current=${each === name ? "page" : null}>${t(each)}</a>`)}
    </nav>`;
  return html`<${Sheet} title=${t("admin")} nav=${nav}><${Tab} key=${name} /><//>`;
}

const secret = () => btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(12)))).replace(/\+/g, "x").replace(/\//g, "y");

function Users() {
  const [users, reload] = useList(() => all("api/v1/users"));
  const change = (user, changes) => attempt(async () => (await patch(`api/v1/users/${user.id}`, changes), await reload()));
  const invite = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const name = form.get("name").trim();
    const password = secret();
    const made = await attempt(() => post("api/v1/users", { name, role: form.get("role"), password }));
    if (!made) return;
    event.target.reset();
    showSecret(name, t("inviteText", { name }), `${location.origin}${location.pathname}\n${name}\n${password}`);
    reload();
  };
  /** Lines of name and role, the second optional; what was made comes back with passwords, as a file. */
  const take = async (file) => {
    const made = [];
    for (const line of (await file.text()).split(/\r?\n/)) {
      const [name, role] = line.split(/[,;\t]/).map((cell) => cell.trim().replace(/^"(.*)"$/, "$1"));
      if (!name || /^(name|user(name)?)$/i.test(name)) continue;
      const body = { name, role: role || "user", password: secret() };
      if (await attempt(() => post("api/v1/users", body))) made.push(body);
    }
    if (made.length) download("users.csv", ["name,role,password", ...made.map((each) => [`"${each.name}"`, each.role, each.password].join(","))].join("\n"), "text/csv");
    note(t("imported", { n: number(made.length) }));
    reload();
  };
  const reset = async (user) => {
    const password = secret();
    if (await attempt(() => patch(`api/v1/users/${user.id}`, { password }))) showSecret(t("resetPassword", { name: user.name }), t("inviteText", { name: user.name }), password);
  };
  const key = async (user) => {
    const made = await attempt(() => post(`api/v1/users/${user.id}/keys`, { name: "page" }));
    if (made) showSecret(user.name, t("keyShown"), made.key);
  };
  const remove = (user) => confirmed(t("deleteSure", { name: user.name }), t("deleteSessionText"), () => attempt(async () => (await del(`api/v1/users/${user.id}`), await reload())));
  const actions = (user) => html`
    <div class="row">
      ${small(t("newPassword"), () => reset(user))}${small(t("key"), () => key(user))}
      ${user.id !== me.value.id && small(t(user.status === "active" ? "suspend" : "unsuspend"), () => change(user, { status: user.status === "active" ? "suspended" : "active" }))}
      ${user.id !== me.value.id && small(t("delete"), () => remove(user), true)}
    </div>`;
  const role = (user) => html`
    <select aria-label="${t("role")}: ${user.name}" value=${user.role} disabled=${user.id === me.value.id} onChange=${(event) => change(user, { role: event.target.value })}>
      ${["user", "admin"].map((each) => html`<option value=${each}>${t(`role_${each}`)}</option>`)}</select>`;
  return html`
    <${Section} title=${t("invite")}>
      <form class="inline" onSubmit=${invite}>
        <${Field} label=${t("name")}><input name="name" required maxlength="100" autocomplete="off" /><//>
        <${Field} label=${t("role")}><select name="role">${["user", "admin"].map((each) => html`<option value=${each}>${t(`role_${each}`)}</option>`)}</select><//>
        <button class="primary">${t("invite")}</button>
      </form>
      <${Field} label=${t("importUsers")} help=${t("importHelp")}><input type="file" accept=".csv,text/csv" onChange=${(event) => (take(event.target.files[0]), (event.target.value = ""))} /><//>
    <//>
    <${Section} title=${t("users")}>
      ${users ? html`<${Table} label=${t("users")} columns=${[t("name"), t("role"), t("status"), t("created"), ""]}
        rows=${users.map((user) => [user.name, role(user), t(`status_${user.status}`), user.created_at ? moment(user.created_at) : "", actions(user)])} />` : html`<${Loading} />`}
    <//>`;
}

function Groups() {
  const [groups, reload] = useList(() => all("api/v1/groups"));
  const [users] = useList(() => all("api/v1/users"));
  const create = async (event) => {
    event.preventDefault();
    const { target } = event;
    if (await attempt(() => post("api/v1/groups", { name: new FormData(target).get("name").trim() }))) target.reset(), reload();
  };
  return html`
    <${Section} title=${t("groups")}>
      <form class="inline" onSubmit=${create}><${Field} label=${t("name")}><input name="name" required maxlength="100" /><//><button class="primary">${t("create")}</button></form>
    <//>
    ${groups && users ? groups.map((group) => html`<${Group} key=${group.id} group=${group} users=${users} reload=${reload} />`) : html`<${Loading} />`}`;
}

function Group({ group, users, reload }) {
  const isAll = group.name === "everyone";
  const [members, again] = useList(() => (isAll ? Promise.resolve([]) : all(`api/v1/groups/${group.id}/members`)));
  const path = `api/v1/groups/${group.id}`;
  const grant = (id) => attempt(async () => (await put(`${path}/agents/${encodeURIComponent(id)}`), await reload()));
  const revoke = (id) => attempt(async () => (await del(`${path}/agents/${encodeURIComponent(id)}`), await reload()));
  const join = (id) => attempt(async () => (await put(`${path}/members/${id}`), await again()));
  const leave = (id) => attempt(async () => (await del(`${path}/members/${id}`), await again()));
  const remove = () => confirmed(t("deleteSure", { name: group.name }), group.name, () => attempt(async () => (await del(path), await reload())));
  const offered = ["*", ...(agents.value ?? []).map((each) => each.id).filter(Boolean)].filter((id) => !group.agents.includes(id));
  const others = users.filter((user) => !members?.some((member) => member.id === user.id));
  const title = (id) => (id === "*" ? t("allAgents") : nameOf(id));
  const Tags = ({ items, onRemove }) => html`<ul class="tags">${items.map(({ id, name }) => html`<li>${name}<button type="button" class="quiet small" aria-label="${t("remove")}: ${name}" onClick=${() => onRemove(id)}>×</button></li>`)}</ul>`;
  const Adder = ({ label, options, onAdd }) => options.length > 0 && html`
    <select aria-label=${label} value="" onChange=${(event) => event.target.value && onAdd(event.target.value)}>
      <option value="">${label}…</option>${options.map(({ id, name }) => html`<option value=${id}>${name}</option>`)}</select>`;
  return html`
    <${Section} title=${group.name} action=${!isAll && small(t("delete"), remove, true)}>
      <h3>${t("grants")}</h3>
      <${Tags} items=${group.agents.map((id) => ({ id, name: title(id) }))} onRemove=${revoke} />
      <${Adder} label=${t("grant")} options=${offered.map((id) => ({ id, name: title(id) }))} onAdd=${grant} />
      ${!isAll && members && html`<h3>${t("members")}</h3><${Tags} items=${members} onRemove=${leave} /><${Adder} label=${t("addMember")} options=${others} onAdd=${join} />`}
    <//>`;
}

function Agents() {
  useEffect(() => void attempt(loadAgents), []);
  const list = agents.value ?? [];
  return html`
    <${Section} title=${t("agents")}>
      <${Table} label=${t("agents")} columns=${[t("agent"), t("source"), t("description"), t("status")]}
        rows=${list.map((each) => [
          html`<strong>${each.id ? nameOf(each.id) : "—"}</strong>${each.kind === "preset" ? html` <em>${t("preset")}</em>` : ""}`,
          html`<code>${each.source ?? each.agent?.id}</code>`,
          html`<span class="prose">${(each.description ?? "").split("\n\n")[0]}</span>`,
          each.error ? html`<span class="error prose">${t("errorsOf")}: ${each.error}</span>` : t("modelsReady"),
        ])} />
    <//>`;
}

function Models() {
  const [models] = useList(async () => {
    const listed = (await get("v1/models")).data.filter((model) => !agents.value?.some((agent) => agent.id === model.id));
    const asked = listed.map((model, id) => ({ jsonrpc: "2.0", id, method: "get_model_info", params: { model: model.id } }));
    if (!asked.length) return [];
    const told = [];
    for (let at = 0; at < asked.length; at += 20) told.push(...(await post("api/v1/agents/mcp", asked.slice(at, at + 20))));
    return told.map((each) => each.result).filter(Boolean);
  });
  const [health] = useList(async () => (await fetch("api/v1/llm/health")).json());
  const states = { ready: "modelsReady", "no language model is set up": "modelsNone", "language models unavailable": "modelsDown" };
  return html`
    <${Section} title=${t("health")}>${health && html`<p class=${health.status === "ready" ? "good" : "error"}>${t(states[health.status] ?? "other")}</p>`}<//>
    <${Section} title=${t("models")}>
      ${models ? html`<${Table} label=${t("models")} columns=${[t("model"), t("description"), t("context"), `${t("prompt")} / M`, `${t("completion")} / M`]}
        rows=${models.map((model) => [html`<code>${model.id}</code>`, model.description, model.context ? number(model.context) : "", model.price?.prompt, model.price?.completion])} />` : html`<${Loading} />`}
    <//>`;
}

function Usage() {
  const [by, setBy] = useState("day");
  const [from, setFrom] = useState("");
  const [report, setReport] = useState(null);
  useEffect(() => {
    setReport(null);
    attempt(async () => setReport(await all("api/v1/usage", { group_by: by, from: from ? `${from}T00:00:00Z` : "" })));
  }, [by, from]);
  const most = Math.max(1, ...(report ?? []).map((each) => each.total));
  const label = (each) => (by === "agent" ? nameOf(each.id) : each.name ?? each.id);
  return html`
    <${Section} title=${t("usage")}>
      <form class="inline">
        <${Field} label=${t("scope")}><select value=${by} onChange=${(event) => setBy(event.target.value)}>${["day", "user", "agent", "model"].map((each) => html`<option value=${each}>${t(each)}</option>`)}</select><//>
        <${Field} label=${t("since")}><input type="date" value=${from} onInput=${(event) => setFrom(event.target.value)} /><//>
      </form>
      ${report ? html`<${Table} label=${t("usage")} columns=${[t(by), "", t("tokens"), t("calls"), t("cost")]}
        rows=${report.map((each) => [label(each), html`<span class="bar" aria-hidden="true" style=${{ width: `${Math.max(1, (100 * each.total) / most)}%` }} />`, number(each.total), number(each.calls), money(each.cost)])} />` : html`<${Loading} />`}
    <//>`;
}

const SCOPES = ["user", "group", "agent", "session", "key"];
const PERIODS = ["day", "month", "total"];

function Budgets() {
  const [budgets, reload] = useList(() => all("api/v1/budgets"));
  const [users] = useList(() => all("api/v1/users"));
  const [groups] = useList(() => all("api/v1/groups"));
  const [scope, setScope] = useState("user");
  const options = { user: users, group: groups, agent: agents.value?.filter((each) => each.kind === "plugin" && each.id).map(({ id }) => ({ id, name: nameOf(id) })) }[scope];
  const create = async (event) => {
    event.preventDefault();
    const { target } = event;
    const form = new FormData(target);
    const body = { scope, id: form.get("id"), period: form.get("period") };
    if (form.get("tokens")) body.tokens = Number(form.get("tokens"));
    if (form.get("money")) body.money = form.get("money");
    if (await attempt(() => post("api/v1/budgets", body))) target.reset(), note(t("saved")), reload();
  };
  const named = ({ scope, scope_id: id }) => ({ user: users, group: groups }[scope]?.find((each) => each.id === id)?.name ?? nameOf(id));
  const amount = ({ tokens, money: limit }, of) => [tokens !== null && `${number(of?.tokens ?? 0)} / ${number(tokens)}`, limit !== null && `${money(of?.money ?? 0)} / ${money(limit)}`].filter(Boolean).join(" · ");
  const remove = (budget) => attempt(async () => (await del(`api/v1/budgets/${budget.id}`), await reload()));
  return html`
    <${Section} title=${t("budgets")}>
      <form class="inline" onSubmit=${create}>
        <${Field} label=${t("scope")}><select value=${scope} onChange=${(event) => setScope(event.target.value)}>${SCOPES.map((each) => html`<option value=${each}>${t(each)}</option>`)}</select><//>
        <${Field} label=${options ? t("name") : t("id")}>${options ? html`<select name="id">${options.map(({ id, name }) => html`<option value=${id}>${name}</option>`)}</select>` : html`<input name="id" required />`}<//>
        <${Field} label=${t("period")}><select name="period">${PERIODS.map((each) => html`<option value=${each}>${t(each)}</option>`)}</select><//>
        <${Field} label=${t("tokensLimit")}><input name="tokens" type="number" min="0" /><//>
        <${Field} label=${t("moneyLimit")}><input name="money" inputmode="decimal" pattern="[0-9]+([.][0-9]+)?" /><//>
        <button class="primary">${t("create")}</button>
      </form>
      ${budgets && users && groups ? html`<${Table} label=${t("budgets")} columns=${[t("scope"), t("name"), t("period"), t("used"), t("resets"), ""]}
        rows=${budgets.map((budget) => [t(budget.scope), named(budget), t(budget.period), amount(budget, budget.used), budget.resets_at ? moment(budget.resets_at) : "", small(t("delete"), () => remove(budget), true)])} />` : html`<${Loading} />`}
    <//>`;
}
