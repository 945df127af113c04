// A conversation as a file: all of it as JSON, which can be imported again, or what is shown as Markdown.
import { all, download, get } from "./api.js";
import { beside } from "./pictures.js";
import { nameOf, titleOf } from "./store.js";
import { moment, t } from "./words.js";

export async function exported(session, form) {
  const path = `api/v1/sessions/${session.id}`;
  const name = titleOf(session).replace(/[^\p{L}\p{N} ._-]/gu, "_").slice(0, 80);
  if (form === "json") {
    download(`${name}.json`, JSON.stringify(await get(`${path}/export`), null, 2), "application/json");
    return;
  }
  const [whole, messages] = await Promise.all([get(path), all(`${path}/messages`, {}, 100_000)]);
  download(`${name}.md`, markdown(whole, messages), "text/markdown");
}

const shown = ({ image_url: image, input_audio: sound, file }) => (image ? `![${t("picture")}](${image.url})` : `[${file?.filename ?? t(sound ? "sound" : "file")}]`);

function markdown(session, messages) {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const branch = [];
  for (let at = byId.get(session.leaf_id); at; at = byId.get(at.parent_id)) branch.unshift(at);
  const said = branch.map((message) => {
    const who = message.role === "user" ? t("you") : message.name || nameOf(message.agent_id);
    return `## ${who}\n\n*${moment(message.created_at)}*\n\n${[message.content, ...beside(message).map(shown)].filter(Boolean).join("\n\n")}\n`;
  });
  return [`# ${titleOf(session)}\n`, ...said].join("\n");
}
