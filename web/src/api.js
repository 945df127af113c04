// The way to the server: JSON, pages of lists, and events. The login is in a cookie that no script reads.

export class ApiError extends Error {
  constructor(status, body) {
    super(body.detail || body.message || body.error?.message || `HTTP ${status}`);
    this.status = status;
    this.code = body.code || body.error?.code || "unknown";
    this.param = body.param || body.error?.param;
  }
}

/** Called when the login has ended for good. */
export const onLoggedOut = { call: () => {} };

const cookie = (name) => document.cookie.match(`(?:^|; )${name}=([^;]*)`)?.[1] ?? "";
const mark = () => cookie("__Host-chattable_mark") || cookie("chattable_mark");

function request(path, { method = "GET", json, body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (mark()) sent["x-chattable-mark"] = mark();
  if (json !== undefined) {
    sent["content-type"] = "application/json";
    body = JSON.stringify(json);
  }
  return fetch(path, { method, headers: sent, body, signal, cache: "no-store" });
}

async function problem(answer) {
  let body = {};
  try {
    body = await answer.json();
  } catch {
    // an answer of a proxy, which is no JSON
  }
  return new ApiError(answer.status, body);
}

/** One tab renews the login, and the others wait for it: a token that is used twice ends the login. */
function renewed(before) {
  const renew = async () => {
    if (mark() !== before) return true;
    return (await request("api/v1/auth/page/refresh", { method: "POST" })).ok;
  };
  return navigator.locks ? navigator.locks.request("chattable-login", renew) : once(renew);
}

let renewing = null;
function once(renew) {
  renewing ??= renew().finally(() => (renewing = null));
  return renewing;
}

/** The answer to a request, or an `ApiError`; a login that is over is renewed once. */
export async function fetched(path, options) {
  const before = mark();
  let answer = await request(path, options);
  if (answer.status === 401 && before && (await renewed(before))) answer = await request(path, options);
  if (answer.ok) return answer;
  if (answer.status === 401) onLoggedOut.call();
  throw await problem(answer);
}

export async function call(method, path, json, options = {}) {
  const answer = await fetched(path, { method, json, ...options });
  return answer.status === 204 ? null : answer.json();
}

export const get = (path, options) => call("GET", path, undefined, options);
export const post = (path, json = {}, options) => call("POST", path, json, options);
export const patch = (path, json) => call("PATCH", path, json);
export const put = (path) => call("PUT", path);
export const del = (path) => call("DELETE", path);

export const PROVIDER = "api/v1/auth/oidc";

/** Whether one may log in by an identity provider. */
export async function hasProvider() {
  const answer = await request("api/v1/auth/page").catch(() => null);
  return answer?.ok ? (await answer.json()).provider : false;
}

export async function logIn(credentials) {
  const answer = await request("api/v1/auth/page", { method: "POST", json: credentials });
  if (!answer.ok) throw await problem(answer);
}

export const logOut = () => request("api/v1/auth/page", { method: "DELETE" });

/** The address with a query; what is null, undefined or "" is left out. */
export function query(path, fields) {
  const given = Object.entries(fields).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

/** All of a list, page by page, up to `most`. */
export async function all(path, fields = {}, most = 1000) {
  const found = [];
  let after;
  for (;;) {
    const page = await get(query(path, { limit: 100, ...fields, after }));
    found.push(...page.data);
    if (!page.has_more || !page.last_id || found.length >= most) return found;
    after = page.last_id;
  }
}

/** The events of an answer as they come: `{event, id, data}`. */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(block) {
  const found = { event: "message", id: null, data: "" };
  for (const line of block.split("\n")) {
    if (line.startsWith("data: ")) found.data += line.slice(6);
    else if (line.startsWith("event: ")) found.event = line.slice(7);
    else if (line.startsWith("id: ")) found.id = Number(line.slice(4));
  }
  if (!found.data) return null;
  found.data = JSON.parse(found.data);
  return found;
}

export async function upload(file, onProgress) {
  const form = new FormData();
  form.set("purpose", "user_data");
  form.set("file", file, file.name);
  onProgress?.();
  return (await fetched("v1/files", { method: "POST", body: form })).json();
}

/** Hands something to the person as a file. */
export function download(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
