// A message, and an answer while it comes.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { ANSWER } from "./conversation.js";
import { SchemaField, SchemaForm, resolved } from "./form.js";
import { lazily } from "./lazily.js";
import { Growing, renderWhole } from "./markdown.js";
import { beside, Beside } from "./pictures.js";
import { dialog, nameOf, note } from "./store.js";
import { copied, html, Icon, IconButton, isComposing } from "./ui.js";
import { moment, t, told } from "./words.js";

const Trace = lazily(() => import("./trace.js"));

function Markdown({ text }) {
  const ref = useRef();
  useLayoutEffect(() => renderWhole(ref.current, text), [text]);
  return html`<div class="text" ref=${ref} dir="auto" onClick=${copyCode} />`;
}

function copyCode(event) {
  const button = event.target.closest?.("button.copy");
  if (button) copied(button.closest(".code").querySelector("code").textContent, note);
}

/** Text that grows, drawn at most once a frame. */
function Streamed({ live, part, markdown }) {
  const ref = useRef();
  useLayoutEffect(() => {
    let frame = 0;
    const growing = markdown ? new Growing(ref.current) : null;
    const draw = () => {
      frame = 0;
      ref.current.textContent = part.text;
      ref.current.scrollTop = ref.current.scrollHeight;
    };
    const changed = () => {
      if (live.parts.at(-1) !== part && drawn === part.text.length) return;
      drawn = part.text.length;
      if (growing) growing.update(part.text);
      else frame ||= requestAnimationFrame(draw);
    };
    let drawn = -1;
    changed();
    live.listeners.add(changed);
    return () => {
      live.listeners.delete(changed);
      growing?.stop();
      cancelAnimationFrame(frame);
    };
  }, [part]);
  return html`<div class=${markdown ? "text" : "aside-text"} ref=${ref} dir="auto" onClick=${copyCode} />`;
}

function toolOf(content) {
  try {
    const { name, arguments: given, ...rest } = JSON.parse(content);
    const shown = typeof given === "string" ? JSON.parse(given) : (given ?? rest);
    return { name, text: JSON.stringify(shown, null, 2) };
  } catch {
    return null;
  }
}

/** An answer to a form, a line for each field. */
function plain(content) {
  try {
    const given = JSON.parse(content);
    if (given && typeof given === "object") return Object.entries(given).map(([name, value]) => `${name.replaceAll("_", " ")}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join("\n");
  } catch {
    // words
  }
  return content;
}

/** What stands beside an answer: thoughts, calls of tools, questions and whatever an agent has of its own. */
function Aside({ type, content, open, children }) {
  if (type === "speaker") return null; // who says what follows, which stands above it
  if (type === "question" || type === "answer") {
    return html`<div class="exchange ${type}"><span class="label">${t(type === "question" ? "question" : "answered")}</span>${children ?? (type === "answer" ? plain(content) : content)}</div>`;
  }
  const tool = type.startsWith("tool") ? toolOf(content) : null;
  const labels = { thinking: t("thinking"), reasoning: t("reasoning"), tool_call: t("toolCall"), tool_result: t("toolResult") };
  const label = tool?.name ? t("tool", { name: tool.name }) : (labels[type] ?? type.replaceAll("_", " "));
  return html`
    <details class="fold" open=${open}>
      <summary><${Icon} name="right" size=${14} />${label}</summary>
      ${children ?? html`<div class="aside-text ${tool ? "mono" : ""}" dir="auto" tabindex="0">${tool?.text ?? content}</div>`}
    </details>`;
}

function Author({ message, agentId, speaker }) {
  const isPerson = message?.role === "user";
  const name = isPerson ? t("you") : speaker || message?.name || nameOf(agentId ?? message?.agent_id);
  return html`<h3 class="author"><span class="face" aria-hidden="true">${[...(name || "?")][0].toUpperCase()}</span>${name}
    ${message?.created_at && html`<time datetime=${message.created_at}>${moment(message.created_at)}</time>`}</h3>`;
}

export function Message({ message, conversation }) {
  const isPerson = message.role === "user";
  const { asides = [], status, files = [], typed } = message.additional_kwargs ?? {};
  const [editing, setEditing] = useState(false);
  const parts = beside(message);
  const text = isPerson && typed !== undefined ? message.content.slice(0, typed) : message.content;
  return html`
    <article class="message ${isPerson ? "of-person" : "of-agent"}" aria-label="${isPerson ? t("you") : t("answerOf", { name: message.name || nameOf(message.agent_id) })}">
      <${Author} message=${message} />
      ${asides.map((aside, at) => html`<${Aside} key=${at} type=${aside.content_type} content=${aside.content} />`)}
      ${editing
        ? html`<${Editor} text=${text} mayBeEmpty=${parts.length > 0} onCancel=${() => setEditing(false)} onSave=${async (next) => {
            const rest = typed === undefined ? "" : message.content.slice(typed);
            const extra = typed === undefined ? undefined : { files, typed: next.length };
            const taken = await conversation.send(next + rest, { parentId: message.parent_id, extra, parts });
            if (taken) setEditing(false);
            return taken;
          }} />`
        : isPerson
          ? text && html`<div class="said" dir="auto">${text}</div>`
          : html`<${Markdown} text=${message.content} />`}
      <${Beside} parts=${parts} />
      ${files.length > 0 && html`<ul class="files">${files.map((file) => html`<li key=${file.id}><${Icon} name="file" size=${14} />${file.name}</li>`)}</ul>`}
      ${status === "cancelled" && html`<p class="state">${t("cancelled")}</p>`}
      ${status === "partial" && html`<p class="state">${t("partial")}</p>`}
      ${!editing && html`<${Controls} message=${message} conversation=${conversation} onEdit=${() => setEditing(true)} />`}
    </article>`;
}

function Controls({ message, conversation, onEdit }) {
  const siblings = conversation.siblings(message);
  const at = siblings.findIndex((each) => each.id === message.id);
  const isPerson = message.role === "user";
  const busy = conversation.busy.value;
  const rate = async (rating) => {
    const next = message.rating === rating ? null : rating;
    const changed = await conversation.rate(message, { rating: next });
    if (changed) note(t("saved"));
  };
  const comment = () => {
    dialog.value = { title: t("comment"), body: () => html`<${Comment} text=${message.comment ?? ""} onSave=${(text) => conversation.rate(message, { comment: text || null })} />` };
  };
  const trace = () => (dialog.value = { title: t("trace"), wide: true, body: () => html`<${Trace} runId=${message.run_id} />` });
  return html`
    <div class="controls">
      ${siblings.length > 1 && html`
        <span class="versions" role="group" aria-label=${t("version")}>
          <${IconButton} icon="left" size=${15} label=${t("previous")} disabled=${at < 1 || busy} onClick=${() => conversation.switchTo(siblings[at - 1])} />
          <span aria-label=${t("branchOf", { at: at + 1, of: siblings.length })}>${at + 1}/${siblings.length}</span>
          <${IconButton} icon="right" size=${15} label=${t("next")} disabled=${at >= siblings.length - 1 || busy} onClick=${() => conversation.switchTo(siblings[at + 1])} />
        </span>`}
      <${IconButton} icon="copy" size=${15} label=${t("copy")} onClick=${() => copied(message.content, note)} />
      ${isPerson && html`<${IconButton} icon="edit" size=${15} label=${t("editMessage")} disabled=${busy} onClick=${onEdit} />`}
      ${!isPerson && html`
        <${IconButton} icon="again" size=${15} label=${t("regenerate")} disabled=${busy} onClick=${() => conversation.regenerate(message)} />
        <${IconButton} icon="up" size=${15} label=${t("up")} aria-pressed=${message.rating === 1} onClick=${() => rate(1)} />
        <${IconButton} icon="down" size=${15} label=${t("down")} aria-pressed=${message.rating === -1} onClick=${() => rate(-1)} />
        ${(message.rating || message.comment) && html`<button type="button" class="quiet small" onClick=${comment}>${t("comment")}</button>`}
        ${message.run_id && html`<${IconButton} icon="tree" size=${15} label=${t("trace")} onClick=${trace} />`}`}
    </div>
    ${message.comment && html`<p class="state">${message.comment}</p>`}`;
}

function Comment({ text, onSave }) {
  const [value, setValue] = useState(text);
  return html`
    <form onSubmit=${(event) => (event.preventDefault(), onSave(value.trim()), (dialog.value = null))}>
      <label class="field"><span>${t("commentHint")}</span><textarea autofocus rows="4" maxlength="4000" value=${value} onInput=${(event) => setValue(event.target.value)} /></label>
      <div class="row end"><button class="primary">${t("save")}</button></div>
    </form>`;
}

/** `onSave(text)` gives whether it was taken, which ends it. */
function Editor({ text, mayBeEmpty, onSave, onCancel }) {
  const [value, setValue] = useState(text);
  const [busy, setBusy] = useState(false);
  const ref = useRef();
  useEffect(() => {
    ref.current.focus();
    ref.current.setSelectionRange(text.length, text.length);
  }, []);
  const keys = (event) => {
    if (isComposing(event)) return;
    if (event.key === "Escape") onCancel();
    if (event.key === "Enter" && !event.shiftKey) event.preventDefault(), save();
  };
  const canSave = (value.trim() || mayBeEmpty) && !busy;
  const save = async () => {
    if (!canSave) return;
    setBusy(true);
    if (!(await onSave(value.trim()))) setBusy(false);
  };
  return html`
    <div class="editor">
      <textarea ref=${ref} rows=${Math.min(12, value.split("\n").length + 1)} maxlength="1000000" aria-label=${t("editMessage")} readonly=${busy} value=${value} onInput=${(event) => setValue(event.target.value)} onKeyDown=${keys} />
      <div class="row end"><button type="button" onClick=${onCancel}>${t("cancel")}</button><button type="button" class="primary" disabled=${!canSave} onClick=${save}>${t("send")}</button></div>
    </div>`;
}

/** The answer on its way. */
export function LiveMessage({ live, conversation }) {
  live.shape.value; // drawn anew with every new part
  const status = live.status.value;
  const agentId = conversation.session.value?.agent.id;
  const last = live.parts.at(-1);
  return html`
    <article class="message of-agent live" aria-label=${t("answerOf", { name: nameOf(agentId) })} aria-busy="true">
      ${live.parts[0]?.type !== "speaker" && html`<${Author} agentId=${agentId} />`}
      ${live.parts.filter((part) => !(status === "waiting" && part === last && part.type === "question")).map((part, at) => part.type === "speaker"
        ? html`<${Author} key=${at} speaker=${part.text} />`
        : ANSWER.has(part.type)
        ? html`<${Streamed} key=${at} live=${live} part=${part} markdown />`
        : part.type.startsWith("tool") && part !== last
          ? html`<${Aside} key=${at} type=${part.type} content=${part.text} />`
          : html`<${Aside} key=${at} type=${part.type} open=${part === last}><${Streamed} live=${live} part=${part} /><//>`)}
      ${status === "queued" && html`<p class="state">${t("queued")}</p>`}
      ${status === "lost" && html`<p class="state">${t("connection")}</p>`}
      ${status === "waiting" && live.question.value
        ? html`<${Question} key=${live.question.value.question} question=${live.question.value} conversation=${conversation} />`
        : html`<span class="dots ${last && ANSWER.has(last.type) ? "still" : ""}" aria-hidden="true"><i /><i /><i /></span>`}
    </article>`;
}

/** The form for what an agent asks. */
function Question({ question, conversation }) {
  const schema = resolved(question.schema, question.schema);
  const isObject = Boolean(schema.properties);
  const [value, setValue] = useState(isObject ? {} : undefined);
  const [busy, setBusy] = useState(false);
  const box = useRef();
  useEffect(() => box.current?.querySelector("input,select,textarea,button")?.focus({ preventScroll: true }), []);
  const say = async (given) => {
    setBusy(true);
    if (!(await conversation.answer(given))) setBusy(false);
  };
  const plain = schema.type === "string" && !schema.enum;
  return html`
    <form class="asks" ref=${box} onSubmit=${(event) => (event.preventDefault(), say(value ?? (plain ? "" : null)))}>
      <p class="label">${t("waiting")}</p>
      <p class="asked">${question.question}</p>
      ${schema.type === "boolean"
        ? html`<div class="row"><button type="button" class="primary" disabled=${busy} onClick=${() => say(true)}>${t("yes")}</button><button type="button" disabled=${busy} onClick=${() => say(false)}>${t("no")}</button></div>`
        : html`
          ${isObject
            ? html`<${SchemaForm} schema=${question.schema} value=${value} onChange=${setValue} />`
            : html`<${SchemaField} name=${t("sendAnswer")} field=${{ ...schema, title: undefined }} root=${question.schema} value=${value} onChange=${setValue} required />`}
          <div class="row"><button class="primary" disabled=${busy}>${t("sendAnswer")}</button></div>`}
    </form>`;
}

/** Why there is no answer. */
export const Failure = ({ failure, conversation }) => html`
  <div class="failure" role="alert">
    <p><strong>${t("failed")}.</strong> ${told({ code: failure.code, message: failure.message })}</p>
    <button type="button" onClick=${() => conversation.regenerate(conversation.branch.value.at(-1))}><${Icon} name="again" size=${15} />${t("retry")}</button>
  </div>`;
