// What administrators do: users, groups, agents, models, usage, budgets and what they did. Loaded when it is first opened.
import { useEffect, useState } from "preact/hooks";
import { all, del, get, post, put } from "./api.js";
import { Audit } from "./audit.js";
import { Section, Sheet, small, Table, useList } from "./settings.js";
import { agents, attempt, loadAgents, nameOf, note, route } from "./store.js";
import { confirmed, Field, html, Loading } from "./ui.js";
import { Usage } from "./usage.js";
import { Users } from "./users.js";
import { moment, money, number, t } from "./words.js";

const TABS = { users: Users, groups: Groups, agents: Agents, models: Models, usage: Usage, budgets: Budgets, audit: Audit };

export default function Admin() {
  const name = TABS[route.value.id] ? route.value.id : "users";
  const Tab = TABS[name];
  const nav = html`
    <nav class="tabs" aria-label=${t("admin")}>
      ${Object.keys(TABS).map((each) => html`<a href="#/admin/${each}" aria-current=${each === name ? "page" : null}>${t(each)}</a>`)}
    </nav>`;
  return html`<${Sheet} title=${t("admin")} nav=${nav}><${Tab} key=${name} /><//>`;
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
      ${models ? html`<${Table} label=${t("models")} columns=${[t("model"), t("status"), t("description"), t("context"), `${t("prompt")} / M`, `${t("completion")} / M`]}
        rows=${models.map((model) => [html`<code>${model.id}</code>`, html`<span class=${model.away ? "error" : "good"}>${t(model.away ? "modelAway" : "modelsReady")}</span>`, model.description, model.context ? number(model.context) : "", model.price?.prompt, model.price?.completion])} />` : html`<${Loading} />`}
    <//>`;
}

const SCOPES = ["user", "group", "agent", "session", "key"];
const PERIODS = ["hour", "day", "month", "total"];

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
