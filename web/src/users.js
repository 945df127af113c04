// Administration: who may come in, by links that work once, and what each may do.
import { all, del, download, patch, post } from "./api.js";
import { Section, showSecret, small, Table, useList } from "./settings.js";
import { attempt, me, note } from "./store.js";
import { confirmed, Field, html, Loading } from "./ui.js";
import { moment, number, t } from "./words.js";

const ROLES = ["user", "admin"];
const address = (path) => new URL(path.slice(1), location.origin + location.pathname).href;
const roles = () => ROLES.map((each) => html`<option value=${each}>${t(`role_${each}`)}</option>`);

export function Users() {
  const [users, reload] = useList(() => all("api/v1/users"));
  const [links, again] = useList(() => all("api/v1/invites"));
  const [groups] = useList(() => all("api/v1/groups"));
  const offered = (groups ?? []).filter((group) => group.name !== "everyone");
  const nameOf = (id) => groups?.find((group) => group.id === id)?.name ?? id;
  const change = (user, changes) => attempt(async () => (await patch(`api/v1/users/${user.id}`, changes), await reload()));
  const show = (title, link) => showSecret(title, t("linkText", { until: moment(link.expires_at) }), address(link.path));
  const invite = async (event) => {
    event.preventDefault();
    const { target } = event;
    const form = new FormData(target);
    const body = { name: form.get("name").trim() || undefined, role: form.get("role"), groups: form.getAll("groups") };
    const made = await attempt(() => post("api/v1/invites", body));
    if (!made) return;
    target.reset();
    show(made.name ?? t("invite"), made);
    again();
  };
  const reset = async (user) => {
    const made = await attempt(() => post("api/v1/invites", { user_id: user.id }));
    if (made) show(t("resetPassword", { name: user.name }), made);
    again();
  };
  /** All accounts of a table or none; what was made comes back with links, as a file. */
  const take = async (file) => {
    const made = await attempt(async () => post("api/v1/users/import", { csv: await file.text() }));
    if (!made) return;
    const cell = (text) => `"${text.replaceAll('"', '""')}"`;
    const lines = made.data.map((each) => [cell(each.name), each.role, address(each.path)].join(","));
    download("users.csv", ["name,role,link", ...lines].join("\n"), "text/csv");
    note(t("imported", { n: number(made.data.length) }));
    reload();
    again();
  };
  const key = async (user) => {
    const made = await attempt(() => post(`api/v1/users/${user.id}/keys`, { name: "page" }));
    if (made) showSecret(user.name, t("keyShown"), made.key);
  };
  const remove = (user) => confirmed(t("deleteSure", { name: user.name }), t("deleteSessionText"), () => attempt(async () => (await del(`api/v1/users/${user.id}`), await reload())));
  const takeBack = (link) => attempt(async () => (await del(`api/v1/invites/${link.id}`), await again()));
  const actions = (user) => html`
    <div class="row">
      ${small(t("newPassword"), () => reset(user))}${small(t("key"), () => key(user))}
      ${user.id !== me.value.id && small(t(user.status === "active" ? "suspend" : "unsuspend"), () => change(user, { status: user.status === "active" ? "suspended" : "active" }))}
      ${user.id !== me.value.id && small(t("delete"), () => remove(user), true)}
    </div>`;
  const role = (user) => html`
    <select aria-label="${t("role")}: ${user.name}" value=${user.role} disabled=${user.id === me.value.id} onChange=${(event) => change(user, { role: event.target.value })}>${roles()}</select>`;
  return html`
    <${Section} title=${t("invite")} text=${t("inviteText")}>
      <form class="inline" onSubmit=${invite}>
        <${Field} label=${t("name")}><input name="name" maxlength="100" autocomplete="off" placeholder=${t("chosenLater")} /><//>
        <${Field} label=${t("role")}><select name="role">${roles()}</select><//>
        ${offered.length > 0 && html`<${Field} label=${t("groups")}><select name="groups" multiple size="2">${offered.map(({ name }) => html`<option>${name}</option>`)}</select><//>`}
        <button class="primary">${t("createLink")}</button>
      </form>
      <${Field} label=${t("importUsers")} help=${t("importHelp")}><input type="file" accept=".csv,text/csv" onChange=${(event) => (take(event.target.files[0]), (event.target.value = ""))} /><//>
    <//>
    ${links?.length > 0 && html`
      <${Section} title=${t("openLinks")}>
        <${Table} label=${t("openLinks")} columns=${[t("name"), t("scope"), t("expires"), ""]}
          rows=${links.map((link) => [
            link.name ?? t("chosenLater"),
            link.user_id ? t("newPassword") : [t(`role_${link.role}`), ...link.groups.map(nameOf)].join(", "),
            moment(link.expires_at),
            small(t("takeBack"), () => takeBack(link), true),
          ])} />
      <//>`}
    <${Section} title=${t("users")}>
      ${users ? html`<${Table} label=${t("users")} columns=${[t("name"), t("role"), t("status"), t("created"), ""]}
        rows=${users.map((user) => [user.name, role(user), t(`status_${user.status}`), user.created_at ? moment(user.created_at) : "", actions(user)])} />` : html`<${Loading} />`}
    <//>`;
}
