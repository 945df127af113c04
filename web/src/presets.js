// A preset: a named configuration of an agent, which is made of a conversation's settings and changed by its owner.
import { useState } from "preact/hooks";
import { patch, post } from "./api.js";
import { SchemaForm } from "./form.js";
import { SessionParams } from "./session_params.js";
import { attempt, complain, dialog, loadAgents, note, schemaOf } from "./store.js";
import { Field, html } from "./ui.js";
import { t } from "./words.js";

const OWN = ["name", "description", "shared_with"]; // fields that are no parameters

/** A new preset with the parameters that were set already. */
export const createPreset = (agent, params, own) =>
  (dialog.value = { title: t("saveAsPreset"), body: () => html`<${Form} save=${(given) => post("api/v1/agents", { ...given, agent: { id: agent, params }, session_params: own })} />` });

/** All of a preset, to be changed. Conversations that were begun with it stay as they are. */
export const editPreset = (preset) => (dialog.value = { title: `${t("edit")}: ${preset.name}`, body: () => html`<${Editor} preset=${preset} />` });

function Editor({ preset }) {
  const [params, setParams] = useState(preset.agent.params);
  const [own, setOwn] = useState(preset.session_params);
  const schema = schemaOf(preset.id);
  const save = (given) => {
    const agent = schema ? { agent: { id: preset.agent.id, params } } : {}; // one that is not here at present keeps what it has
    return patch(`api/v1/agents/${preset.id}`, { ...given, ...agent, session_params: own });
  };
  return html`
    <${Form} preset=${preset} save=${save} text=${t("presetStays")}
      params=${(wrong) => html`
        ${schema && html`<${SchemaForm} schema=${schema} value=${params} onChange=${setParams} wrong=${wrong} />`}
        <${SessionParams} value=${own} onChange=${setOwn} />`} />`;
}

function Form({ preset, save, params, text }) {
  const [wrong, setWrong] = useState({});
  const error = (name) => wrong.param === name && wrong.message;
  const submit = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const groups = form.get("shared").split("\n").map((line) => line.trim()).filter(Boolean);
    try {
      await save({ name: form.get("name").trim(), description: form.get("description"), shared_with: groups });
      dialog.value = null;
      note(t("saved"));
      attempt(loadAgents);
    } catch (refusal) {
      setWrong({ param: refusal.param, message: refusal.message });
      if (!OWN.includes(refusal.param)) complain(refusal);
    }
  };
  return html`
    <form class="form" onSubmit=${submit}>
      ${text && html`<p class="muted">${text}</p>`}
      <${Field} label=${t("presetName")} error=${error("name")}><input name="name" required maxlength="100" autofocus defaultValue=${preset?.name ?? ""} /><//>
      <${Field} label=${t("description")} error=${error("description")}><textarea name="description" rows="2" maxlength="4000" defaultValue=${preset?.description ?? ""} /><//>
      ${params?.(OWN.includes(wrong.param) ? null : wrong)}
      <${Field} label=${t("shareWith")} error=${error("shared_with")}><textarea name="shared" rows="2" defaultValue=${preset?.shared_with.join("\n") ?? ""} /><//>
      <div class="row end"><button class="primary">${t("save")}</button></div>
    </form>`;
}
