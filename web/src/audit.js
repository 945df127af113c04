// Administration: what administrators did, newest first.
import { useEffect, useState } from "preact/hooks";
import { all, get, query } from "./api.js";
import { Section, Table, useList } from "./settings.js";
import { attempt } from "./store.js";
import { Field, html, Loading } from "./ui.js";
import { moment, t } from "./words.js";

const PAGE = 50;
const ACTIONS = {
  user: ["create", "update", "delete"],
  invite: ["create", "delete"],
  key: ["create"],
  group: ["create", "delete", "add_member", "remove_member", "add_grant", "remove_grant"],
  budget: ["create", "delete"],
  cache: ["purge"],
};

export function Audit() {
  const [filter, setFilter] = useState({ action: "", actor_id: "" });
  const [acts, setActs] = useState(null);
  const [users] = useList(() => all("api/v1/users"));
  const load = (before) => attempt(async () => {
    const page = await get(query("api/v1/audit", { ...filter, limit: PAGE, after: before?.at(-1)?.id }));
    setActs({ rows: [...(before ?? []), ...page.data], hasMore: page.has_more });
  });
  useEffect(() => {
    setActs(null);
    load();
  }, [filter]);
  const set = (name) => (event) => setFilter({ ...filter, [name]: event.target.value });
  const named = (id) => users?.find((user) => user.id === id)?.name ?? id;
  const told = (details) => Object.entries(details).map(([name, value]) => `${name}: ${[value].flat().map(named).join(", ")}`).join(" · ");
  return html`
    <${Section} title=${t("audit")} text=${t("auditText")}>
      <form class="inline">
        <${Field} label=${t("action")}><select value=${filter.action} onChange=${set("action")}>
          <option value="">${t("everything")}</option>
          ${Object.entries(ACTIONS).map(([noun, verbs]) => html`<optgroup label=${noun}>${verbs.map((verb) => html`<option>${noun}.${verb}</option>`)}</optgroup>`)}</select><//>
        <${Field} label=${t("who")}><select value=${filter.actor_id} onChange=${set("actor_id")}>
          <option value="">${t("everybody")}</option>
          ${users?.map((user) => html`<option value=${user.id}>${user.name}</option>`)}</select><//>
      </form>
      ${acts
        ? html`
          <${Table} label=${t("audit")} columns=${[t("when"), t("who"), t("action"), t("onWhat"), t("details")]}
            rows=${acts.rows.map((act) => [
              moment(act.created_at),
              act.actor_name ?? (act.actor_id ? html`<code>${act.actor_id}</code>` : t("operator")),
              html`<code>${act.action}</code>`,
              named(act.subject) === act.subject ? html`<code>${act.subject}</code>` : named(act.subject),
              html`<span class="prose">${told(act.details)}</span>`,
            ])} />
          ${acts.hasMore && html`<button type="button" class="start" onClick=${() => load(acts.rows)}>${t("load")}</button>`}`
        : html`<${Loading} />`}
    <//>`;
}
