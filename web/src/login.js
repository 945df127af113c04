// Who are you? Name and password, or an API key.
import { useEffect, useState } from "preact/hooks";
import { hasProvider, logIn, PROVIDER } from "./api.js";
import { enter } from "./main.js";
import { Field, html, Languages } from "./ui.js";
import { t, told } from "./words.js";

export function Login() {
  const [byKey, setByKey] = useState(false);
  const [wrong, setWrong] = useState("");
  const [busy, setBusy] = useState(false);
  const [byProvider, setByProvider] = useState(false);
  useEffect(() => void hasProvider().then(setByProvider), []);
  const submit = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const given = Object.fromEntries([...form].map(([name, value]) => [name, name === "password" ? value : value.trim()]));
    setBusy(true);
    setWrong("");
    try {
      await logIn(given);
      await enter();
    } catch (error) {
      setWrong(error.status === 401 ? t(byKey ? "keyRefused" : "loginFailed") : told(error));
      setBusy(false);
    }
  };
  return html`
    <main class="login">
      <form onSubmit=${submit} class="card">
        <div class="brand"><span class="logo" aria-hidden="true" /><h1>Chattable</h1></div>
        <p class="muted">${t("loginLead")}</p>
        ${byKey
          ? html`<${Field} key="key" label=${t("apiKey")} help=${t("loginHint")}><input name="key" type="password" autocomplete="off" required autofocus spellcheck=${false} /><//>`
          : html`
            <${Field} key="name" label=${t("name")}><input name="username" autocomplete="username" required autofocus autocapitalize="off" spellcheck=${false} /><//>
            <${Field} key="password" label=${t("password")}><input name="password" type="password" autocomplete="current-password" required /><//>`}
        ${wrong && html`<p class="error" role="alert">${wrong}</p>`}
        <button class="primary wide-button" disabled=${busy}>${t("log_in")}</button>
        ${byProvider && html`<a class="button wide-button" href=${PROVIDER}>${t("withProvider")}</a>`}
        <button type="button" class="quiet" onClick=${() => (setByKey(!byKey), setWrong(""))}>${byKey ? t("withPassword") : t("withKey")}</button>
      </form>
      <${Languages} />
    </main>`;
}
