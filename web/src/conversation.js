// One conversation: its messages as a tree, the branch that is shown, and the answer that is on its way.
import { batch, computed, signal } from "@preact/signals";
import { all, events, fetched, get, patch, post, query } from "./api.js";
import { announced, attempt, complain, listed, note } from "./store.js";
import { t, told } from "./words.js";

const FINAL = new Set(["completed", "partial", "failed", "cancelled"]);
export const ANSWER = new Set(["text", "code", "result"]);
const PATIENCE = [500, 1000, 2000, 4000, 8000, 15000]; // milliseconds between two tries
const NAMED = [1000, 2000, 4000, 8000, 15000]; // milliseconds between two looks for a better name
const SPOKEN = 1500; // characters of an answer that a screen reader is told

const pause = (milliseconds, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()));
  });

/** An answer on its way: what was said so far, in parts of one type each. */
class Live {
  constructor(messageId, runId = null) {
    this.messageId = messageId; // what it answers
    this.runId = runId;
    this.position = 0;
    this.parts = [];
    this.status = signal("running"); // running, queued, waiting, lost
    this.question = signal(null);
    this.shape = signal(0); // counts parts, which is what the page is drawn by
    this.listeners = new Set();
    this.stopped = new AbortController();
  }

  add({ content, content_type: type }) {
    const last = this.parts.at(-1);
    if (last?.type === type) last.text += content;
    else {
      this.parts.push({ type, text: content });
      this.shape.value += 1;
    }
    for (const listener of this.listeners) listener();
  }

  begin() {
    this.parts = [];
    this.position = 0;
    this.shape.value += 1;
  }

  get text() {
    return this.parts.filter((part) => ANSWER.has(part.type)).map((part) => part.text).join("");
  }
}

export class Conversation {
  constructor(id) {
    this.id = id;
    this.session = signal(null);
    this.error = signal(null);
    this.messages = signal(new Map());
    this.newest = null; // of those that the server has told
    this.leaf = signal(null);
    this.complete = signal(false); // whether all messages are here
    this.live = signal(null);
    this.failure = signal(null); // why the last answer failed
    this.beginning = signal(false); // whether a message is on its way there
    this.busy = computed(() => this.beginning.value || this.live.value !== null);
    this.closed = new AbortController();
    this.children = computed(() => {
      const found = new Map();
      for (const message of this.messages.value.values()) {
        const siblings = found.get(message.parent_id) ?? [];
        siblings.push(message);
        found.set(message.parent_id, siblings);
      }
      for (const siblings of found.values()) siblings.sort((one, other) => one.seq - other.seq);
      return found;
    });
    this.branch = computed(() => {
      const messages = this.messages.value;
      const answered = this.live.value?.messageId; // not there yet while it waits for its turn
      const from = messages.has(answered) ? answered : this.leaf.value;
      const found = [];
      for (let at = messages.get(from); at; at = messages.get(at.parent_id)) found.push(at);
      return found.reverse();
    });
  }

  close() {
    this.closed.abort();
    this.live.value?.stopped.abort();
  }

  async load() {
    try {
      const session = await get(`api/v1/sessions/${this.id}`);
      this.take(session);
      const [, runs] = await Promise.all([this.loadMessages(), get(query(`api/v1/sessions/${this.id}/runs`, { limit: 5, order: "desc" }))]);
      this.resume(runs.data);
    } catch (error) {
      if (!this.closed.signal.aborted) this.error.value = error;
    }
  }

  take(session) {
    batch(() => {
      this.session.value = session;
      this.leaf.value = session.leaf_id;
    });
  }

  /** The newest messages at once, the others after them. */
  async loadMessages() {
    let after;
    const page = async () => {
      const found = await get(query(`api/v1/sessions/${this.id}/messages`, { limit: 100, order: "desc", after }));
      this.heard(found.data);
      after = found.last_id;
      return found.has_more;
    };
    const rest = async () => {
      while (!this.closed.signal.aborted && (await page()));
      this.complete.value = true;
    };
    if (await page()) attempt(rest);
    else this.complete.value = true;
  }

  /** Takes messages as the server has them. */
  heard(found) {
    for (const message of found) if (!(message.seq <= this.newest?.seq)) this.newest = message;
    this.merge(found);
  }

  merge(found) {
    const messages = new Map(this.messages.value);
    for (const message of found) messages.set(message.id, message);
    this.messages.value = messages;
  }

  /** What has come since; what is here already may be large. */
  async refresh() {
    const since = this.newest ? { limit: 100, after: this.newest.id } : { limit: 20, order: "desc" };
    const [session, newer] = await Promise.all([get(`api/v1/sessions/${this.id}`), get(query(`api/v1/sessions/${this.id}/messages`, since))]);
    batch(() => {
      this.heard(newer.data);
      this.take(session);
    });
    listed(session, { first: true });
  }

  /** Follows the run that has not ended, if there is one; tells of the last one if it failed. */
  resume(runs) {
    const open = runs.filter((run) => !FINAL.has(run.status)).at(-1);
    const last = runs[0];
    if (open) {
      const live = new Live(open.message_id, open.id);
      live.status.value = open.status;
      live.question.value = open.question;
      this.show(live);
      this.follow(live);
    } else if (last?.error && last.message_id === this.leaf.value) this.failure.value = last.error;
  }

  show(live) {
    batch(() => {
      this.failure.value = null;
      this.live.value = live;
    });
  }

  // Saying something

  /** Sends a message, with `parts` that go along. `parentId` says what it follows, if not the last one. True when it was taken. */
  async send(content, { extra, parts = [], parentId } = {}) {
    const body = { content, stream: true };
    if (parts.length) body.parts = parts;
    if (extra) body.additional_kwargs = extra;
    if (parentId !== undefined) body.parent_id = parentId;
    const after = parentId !== undefined ? parentId : this.leaf.value;
    const along = parts.length ? { parts } : {};
    return this.begin(`api/v1/sessions/${this.id}/messages`, body, (messageId) => {
      const seq = (this.messages.value.size || 0) + 1;
      const message = { id: messageId, parent_id: after, seq, role: "user", content, ...along, additional_kwargs: extra ?? {}, created_at: new Date().toISOString() };
      this.merge([message]);
    });
  }

  regenerate(message) {
    return this.begin(`api/v1/messages/${message.id}/regenerate`, { stream: true });
  }

  async begin(path, body, onBegun = () => {}) {
    if (this.live.value) return this.beginLater(path, body);
    if (this.beginning.value) return false;
    this.beginning.value = true;
    announced.value = t("answering");
    let heard = null;
    try {
      const headers = { "idempotency-key": key() };
      const answer = await this.patiently(() => fetched(path, { method: "POST", json: body, headers }));
      heard = events(answer);
      const { value: first } = await heard.next();
      if (this.closed.signal.aborted) {
        heard.return(); // nobody is here any more to hear it, but it was taken
        return true;
      }
      const live = new Live(first.data.message_id, first.data.run_id);
      batch(() => {
        onBegun(first.data.message_id);
        this.show(live);
      });
      this.follow(live, heard);
      if (!this.session.value.title) this.rename();
      return true;
    } catch (error) {
      complain(error);
      if (error.code === "session_busy") attempt(() => this.look());
      return false;
    } finally {
      this.beginning.value = false;
    }
  }

  /** A message beside an answer on its way, which waits for it or takes its place. */
  async beginLater(path, body) {
    return Boolean(
      await attempt(async () => {
        const stopped = new AbortController();
        const headers = { "idempotency-key": key() };
        const answer = await fetched(path, { method: "POST", json: body, headers, signal: stopped.signal });
        await events(answer).next();
        stopped.abort();
        if (this.session.value.session_params.busy === "queue") note(t("queued"));
        return true;
      }),
    );
  }

  /** Tries again while the network is away: requests have a key that makes them one. */
  async patiently(request) {
    for (let tries = 0; ; tries += 1) {
      try {
        return await request();
      } catch (error) {
        if (!(error instanceof TypeError) || tries >= 3) throw error;
        await pause(PATIENCE[tries], this.closed.signal);
      }
    }
  }

  /** Is there a run after all, or has there been one since that of this id? */
  async look(since) {
    const runs = await get(query(`api/v1/sessions/${this.id}/runs`, { limit: 5, order: "desc" }));
    const isOpen = runs.data.some((run) => !FINAL.has(run.status));
    if (isOpen || (since && runs.data[0] && runs.data[0].id !== since)) await this.refresh();
    if (isOpen) this.resume(runs.data);
  }

  // Hearing the answer

  async follow(live, heard = null) {
    for (let tries = 0; !live.stopped.signal.aborted; tries += 1) {
      try {
        heard ??= await this.listen(live);
        for await (const event of heard) {
          tries = 0;
          if (live.stopped.signal.aborted) return;
          if (await this.take_event(live, event)) return;
        }
      } catch (error) {
        if (live.stopped.signal.aborted) return;
        if (error.status && error.status < 500) {
          complain(error);
          return this.ended(live, null);
        }
        live.status.value = "lost";
      }
      heard = null;
      await pause(PATIENCE[Math.min(tries, PATIENCE.length - 1)], live.stopped.signal);
    }
  }

  async listen(live) {
    const headers = live.position ? { "last-event-id": String(live.position) } : {};
    const answer = await fetched(`api/v1/runs/${live.runId}/events`, { headers, signal: live.stopped.signal });
    return events(answer);
  }

  /** True when nothing more is to come. */
  async take_event(live, { event, id, data }) {
    if (event === "run" && live.status.value === "lost") live.status.value = "running";
    if (event === "chunk") {
      if (live.status.value === "queued") {
        live.status.value = "running";
        attempt(() => this.refresh()); // its turn has come, and its message its place
      }
      live.position = id;
      live.add(data);
    } else if (event === "snapshot") {
      live.begin();
      live.position = id;
      live.add({ content: data.content, content_type: "text" });
    } else if (event === "waiting") {
      batch(() => {
        live.status.value = "waiting";
        live.question.value = data.additional_kwargs.question;
      });
      announced.value = `${t("waiting")}: ${data.content}`;
      return true;
    } else if (event === "end") {
      await this.ended(live, data);
      return true;
    } else if (event === "error" && data.code !== "goes_on_elsewhere") this.failure.value = data;
    return false;
  }

  async ended(live, end) {
    const failure = this.failure.value;
    if (end) announced.value = failure ? told({ code: failure.code, message: failure.message }) : `${t("answerReady")}: ${live.text.slice(0, SPOKEN)}`;
    await attempt(() => this.patiently(() => this.refresh()));
    if (this.live.value === live) this.live.value = null;
    await attempt(() => this.look(live.runId));
    if (this.branch.value.length <= 2) this.named();
  }

  /** Looks what the conversation is called now; gives whether that is something else. */
  async rename() {
    const before = this.session.value?.title;
    const session = await get(`api/v1/sessions/${this.id}`, { signal: this.closed.signal }).catch(() => null);
    if (!session || session.title === before || this.session.value.title !== before) return false;
    this.session.value = { ...this.session.value, title: session.title };
    listed(session);
    return true;
  }

  /** After the first answer a model may find a better name than the first words. */
  async named() {
    for (const milliseconds of NAMED) {
      await pause(milliseconds, this.closed.signal);
      if (this.closed.signal.aborted || (await this.rename())) return;
    }
  }

  async answer(value) {
    const live = this.live.value;
    const done = await attempt(async () => {
      const answer = await fetched(`api/v1/runs/${live.runId}/answer`, { method: "POST", json: { answer: value, stream: true } });
      batch(() => {
        live.question.value = null;
        live.status.value = "running";
      });
      live.begin();
      // The whole is asked for again, for what is shown may have been heard before the question.
      await answer.body?.cancel();
      this.follow(live);
      return true;
    });
    return Boolean(done);
  }

  async stop() {
    const live = this.live.value;
    if (!live) return;
    await attempt(async () => {
      await post(`api/v1/runs/${live.runId}/cancel`);
      if (live.status.value === "waiting") await this.ended(live, null);
    });
  }

  // Branches

  siblings(message) {
    return (this.children.value.get(message.parent_id) ?? []).filter((each) => each.role === message.role);
  }

  /** Shows another version of a message, with what was said last after it. */
  async switchTo(message) {
    let leaf = message;
    for (let below; (below = this.children.value.get(leaf.id)); ) leaf = below.at(-1);
    const before = this.leaf.value;
    this.leaf.value = leaf.id;
    this.failure.value = null;
    const done = await attempt(() => patch(`api/v1/sessions/${this.id}`, { leaf_id: leaf.id }));
    if (done) this.session.value = { ...this.session.value, ...done, usage: this.session.value.usage };
    else this.leaf.value = before;
  }

  async rate(message, changes) {
    const changed = await attempt(() => patch(`api/v1/messages/${message.id}/feedback`, changes));
    if (changed) this.merge([changed]);
    return changed;
  }

  async change(changes) {
    const changed = await patch(`api/v1/sessions/${this.id}`, changes);
    this.session.value = { ...changed, usage: this.session.value?.usage };
    listed(changed);
    return changed;
  }

  /** All that was said, on every branch. */
  async everything() {
    return { session: this.session.value, messages: await all(`api/v1/sessions/${this.id}/messages`, {}, 100_000) };
  }
}

const key = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const create = (agent, params) => post("api/v1/sessions", { agent: { id: agent, params } }, { headers: { "idempotency-key": key() } });
