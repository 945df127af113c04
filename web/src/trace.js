// What a run did: its steps as a tree with bars for their time, their values, and the run once more, compared with this one.
// Loaded when it is first opened.
import { useEffect, useState } from "preact/hooks";
import { get, post, query } from "./api.js";
import { attempt, complain } from "./store.js";
import { Empty, Field, html, Icon, Loading } from "./ui.js";
import { money, number, t, told } from "./words.js";

const MOST = 2000; // steps
const at = (time) => new Date(time).getTime();

async function stepsOf(runId) {
  const found = [];
  for (let after = 0; ; ) {
    const page = await get(query(`api/v1/runs/${runId}/steps`, { limit: 500, after }));
    found.push(...page.data);
    if (!page.has_more || found.length >= MOST) return found;
    after = page.last_seq;
  }
}

export default function Trace({ runId }) {
  const [steps, setSteps] = useState(null);
  const [wrong, setWrong] = useState("");
  const [chosen, setChosen] = useState(null);
  const [other, setOther] = useState(null);
  useEffect(() => {
    stepsOf(runId).then(setSteps, (error) => setWrong(error.status === 404 ? t("notFound") : told(error)));
  }, []);
  if (wrong) return html`<p class="error" role="alert">${wrong}</p>`;
  if (!steps) return html`<${Loading} />`;
  if (other) return html`<button type="button" class="quiet start" onClick=${() => setOther(null)}><${Icon} name="left" size=${15} />${t("back")}</button><${Difference} runId=${runId} other=${other} />`;
  if (!steps.length) return html`<${Empty}>${t("noTrace")}<//>`;
  const step = steps.find((each) => each.seq === chosen);
  return html`
    <${Tree} steps=${steps} chosen=${chosen} onChoose=${(seq) => setChosen(seq === chosen ? null : seq)} />
    ${step && html`<${Step} key=${step.seq} runId=${runId} step=${step} onRerun=${setOther} />`}`;
}

function Tree({ steps, chosen, onChoose }) {
  const begin = Math.min(...steps.map((step) => at(step.started_at)));
  const end = Math.max(...steps.map((step) => at(step.ended_at ?? step.started_at)));
  const whole = Math.max(1, end - begin);
  return html`
    <ol class="steps">
      ${steps.map((step) => {
        const from = at(step.started_at) - begin;
        const took = at(step.ended_at ?? step.started_at) - begin - from;
        const depth = step.path.split("/").filter(Boolean).length - 1;
        return html`
          <li key=${step.seq}>
            <button type="button" class="step" aria-expanded=${step.seq === chosen} onClick=${() => onChoose(step.seq)}>
              <span class="step-name" style=${{ paddingLeft: `${depth * 1.2}rem` }}><span class="kind">${step.kind}</span>${step.name} ${step.model && html`<code>${step.model}</code>`}
                ${step.status !== "completed" && html`<em class=${step.status === "failed" ? "error" : "muted"}>${step.status}</em>`} ${step.from_cache && html`<em class="muted">${t("cached")}</em>`}</span>
              <span class="step-facts">${step.usage.total > 0 && t("tokensShort", { n: number(step.usage.total) })} ${t("seconds", { n: (took / 1000).toFixed(took < 100 ? 3 : 2) })}</span>
              <span class="step-time" aria-hidden="true"><i style=${{ marginLeft: `${Math.min(99.5, (100 * from) / whole)}%`, width: `${Math.max(0.5, (100 * took) / whole)}%` }} /></span>
            </button>
          </li>`;
      })}
    </ol>`;
}

const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value, (_, each) => (isPicture(each) ? `${each.slice(0, 60)}… (${number(each.length)})` : each), 2));
const isPicture = (value) => typeof value === "string" && value.length > 1000 && value.startsWith("data:");

/** A step's input, output and error; and how to do it otherwise. */
function Step({ runId, step, onRerun }) {
  const [values, setValues] = useState(null);
  useEffect(() => {
    const side = (name) => step[`${name}_hash`] && get(`api/v1/runs/${runId}/steps/${step.seq}/${name}`).then((found) => shown(found.value), told);
    Promise.all([side("input"), side("output")]).then(setValues);
  }, []);
  if (!values) return html`<${Loading} />`;
  return html`
    <section class="step-detail" aria-label="${step.kind} ${step.name}">
      ${step.error && html`<p class="error">${step.error.message ?? shown(step.error)}</p>`}
      <div class="sides">
        ${[t("input"), t("output")].map((label, side) => html`<div><h3>${label}</h3><pre tabindex="0" aria-label=${label}>${values[side] ?? "—"}</pre></div>`)}
      </div>
      <${Rerun} runId=${runId} step=${step} onRerun=${onRerun} />
    </section>`;
}

function Rerun({ runId, step, onRerun }) {
  const [busy, setBusy] = useState(false);
  const [models, setModels] = useState([]);
  const isCall = step.kind === "llm";
  useEffect(() => {
    if (isCall) attempt(async () => setModels((await get("v1/models")).data));
  }, []);
  const submit = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const set = {};
    if (form.get("model")) set.model = form.get("model").trim();
    if (form.get("prompt")) set.prompt = form.get("prompt");
    setBusy(true);
    try {
      onRerun((await post(`api/v1/runs/${runId}/rerun`, { step: step.seq, set, downstream: true })).id);
    } catch (error) {
      complain(error);
      setBusy(false);
    }
  };
  return html`
    <form onSubmit=${submit}>
      ${isCall && html`
        <${Field} label=${t("otherModel")}><input name="model" list="rerun-models" maxlength="200" placeholder=${step.model ?? ""} />
          <datalist id="rerun-models">${models.map((model) => html`<option value=${model.id} />`)}</datalist><//>
        <${Field} label=${t("otherPrompt")}><textarea name="prompt" rows="2" maxlength="1000000" /><//>`}
      <div class="row end"><button class="primary" disabled=${busy}><${Icon} name="again" size=${15} />${busy ? t("running") : t("rerun")}</button></div>
    </form>`;
}

/** Two runs side by side: what they answered, and what they did otherwise. */
function Difference({ runId, other }) {
  const [found, setFound] = useState(null);
  useEffect(() => void attempt(async () => setFound(await get(query(`api/v1/runs/${runId}/diff`, { other })))), []);
  if (!found) return html`<${Loading} />`;
  const labels = [t("before"), t("after")];
  return html`
    <div class="sides">
      ${labels.map((label, side) => html`
        <div><h3>${label}</h3><pre tabindex="0" aria-label=${label} class="prose">${marked(found.answers[side], found.answers[1 - side])}</pre>
          <p class="muted">${t("tokensShort", { n: number(found.runs[side].usage.total) })} · ${t("cost")} ${money(found.runs[side].usage.cost)} · ${found.runs[side].status}</p></div>`)}
    </div>
    <p class="muted">${t("sameSteps", { n: number(found.same) })}</p>
    ${found.changed.length > 0 && html`
      <div class="wide" tabindex="0" role="region" aria-label=${t("steps")}><table>
        <thead><tr><th scope="col">${t("steps")}</th><th scope="col">${t("input")}</th><th scope="col">${t("output")}</th><th scope="col">${t("tokens")}</th><th scope="col">${t("seconds", { n: "" })}</th></tr></thead>
        <tbody>${found.changed.map((step) => html`
          <tr><td><span class="kind">${step.kind}</span>${step.name}</td><td>${step.same_input ? "=" : "≠"}</td><td>${step.same_output ? "=" : "≠"}</td>
            <td>${step.tokens.map(number).join(" → ")}</td><td>${step.seconds.map((each) => each.toFixed(2)).join(" → ")}</td></tr>`)}</tbody>
      </table></div>`}`;
}

/** A text with what the other one has not between its common beginning and end marked. */
function marked(text, other) {
  let from = 0;
  while (from < text.length && text[from] === other[from]) from += 1;
  let to = 0;
  while (to < Math.min(text.length, other.length) - from && text.at(-1 - to) === other.at(-1 - to)) to += 1;
  const end = text.length - to;
  return html`${text.slice(0, from)}${end > from && html`<mark>${text.slice(from, end)}</mark>`}${text.slice(end)}`;
}
