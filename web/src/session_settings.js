// What holds for one conversation: its agent with parameters, and what any agent is told. It can be changed at any time.
import { useState } from "preact/hooks";
import { SchemaForm } from "./form.js";
import { createPreset } from "./presets.js";
import { SessionParams } from "./session_params.js";
import { agentOf, complain, dialog, nameOf, note, schemaOf, usable } from "./store.js";
import { Field, html } from "./ui.js";
import { t } from "./words.js";

export function SessionSettings({ conversation }) {
  const session = conversation.session.value;
  const [agent, setAgent] = useState(session.agent.preset_id && agentOf(session.agent.preset_id) ? session.agent.preset_id : session.agent.id);
  const [params, setParams] = useState(session.agent.params);
  const [own, setOwn] = useState(session.session_params);
  const [wrong, setWrong] = useState(null);
  const choose = (id) => {
    setAgent(id);
    const found = agentOf(id);
    const isSame = id === session.agent.id || id === session.agent.preset_id;
    setParams(isSame ? session.agent.params : (found?.agent?.params ?? {}));
    if (found?.session_params) setOwn(found.session_params);
  };
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
  const asPreset = () => createPreset(agentOf(agent)?.agent?.id ?? agent, params, own);
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
      <${SessionParams} value=${own} onChange=${setOwn} />
      <div class="row end"><button type="button" class="quiet" onClick=${asPreset}>${t("saveAsPreset")}</button><button class="primary">${t("save")}</button></div>
    </form>`;
}
