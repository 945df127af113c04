// Administration: what was used, as bars by day and model, and as tables.
import { useEffect, useState } from "preact/hooks";
import { all } from "./api.js";
import { Section, Table } from "./settings.js";
import { attempt, nameOf } from "./store.js";
import { Empty, Field, html, Loading } from "./ui.js";
import { money, number, t } from "./words.js";

const DAY = 86_400_000;
const DAYS = 30;
const MOST_DAYS = 120;
const SHOWN = 5; // models with a colour of their own
const WIDEST = 720;
const HEIGHT = 180;
const dayOf = (time) => new Date(time).toISOString().slice(0, 10);

/** What each model used on each day, the largest models first and the rest together. */
async function series(from) {
  const asked = (fields) => all("api/v1/usage", { from: `${from}T00:00:00Z`, ...fields });
  const [models, whole] = await Promise.all([asked({ group_by: "model" }), asked({ group_by: "day" })]);
  const shown = models.sort((one, other) => other.total - one.total).slice(0, SHOWN);
  const each = await Promise.all(shown.map((model) => asked({ group_by: "day", model: model.id })));
  const found = shown.map((model, at) => ({ name: model.id, days: new Map(each[at].map((day) => [day.id, day])) }));
  if (models.length <= SHOWN) return found;
  const rest = (day, measure) => Number(day[measure]) - found.reduce((sum, { days }) => sum + Number(days.get(day.id)?.[measure] ?? 0), 0);
  return [...found, { name: t("other"), days: new Map(whole.map((day) => [day.id, { total: rest(day, "total"), cost: rest(day, "cost") }])) }];
}

/** Bars, a day each, of parts that are models. The same numbers are in the tables. */
function Plot({ from, measure, found }) {
  const days = [];
  for (let time = Date.parse(from); time <= Date.now() && days.length < MOST_DAYS; time += DAY) days.push(dayOf(time));
  const value = (model, day) => Math.max(0, Number(model.days.get(day)?.[measure] ?? 0));
  const sums = days.map((day) => found.reduce((sum, model) => sum + value(model, day), 0));
  const most = Math.max(...sums);
  const shown = measure === "cost" ? money : number;
  if (!(most > 0)) return html`<${Empty}>${t("empty")}<//>`;
  const width = Math.min(WIDEST, innerWidth - 80); // so that what is written in it keeps its size
  const step = width / days.length;
  const bars = days.map((day, at) => {
    let top = HEIGHT;
    return html`
      <g key=${day}><title>${day}: ${shown(sums[at])}</title>
        ${found.map((model, index) => {
          const height = (value(model, day) / most) * HEIGHT;
          top -= height;
          return height > 0 && html`<rect class="series-${index}" x=${at * step + step * 0.1} y=${top} width=${step * 0.8} height=${height} />`;
        })}
      </g>`;
  });
  const total = sums.reduce((sum, each) => sum + each, 0);
  return html`
    <figure class="plot">
      <svg viewBox="0 0 ${width} ${HEIGHT + 20}" role="img" aria-label=${t("plotOf", { total: shown(total), from: days[0], to: days.at(-1), most: shown(most) })}>
        <line x1="0" x2=${width} y1=${HEIGHT} y2=${HEIGHT} /><line x1="0" x2=${width} y1="0.5" y2="0.5" class="most" />
        <text x="0" y="14" class="halo">${shown(most)}</text>
        ${bars}
        <text x="0" y=${HEIGHT + 16}>${days[0]}</text><text x=${width} y=${HEIGHT + 16} text-anchor="end">${days.at(-1)}</text>
      </svg>
      <figcaption><ul>${found.map((model, index) => html`<li><span class="swatch series-${index}" aria-hidden="true" />${model.name}</li>`)}</ul></figcaption>
    </figure>`;
}

export function Usage() {
  const [by, setBy] = useState("day");
  const [from, setFrom] = useState(dayOf(Date.now() - (DAYS - 1) * DAY));
  const [measure, setMeasure] = useState("total");
  const [found, setFound] = useState(null);
  const [report, setReport] = useState(null);
  useEffect(() => {
    setFound(null);
    if (from) attempt(async () => setFound(await series(from)));
  }, [from]);
  useEffect(() => {
    setReport(null);
    attempt(async () => setReport(await all("api/v1/usage", { group_by: by, from: from ? `${from}T00:00:00Z` : "" })));
  }, [by, from]);
  const most = Math.max(1, ...(report ?? []).map((each) => each.total));
  const label = (each) => (by === "agent" ? nameOf(each.id) : each.name ?? each.id);
  return html`
    <${Section} title=${t("usage")}>
      <form class="inline">
        <${Field} label=${t("since")}><input type="date" value=${from} onInput=${(event) => setFrom(event.target.value)} /><//>
        <${Field} label=${t("measure")}><select value=${measure} onChange=${(event) => setMeasure(event.target.value)}><option value="total">${t("tokens")}</option><option value="cost">${t("cost")}</option></select><//>
        <${Field} label=${t("scope")}><select value=${by} onChange=${(event) => setBy(event.target.value)}>${["day", "user", "agent", "model"].map((each) => html`<option value=${each}>${t(each)}</option>`)}</select><//>
      </form>
      ${from && (found ? html`<${Plot} from=${from} measure=${measure} found=${found} />` : html`<${Loading} />`)}
      ${report ? html`<${Table} label=${t("usage")} columns=${[t(by), "", t("tokens"), t("calls"), t("cost")]}
        rows=${report.map((each) => [label(each), html`<span class="bar" aria-hidden="true" style=${{ width: `${Math.max(1, (100 * each.total) / most)}%` }} />`, number(each.total), number(each.calls), money(each.cost)])} />` : html`<${Loading} />`}
    <//>`;
}
