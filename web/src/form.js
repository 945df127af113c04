// A form made from a JSON Schema, as pydantic writes it. What is left empty is left out.
import { useState } from "preact/hooks";
import { Field, html } from "./ui.js";
import { t } from "./words.js";

const LONG = 200; // characters from which a text gets an area

/** The schema without references and without the choice of null. */
export function resolved(schema, root) {
  let found = schema ?? {};
  for (let hops = 0; hops < 20; hops += 1) {
    const { $ref, allOf, anyOf, oneOf, ...rest } = found;
    const choices = (anyOf ?? oneOf)?.filter((each) => each.type !== "null");
    if ($ref) found = { ...$ref.replace(/^#\//, "").split("/").reduce((at, key) => at?.[key], root), ...rest };
    else if (allOf?.length === 1) found = { ...allOf[0], ...rest };
    else if (choices?.length === 1) found = { ...choices[0], ...rest };
    else break;
  }
  return found;
}

/** What an item of a list may be: of several forms the one with fields, which says the most. */
function itemOf(field, root) {
  const items = resolved(field.items, root);
  const forms = (items.anyOf ?? items.oneOf ?? []).map((each) => resolved(each, root));
  return forms.find((each) => each.properties) ?? items;
}

const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** `value` is the object, `onChange` gets the next one; `wrong` is the name of a field that was refused, and why. */
export function SchemaForm({ schema, value, onChange, wrong, root = schema }) {
  const { properties = {}, required = [] } = resolved(schema, root);
  const set = (name, next) => {
    const rest = { ...value };
    if (next === undefined) delete rest[name];
    else rest[name] = next;
    onChange(rest);
  };
  return Object.entries(properties).map(([name, raw]) => {
    const field = resolved(raw, root);
    const key = wrong?.param?.split(".").at(-1) === name ? wrong.message : null;
    return html`<${SchemaField} key=${name} name=${name} field=${field} root=${root} value=${value?.[name]} wrong=${key}
      required=${required.includes(name)} onChange=${(next) => set(name, next)} />`;
  });
}

const label = (name, field) => (field.title ?? name).replaceAll("_", " ");

/** One value of any type. */
export function SchemaField({ name, field, root, value, onChange, required, wrong }) {
  const preset = field.default;
  const hint = preset !== undefined && preset !== null && preset !== "" ? shown(preset) : "";
  const help = field.description ?? "";
  const type = Array.isArray(field.type) ? field.type.find((each) => each !== "null") : field.type;
  const choices = field.enum ?? (field.const !== undefined ? [field.const] : null);
  const wrap = (input) => html`<${Field} label=${label(name, field)} help=${help} error=${wrong}>${input}<//>`;
  const text = (event) => onChange(event.target.value === "" && !required ? undefined : event.target.value);

  if (choices) {
    return wrap(html`
      <select value=${value === undefined ? "" : JSON.stringify(value)} onChange=${(event) => onChange(event.target.value ? JSON.parse(event.target.value) : undefined)}>
        <option value="">${hint ? t("defaultIs", { value: hint }) : t("notSet")}</option>
        ${choices.map((choice) => html`<option value=${JSON.stringify(choice)}>${shown(choice)}</option>`)}
      </select>`);
  }
  if (type === "boolean") {
    return html`
      <label class="check"><input type="checkbox" checked=${value ?? preset ?? false} onChange=${(event) => onChange(event.target.checked)} />
        <span>${label(name, field)}${help && html`<small>${help}</small>`}</span></label>`;
  }
  if (type === "integer" || type === "number") {
    const input = (event) => onChange(event.target.value === "" ? undefined : Number(event.target.value));
    return wrap(html`
      <input type="number" step=${type === "integer" ? 1 : "any"} min=${field.minimum ?? field.exclusiveMinimum} max=${field.maximum ?? field.exclusiveMaximum}
        value=${value ?? ""} placeholder=${hint} required=${required} onInput=${input} />`);
  }
  if (type === "string") {
    const secret = field.format === "password" || field.writeOnly;
    return wrap(
      (field.maxLength ?? 0) > LONG && !secret
        ? html`<textarea rows="3" maxlength=${field.maxLength} value=${value ?? ""} placeholder=${hint} required=${required} onInput=${text} />`
        : html`<input type=${secret ? "password" : "text"} maxlength=${field.maxLength} value=${value ?? ""} placeholder=${hint} required=${required} onInput=${text} />`,
    );
  }
  if (type === "array" && resolved(field.items, root).type === "string") {
    const items = (event) => onChange(event.target.value === "" ? undefined : event.target.value.split("\n"));
    return html`<${Field} label=${label(name, field)} help=${[help, t("lines")].filter(Boolean).join(" · ")} error=${wrong}>
      <textarea rows="3" value=${(value ?? []).join("\n")} onInput=${items} /><//>`;
  }
  const item = type === "array" ? itemOf(field, root) : {};
  if (item.properties && (value ?? preset ?? []).every((each) => each && typeof each === "object")) {
    return html`<${ListField} label=${label(name, field)} help=${help} item=${item} root=${root} value=${value ?? preset ?? []} most=${field.maxItems} onChange=${onChange} />`;
  }
  if (type === "object" && field.properties) {
    return html`
      <fieldset><legend>${label(name, field)}</legend>${help && html`<small>${help}</small>`}
        <${SchemaForm} schema=${field} root=${root} value=${value ?? {}} onChange=${onChange} /></fieldset>`;
  }
  return html`<${JsonField} label=${label(name, field)} help=${help} value=${value} onChange=${onChange} wrong=${wrong} />`;
}

/** A list of things with fields. */
function ListField({ label, help, item, root, value, most, onChange }) {
  const set = (at, next) => onChange(value.map((each, index) => (index === at ? next : each)));
  return html`
    <fieldset><legend>${label}</legend>${help && html`<small>${help}</small>`}
      ${value.map((each, at) => html`
        <fieldset key=${at}><legend class="hidden">${label} ${at + 1}</legend>
          <${SchemaForm} schema=${item} root=${root} value=${each} onChange=${(next) => set(at, next)} />
          <button type="button" class="quiet small start" onClick=${() => onChange(value.filter((_, index) => index !== at))}>${t("remove")} ${at + 1}</button></fieldset>`)}
      ${!(value.length >= most) && html`<button type="button" class="start" onClick=${() => onChange([...value, {}])}>${t("add")}</button>`}
    </fieldset>`;
}

/** Anything else is written as JSON. */
function JsonField({ label, help, value, onChange, wrong }) {
  const [text, setText] = useState(value === undefined ? "" : JSON.stringify(value, null, 2));
  const [bad, setBad] = useState(false);
  const input = (event) => {
    setText(event.target.value);
    try {
      onChange(event.target.value.trim() ? JSON.parse(event.target.value) : undefined);
      setBad(false);
    } catch {
      setBad(true);
    }
  };
  return html`<${Field} label=${label} help=${[help, t("json")].filter(Boolean).join(" · ")} error=${bad ? t("invalid") : wrong}>
    <textarea rows="3" class="mono" value=${text} onInput=${input} /><//>`;
}
