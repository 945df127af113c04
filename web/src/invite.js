// What a link opens that an administrator has given: a new account, or a new password. Loaded when such a link is opened.
import { useEffect, useState } from "preact/hooks";
import { logIn, post } from "./api.js";
import { enter } from "./main.js";
import { go, route } from "./store.js";
import { Field, html, Languages, Loading } from "./ui.js";
import { t, told } from "./words.js";

const LEAST = 8; // characters of a password, as the server has it

export default function Invitation() {
  const secret = route.value.id;
  const [link, setLink] = useState(null);
  const [wrong, setWrong] = useState({});
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    post("api/v1/auth/invite/look", { secret }).then(setLink, (error) => setLink({ error: error.status === 404 ? t("linkGone") : told(error) }));
  }, []);
  const submit = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const password = form.get("password");
    if (password !== form.get("again")) return setWrong({ again: t("notEqual") });
    setBusy(true);
    setWrong({});
    try {
      const name = link.name ? undefined : form.get("username").trim();
      const user = await post("api/v1/auth/invite", { secret, name, password });
      await logIn({ username: user.name, password });
      history.replaceState(null, "", location.pathname); // the link is used up, and is not to be gone back to
      go("");
      await enter();
    } catch (error) {
      setBusy(false);
      if (error.status === 404) setLink({ error: t("linkGone") });
      else setWrong({ [error.param ?? "form"]: told(error) });
    }
  };
  const form = link && !link.error && html`
    <p class="muted">${link.is_new ? t("welcome") : t("resetText", { name: link.name })}</p>
    <${Field} label=${t("name")} error=${wrong.name}>
      <input name="username" autocomplete="username" required maxlength="100" value=${link.name ?? ""} readonly=${Boolean(link.name)} autofocus=${!link.name} autocapitalize="off" spellcheck=${false} /><//>
    <${Field} label=${t(link.is_new ? "password" : "newPassword")} help=${t("atLeast", { n: LEAST })} error=${wrong.password}>
      <input name="password" type="password" autocomplete="new-password" required minlength=${LEAST} maxlength="256" autofocus=${Boolean(link.name)} /><//>
    <${Field} label=${t("passwordAgain")} error=${wrong.again}><input name="again" type="password" autocomplete="new-password" required /><//>
    ${wrong.form && html`<p class="error" role="alert">${wrong.form}</p>`}
    <button class="primary wide-button" disabled=${busy}>${t(link.is_new ? "createAccount" : "setPassword")}</button>`;
  return html`
    <main class="login">
      <form onSubmit=${submit} class="card">
        <div class="brand"><span class="logo" aria-hidden="true" /><h1>Chattable</h1></div>
        ${!link ? html`<${Loading} />` : link.error ? html`<p class="error" role="alert">${link.error}</p><a class="button wide-button" href="#/">${t("log_in")}</a>` : form}
      </form>
      <${Languages} />
    </main>`;
}
