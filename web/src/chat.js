// A conversation as it is shown, and the beginning of a new one.
import { useComputed } from "@preact/signals";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Composer } from "./composer.js";
import { Conversation, create } from "./conversation.js";
import { SchemaForm } from "./form.js";
import { Failure, LiveMessage, Message } from "./message.js";
import { SessionSettings } from "./session_settings.js";
import { actionsOf } from "./sidebar.js";
import { agents, complain, dialog, go, listed, nameOf, note, route, schemaOf, sidebarOpen, titleOf, usable } from "./store.js";
import { Empty, html, Icon, IconButton, Loading, Menu } from "./ui.js";
import { money, number, t, told } from "./words.js";
import { Windowed } from "./windowed.js";

let firstMessage = null; // what a new session is to be told as soon as it is open

/** What was written for this session while it was not there yet, to whoever asks first. */
function handedOver(id) {
  const found = firstMessage?.id === id ? firstMessage.written : null;
  firstMessage = null;
  return found;
}

const guess = (item) => (item.kind === "message" ? 90 + (item.message.parts ? 200 : 0) + Math.min(4000, Math.ceil(item.message.content.length / 75) * 25) : 160);

const Opener = () => html`<span class="only-narrow"><${IconButton} icon="menu" label=${t("sessions")} aria-expanded=${sidebarOpen.value} onClick=${() => (sidebarOpen.value = true)} /></span>`;

function Head({ conversation }) {
  const session = conversation.session.value;
  if (!session) return html`<header class="head"><${Opener} /></header>`;
  const { usage } = session;
  const change = () => (dialog.value = { title: t("sessionSettings"), body: () => html`<${SessionSettings} conversation=${conversation} />` });
  const cost = usage && Number(usage.cost) ? ` · ${money(usage.cost)}` : "";
  return html`
    <header class="head">
      <${Opener} />
      <div class="head-text"><h1 title=${titleOf(session)}>${titleOf(session)}</h1>
        <button type="button" class="quiet small agent-chip" onClick=${change} title=${t("sessionSettings")}>${nameOf(session.agent.preset_id ?? session.agent.id)}<${Icon} name="settings" size=${14} /></button>
      </div>
      ${usage?.total > 0 && html`<span class="usage" title="${t("promptTokens")} ${number(usage.prompt)} · ${t("completion")} ${number(usage.completion)} · ${t("cost")} ${usage.cost}">
        ${usage.estimated ? "≈ " : ""}${t("tokensShort", { n: number(usage.total) })}${cost}</span>`}
      <${Menu} label=${t("more")} items=${actionsOf(session, (changes) => conversation.change(changes))} />
    </header>`;
}

export function Chat({ id }) {
  const conversation = useMemo(() => new Conversation(id), [id]);
  const loaded = useMemo(() => conversation.load(), [conversation]);
  const first = useMemo(() => handedOver(id), [id]);
  useEffect(() => () => conversation.close(), [conversation]);
  const known = useRef(new Map()).current; // items stay the same objects while their messages do
  const items = useComputed(() => {
    const found = conversation.branch.value.map((message) => {
      if (known.get(message.id)?.message !== message) known.set(message.id, { id: message.id, kind: "message", message });
      return known.get(message.id);
    });
    const live = conversation.live.value;
    const failure = conversation.failure.value;
    if (live) found.push((live.item ??= { id: `live ${live.runId}`, kind: "live", live }));
    else if (failure) found.push({ id: "failure", kind: "failure", failure });
    return found;
  });
  const session = conversation.session.value;
  useEffect(() => {
    if (session) document.title = `${titleOf(session)} · Chattable`;
    return () => (document.title = "Chattable");
  }, [session?.title]);
  useEffect(() => {
    const wanted = route.value.rest;
    const message = wanted && conversation.messages.value.get(wanted);
    if (message && !conversation.branch.value.some((each) => each.id === wanted)) conversation.switchTo(message);
  }, [route.value.rest, conversation.complete.value]);

  const error = conversation.error.value;
  if (error) return html`<header class="head"><${Opener} /></header><${Empty}>${error.status === 404 ? t("notFound") : told(error)}<//>`;
  const draw = (item) =>
    item.kind === "message"
      ? html`<${Message} message=${item.message} conversation=${conversation} />`
      : item.kind === "live"
        ? html`<${LiveMessage} live=${item.live} conversation=${conversation} />`
        : html`<${Failure} failure=${item.failure} conversation=${conversation} />`;
  const live = conversation.live.value;
  const waits = live?.status.value === "waiting";
  const say = async (content, more) => {
    await loaded;
    return !conversation.error.value && conversation.send(content, more);
  };
  const answer = (content, { parts }) => (parts.length ? (note(t("answerIsText"), "error"), false) : conversation.answer(content));
  return html`
    <${Head} conversation=${conversation} />
    <div class="stage">
      ${session ? html`<${Windowed} items=${items.value} draw=${draw} guess=${guess} label=${titleOf(session)} target=${route.value.rest} />` : html`<${Loading} />`}
    </div>
    <${Composer} draft=${id} first=${first} autofocus busy=${Boolean(live)} mayQueue=${waits || ["queue", "interrupt"].includes(session?.session_params.busy)}
      onStop=${() => conversation.stop()}
      onSend=${(content, more) => (waits ? answer : say)(content, more)} />`;
}

// The beginning

function Card({ agent, chosen, onChoose }) {
  const text = agent.description?.trim().split("\n\n")[0] ?? "";
  return html`
    <label class="agent-card ${chosen ? "chosen" : ""}">
      <input type="radio" name="agent" checked=${chosen} onChange=${() => onChoose(agent.id)} />
      <span class="face" aria-hidden="true">${[...nameOf(agent.id)][0].toUpperCase()}</span>
      <span class="agent-text"><strong>${nameOf(agent.id)}</strong>${agent.kind === "preset" && html`<em>${t("preset")}</em>`}<span>${text}</span></span>
    </label>`;
}

export function NewChat() {
  const [chosen, setChosen] = useState(localStorage.getItem("agent"));
  const [params, setParams] = useState({});
  const [wrong, setWrong] = useState(null);
  const details = useRef();
  const list = usable.value;
  const agent = list.find((each) => each.id === chosen) ?? list[0];
  const choose = (id) => {
    localStorage.setItem("agent", id);
    setChosen(id);
    setParams({});
    setWrong(null);
  };
  const begin = async (content, more, written) => {
    try {
      const session = await create(agent.id, params);
      firstMessage = { id: session.id, written };
      listed(session, { first: true });
      go(`s/${session.id}`);
      return true;
    } catch (error) {
      setWrong({ param: error.param, message: error.message });
      if (error.param && details.current) details.current.open = true;
      complain(error);
      return false;
    }
  };
  const schema = agent && schemaOf(agent.id);
  const hasParams = Object.keys(schema?.properties ?? {}).length > 0;
  const preset = agent?.kind === "preset" ? agent.agent.params : {};
  return html`
    <header class="head"><${Opener} /><div class="head-text"><h1>${t("newChat")}</h1></div></header>
    <div class="stage begin" tabindex="0" role="region" aria-label=${t("newChat")}>
      <div class="begin-text"><h2>${t("hello")}</h2><p class="muted">${t("helloText")}</p></div>
      ${agents.value === null
        ? html`<${Loading} />`
        : !list.length
          ? html`<${Empty}>${t("noAgents")}<//>`
          : html`
            <fieldset class="agent-cards"><legend class="hidden">${t("chooseAgent")}</legend>
              ${list.map((each) => html`<${Card} key=${each.id} agent=${each} chosen=${each === agent} onChoose=${choose} />`)}
            </fieldset>
            ${hasParams && html`
              <details class="params" ref=${details} key=${agent.id}><summary><${Icon} name="right" size=${14} />${t("options")}: ${nameOf(agent.id)}</summary>
                <div class="form"><${SchemaForm} schema=${schema} value=${{ ...preset, ...params }} onChange=${setParams} wrong=${wrong} /></div></details>`}`}
    </div>
    ${agent && html`<${Composer} draft="new" autofocus onSend=${begin} />`}`;
}
