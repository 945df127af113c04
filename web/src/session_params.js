// What holds for a session whichever agent answers, as fields: of a conversation, or of a preset for those that begin with it.
import { useEffect, useState } from "preact/hooks";
import { get } from "./api.js";
import { agentOf, attempt } from "./store.js";
import { Field, html, Icon } from "./ui.js";
import { t } from "./words.js";

/** `value` has the session's parameters, of which null is the default; `onChange` gets the next ones. */
export function SessionParams({ value, onChange }) {
  const [models, setModels] = useState([]);
  useEffect(() => {
    attempt(async () => setModels((await get("v1/models")).data.filter((model) => !agentOf(model.id))));
  }, []);
  const set = (name, next) => onChange({ ...value, [name]: next === "" ? null : next });
  const choice = (name, choices) => html`
    <${Field} label=${t(name)}><select value=${value[name] ?? ""} onChange=${(event) => set(name, event.target.value)}>
      <option value="">${t("default")}</option>${choices.map((each) => html`<option value=${each}>${t(`${name}_${each}`)}</option>`)}</select><//>`;
  return html`
    <details><summary><${Icon} name="right" size=${14} />${t("advanced")}</summary><div class="form">
      <${Field} label=${t("model")}><input list="models" maxlength="200" value=${value.model ?? ""} onInput=${(event) => set("model", event.target.value)} />
        <datalist id="models">${models.map((model) => html`<option value=${model.id} />`)}</datalist><//>
      <${Field} label=${t("temperature")}><input type="number" min="0" max="2" step="0.1" value=${value.temperature ?? ""} onInput=${(event) => set("temperature", event.target.value === "" ? "" : Number(event.target.value))} /><//>
      ${choice("busy", ["reject", "queue", "interrupt"])}
      ${choice("mode", ["realtime", "background", "batch"])}
    </div></details>`;
}
