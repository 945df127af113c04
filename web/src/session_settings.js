// What holds for one conversation: its agent with parameters, and what any agent is told. It can be changed at any time.
import { useEffect, useState } from "preact/hooks";
import { get, post } from "./api.js";
import { SchemaForm } from "./form.js";
import { agentOf, attempt, complain, dialog, loadAgents, nameOf, note, schemaOf, usable } from "./store.js";
import { Field, html, Icon } from "./ui.js";
import { t } from "./words.js";

export function SessionSettings({ conversation }) {
  const session = conversation.session.value;
  const [agent, setAgent] = useState(session.agent.preset_id && agentOf(session.agent.preset_id) ? session.agent.preset_id : session.agent.id);
  const [params, setParams] = useState(session.agent.params);
  const [own, setOwn] = useState(session.session_params);
  const [models, setModels] = useState([]);
  const [wrong, setWrong] = useState(null);
  useEffect(() => {
    attempt(async () => setModels((await get("v1/models")).data.filter((model) => !agentOf(model.id))));
  }, []);
  const choose = (id) => {
    setAgent(id);
    const found = agentOf(id);
    const isSame = id === session.agent.id || id === session.agent.preset_id;
    setParams(isSame ? session.agent.params : (found?.agent?.params ?? {}));
    if (found?.session_params) setOwn(found.session_params);
  };
  const set = (name, value) => setOwn({ ...own, [name]: value === "" ? null : value });
  const save = async (event) => {
    event.preventDefault();
    try {
      await conversation.change({ agent: { id: agent, params }, session_params: own });
      dialog.value = null;
      note(t("saved"));
    } catch (error) {
      setWrong({ param: error.param, message: error.message });
      complain(error);
    }
  };
  const asPreset = () => (dialog.value = { title: t("saveAsPreset"), body: () => html`<${PresetForm} agent=${agentOf(agent)?.agent?.id ?? agent} params=${params} own=${own} />` });
  const schema = schemaOf(agent);
  const choices = [...usable.value];
  if (!choices.some((each) => each.id === agent)) choices.unshift({ id: agent, kind: "plugin" });
  return html`
    <form class="form" onSubmit=${save}>
      <${Field} label=${t("agent")}>
        <select value=${agent} onChange=${(event) => choose(event.target.value)}>
          ${["plugin", "preset"].map((kind) => {
            const some = choices.filter((each) => each.kind === kind);
            return some.length > 0 && html`<optgroup label=${t(kind === "preset" ? "presets" : "agents")}>${some.map((each) => html`<option value=${each.id}>${nameOf(each.id)}</option>`)}</optgroup>`;
          })}
        </select>
      <//>
      ${schema && html`<${SchemaForm} key=${agent} schema=${schema} value=${params} onChange=${setParams} wrong=${wrong} />`}
      <details><summary><${Icon} name="right" size=${14} />${t("advanced")}</summary><div class="form">
        <${Field} label=${t("model")}><input list="models" maxlength="200" value=${own.model ?? ""} onInput=${(event) => set("model", event.target.value)} />
          <datalist id="models">${models.map((model) => html`<option value=${model.id} />`)}</datalist><//>
        <${Field} label=${t("temperature")}><input type="number" min="0" max="2" step="0.1" value=${own.temperature ?? ""} onInput=${(event) => set("temperature", event.target.value === "" ? "" : Number(event.target.value))} /><//>
        <${Field} label=${t("busy")}><select value=${own.busy ?? ""} onChange=${(event) => set("busy", event.target.value)}>
          <option value="">${t("default")}</option>${["reject", "queue", "interrupt"].map((each) => html`<option value=${each}>${t(`busy_${each}`)}</option>`)}</select><//>
        <${Field} label=${t("mode")}><select value=${own.mode ?? ""} onChange=${(event) => set("mode", event.target.value)}>
          <option value="">${t("default")}</option>${["realtime", "background", "batch"].map((each) => html`<option value=${each}>${t(`mode_${each}`)}</option>`)}</select><//>
      </div></details>
      <div class="row end"><button type="button" class="quiet" onClick=${asPreset}>${t("saveAsPreset")}</button><button class="primary">${t("save")}</button></div>
    </form>`;
}

function PresetForm({ agent, params, own }) {
  const [wrong, setWrong] = useState("");
  const submit = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const shared = form.get("shared").split("\n").map((line) => line.trim()).filter(Boolean);
    try {
      await post("api/v1/agents", { name: form.get("name").trim(), description: form.get("description"), agent: { id: agent, params }, session_params: own, shared_with: shared });
      dialog.value = null;
      note(t("saved"));
      attempt(loadAgents);
    } catch (error) {
      setWrong(error.message);
    }
  };
  return html`
    <form class="form" onSubmit=${submit}>
      <${Field} label=${t("presetName")} error=${wrong}><input name="name" required maxlength="100" autofocus /><//>
      <${Field} label=${t("description")}><textarea name="description" rows="2" maxlength="4000" /><//>
      <${Field} label=${t("shareWith")}><textarea name="shared" rows="2" /><//>
      <div class="row end"><button class="primary">${t("save")}</button></div>
    </form>`;
}
