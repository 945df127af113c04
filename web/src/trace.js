// The steps of an answer as a tree, each with a bar for its time. Loaded when it is first opened.
import { useEffect, useState } from "preact/hooks";
import { all } from "./api.js";
import { told } from "./words.js";
import { Empty, html, Loading } from "./ui.js";
import { number, t } from "./words.js";

export default function Trace({ runId }) {
  const [steps, setSteps] = useState(null);
  const [wrong, setWrong] = useState("");
  useEffect(() => {
    all(`api/v1/runs/${runId}/steps`).then(setSteps, (error) => setWrong(told(error)));
  }, []);
  if (wrong) return html`<p class="error" role="alert">${wrong}</p>`;
  if (!steps) return html`<${Loading} />`;
  if (!steps.length) return html`<${Empty}>${t("noTrace")}<//>`;
  const at = (time) => new Date(time).getTime();
  const begin = Math.min(...steps.map((step) => at(step.started_at)));
  const end = Math.max(...steps.map((step) => at(step.ended_at ?? step.started_at)));
  const whole = Math.max(1, end - begin);
  return html`
    <ol class="steps">
      ${steps.map((step) => {
        const from = at(step.started_at) - begin;
        const took = at(step.ended_at ?? step.started_at) - begin - from;
        const depth = String(step.path ?? "").split("/").filter(Boolean).length;
        const tokens = step.usage ? (step.usage.total ?? step.usage.prompt + step.usage.completion) : 0;
        return html`
          <li key=${step.seq} style=${{ "--depth": depth }}>
            <span class="step-name"><span class="kind">${step.kind}</span>${step.name !== step.kind && step.name} ${step.model && html`<code>${step.model}</code>`}
              ${step.status !== "completed" && step.status !== "ok" && html`<em class="error">${step.status}</em>`}</span>
            <span class="step-facts">${tokens > 0 && t("tokensShort", { n: number(tokens) })} ${t("seconds", { n: (took / 1000).toFixed(took < 100 ? 3 : 2) })}</span>
            <span class="step-time" aria-hidden="true"><i style=${{ marginLeft: `${(100 * from) / whole}%`, width: `${Math.max(0.5, (100 * took) / whole)}%` }} /></span>
          </li>`;
      })}
    </ol>`;
}
