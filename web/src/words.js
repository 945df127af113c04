// The words of the page in both languages; `t` gives those of the one that is chosen.
import { signal } from "@preact/signals";

const en = {
  active: "Active", add: "Add", after: "Done again", back: "Back", before: "Before", input: "Input", output: "Output", otherModel: "With another model", otherPrompt: "With another last message", rerun: "Do it again", sameSteps: "{n} steps are the same.", cached: "from the cache", addMember: "Add member", admin: "Administration", advanced: "More settings", agent: "Agent", agents: "Agents",
  allAgents: "every agent", answered: "Your answer", answering: "Answering…", answerReady: "Answer", apiKey: "API key", apiKeys: "API keys", archive: "Archive", archivedNow: "Archived.",
  ask: "Write a message", askHint: "Enter sends, Shift+Enter begins a new line", attach: "Attach a file", auto: "As the system",
  branchOf: "Version {at} of {of}", budgets: "Budgets", busy: "While an answer is on its way", busy_interrupt: "a new message takes its place", busy_queue: "a new message waits", busy_reject: "a new message is refused",
  calls: "Calls", cancel: "Cancel", cancelled: "Stopped", change: "Change", chooseAgent: "Choose an agent", close: "Close", comment: "Comment", commentHint: "What was good, what was not?", connection: "The connection was lost; trying again…", contains: "Sessions", context: "Context", copied: "Copied.", copy: "Copy", cost: "Cost", create: "Create", created: "Made", currentPassword: "Present password",
  dark: "Dark", day: "Day", days: "Days it lasts", default: "Default", defaultIs: "default: {value}", delete: "Delete", deleteSession: "Delete this session?", deleteSessionText: "Everything in it is erased, and cannot be brought back.", deleteSure: "Delete “{name}”?", description: "Description", down: "Not good", edit: "Edit", editMessage: "Edit the message", empty: "Nothing here yet.", error: "Error", everywhere: "In messages", expires: "Ends", exportJson: "Export as JSON", exportText: "Export as Markdown",
  failed: "The answer failed", file: "File", fileText: "include its text", grant: "Grant an agent", grants: "May use", group: "Group", groups: "Groups", hello: "What can I do for you?", helloText: "Choose who answers, and write the first message.", help: "API documentation", id: "Id", image: "image", invite: "Invite", imported: "{n} accounts were made.", importHelp: "A line for each: name, or name and role (user, admin). A file with their passwords comes back.", importUsers: "Import from CSV", inviteText: "Give these to {name}. The password is shown this once; it can be changed in the settings.", jump: "To the latest message",
  key: "Key", keyShown: "This is the key. It is shown this once.", language: "Language", left: "Left", light: "Light", load: "Load more", loading: "Loading…", log_in: "Log in", logOut: "Log out", loginFailed: "Name or password is wrong.", loginHint: "The first administrator's key is in the file data/admin.key on the server.", loginLead: "Chat with agents, on your own server.",
  may: "May do", members: "Members", menu: "Menu", message: "Message", mode: "How to answer", mode_background: "in the background", mode_batch: "in a batch, cheaper", mode_realtime: "at once", model: "Model", models: "Models", modelsDown: "The language models do not answer at the moment.", modelsNone: "No language model is set up.", modelsReady: "Ready", money: "Money", month: "Month", more: "More", name: "Name", newChat: "New chat", newPassword: "New password", next: "Next version", no: "No", noAgents: "There is no agent that you may use.", noResults: "Nothing found.", noSessions: "No conversations yet. Write a message to begin one.", notFound: "This is not here, or not yours.", notSet: "not set",
  offline: "The server does not answer.", older: "Earlier", open: "Open", options: "Settings of the agent", other: "other", partial: "Broken off", password: "Password", passwordChanged: "The password is changed. Log in with it.", period: "Period", preset: "Preset", presetName: "Name of the preset", presets: "Presets", previous: "Previous version", prompt: "Prompt", question: "Question", queued: "Waits for its turn…",
  reasoning: "Thinking", regenerate: "Answer again", remoteImage: "A picture from elsewhere. It is not loaded by itself; this opens it.", remove: "Remove", rename: "Rename", resetPassword: "New password for {name}", restored: "Back among the sessions.", retry: "Try again", role: "Role", role_admin: "administrator", role_user: "user", running: "Running", save: "Save", saved: "Saved.", saveAsPreset: "Save as preset", scope: "Of", search: "Search", searchHint: "Search sessions and messages", send: "Send", sendAnswer: "Answer", session: "Session", sessions: "Conversations", sessionSettings: "Settings of this conversation", settings: "Settings", shareWith: "Share with groups (one a line; everyone is all users)", shared: "shared", showArchived: "Archived", signedInAs: "Logged in as {name}", since: "From", source: "File", status: "Status", status_active: "active", status_suspended: "suspended", stop: "Stop", steps: "Steps", suspend: "Suspend",
  table: "table", temperature: "Temperature", theme: "Appearance", thinking: "Thinking", thisWeek: "This week", title: "Title", today: "Today", tokens: "Tokens", tokensShort: "{n} tokens", tool: "Tool: {name}", toolResult: "Result of a tool", toolCall: "Call of a tool", trace: "Trace", total: "Total", unarchive: "Take from the archive", unsuspend: "Let in again", untitled: "New conversation", up: "Good", usage: "Usage", used: "Used", user: "User", users: "Users", waiting: "Waits for your answer", withKey: "Log in with an API key", withPassword: "Log in with a password", withProvider: "Log in with your organisation", yes: "Yes", yesterday: "Yesterday", you: "You", version: "Version",
  error_session_busy: "An answer is on its way. Wait for it, or stop it.", error_rate_limited: "Too many requests. Wait a moment.", error_quota_exceeded: "The budget is used up.", error_not_allowed: "You may not do that.", error_unavailable: "The server cannot do that at the moment. Try again.", error_llm_unavailable: "The language model does not answer at the moment.",
  completion: "Answer tokens", promptTokens: "Prompt tokens", errorsOf: "Load error", health: "Health", noTrace: "No step was recorded.", seconds: "{n} s", keysText: "Programs log in with keys.", scopeAll: "everything", scopeChat: "chat only", unlimited: "no limit", resets: "Begins anew", tokensLimit: "Tokens at most", moneyLimit: "Money at most", json: "JSON", lines: "one a line", invalid: "Please check this value.", drop: "Drop files here", uploading: "Uploading {name}…", uploadFailed: "{name} could not be uploaded.", answerOf: "Answer of {name}",
};

const zh = {
  active: "正常", add: "添加", after: "重做", back: "返回", before: "原来", input: "输入", output: "输出", otherModel: "换一个模型", otherPrompt: "换最后一条消息", rerun: "重做", sameSteps: "{n} 个步骤相同。", cached: "来自缓存", addMember: "添加成员", admin: "管理", advanced: "更多设置", agent: "智能体", agents: "智能体",
  allAgents: "全部智能体", answered: "你的回答", answering: "正在回答…", answerReady: "回答", apiKey: "API 密钥", apiKeys: "API 密钥", archive: "归档", archivedNow: "已归档。",
  ask: "输入消息", askHint: "回车发送，Shift+回车换行", attach: "添加文件", auto: "跟随系统",
  branchOf: "第 {at} 版，共 {of} 版", budgets: "预算", busy: "回答进行中时", busy_interrupt: "新消息取而代之", busy_queue: "新消息排队", busy_reject: "拒绝新消息",
  calls: "调用", cancel: "取消", cancelled: "已停止", change: "更改", chooseAgent: "选择智能体", close: "关闭", comment: "评论", commentHint: "哪里好，哪里不好？", connection: "连接中断，正在重试…", contains: "会话", context: "上下文", copied: "已复制。", copy: "复制", cost: "费用", create: "创建", created: "创建时间", currentPassword: "当前密码",
  dark: "深色", day: "日", days: "有效天数", default: "默认", defaultIs: "默认：{value}", delete: "删除", deleteSession: "删除这个会话？", deleteSessionText: "其中的一切都会被清除，无法恢复。", deleteSure: "删除“{name}”？", description: "说明", down: "不好", edit: "编辑", editMessage: "编辑消息", empty: "这里还没有内容。", error: "错误", everywhere: "消息", expires: "到期", exportJson: "导出为 JSON", exportText: "导出为 Markdown",
  failed: "回答失败", file: "文件", fileText: "附上文本内容", grant: "授权智能体", grants: "可使用", group: "用户组", groups: "用户组", hello: "我能帮你做什么？", helloText: "选择由谁回答，然后写下第一条消息。", help: "API 文档", id: "编号", image: "图片", invite: "邀请", imported: "已创建 {n} 个账户。", importHelp: "每行一个：名称，或名称和角色（user、admin）。完成后会得到含密码的文件。", importUsers: "从 CSV 导入", inviteText: "请交给 {name}。密码只显示这一次，可在设置中修改。", jump: "到最新消息",
  key: "密钥", keyShown: "这就是密钥，只显示这一次。", language: "语言", left: "剩余", light: "浅色", load: "加载更多", loading: "加载中…", log_in: "登录", logOut: "退出登录", loginFailed: "用户名或密码错误。", loginHint: "首位管理员的密钥在服务器的 data/admin.key 文件里。", loginLead: "在自己的服务器上与智能体对话。",
  may: "权限", members: "成员", menu: "菜单", message: "消息", mode: "回答方式", mode_background: "后台", mode_batch: "批量，更便宜", mode_realtime: "即时", model: "模型", models: "模型", modelsDown: "语言模型目前没有响应。", modelsNone: "没有配置语言模型。", modelsReady: "就绪", money: "金额", month: "月", more: "更多", name: "名称", newChat: "新会话", newPassword: "新密码", next: "下一版", no: "否", noAgents: "没有你可以使用的智能体。", noResults: "没有找到。", noSessions: "还没有会话。写一条消息就开始了。", notFound: "这里没有，或者不属于你。", notSet: "未设置",
  offline: "服务器没有响应。", older: "更早", open: "打开", options: "智能体的设置", other: "其他", partial: "未完成", password: "密码", passwordChanged: "密码已更改，请用新密码登录。", period: "周期", preset: "预设", presetName: "预设的名称", presets: "预设", previous: "上一版", prompt: "提示", question: "提问", queued: "正在排队…",
  reasoning: "思考", regenerate: "重新回答", remoteImage: "外部图片不会自动加载，点击打开。", remove: "移除", rename: "重命名", resetPassword: "{name} 的新密码", restored: "已移回会话列表。", retry: "重试", role: "角色", role_admin: "管理员", role_user: "用户", running: "进行中", save: "保存", saved: "已保存。", saveAsPreset: "存为预设", scope: "对象", search: "搜索", searchHint: "搜索会话和消息", send: "发送", sendAnswer: "回答", session: "会话", sessions: "会话", sessionSettings: "本会话的设置", settings: "设置", shareWith: "共享给用户组（每行一个；everyone 为所有用户）", shared: "共享", showArchived: "已归档", signedInAs: "已登录：{name}", since: "从", source: "文件", status: "状态", status_active: "正常", status_suspended: "已停用", stop: "停止", steps: "步骤", suspend: "停用",
  table: "表格", temperature: "温度", theme: "外观", thinking: "思考", thisWeek: "本周", title: "标题", today: "今天", tokens: "Token", tokensShort: "{n} token", tool: "工具：{name}", toolResult: "工具结果", toolCall: "调用工具", trace: "轨迹", total: "合计", unarchive: "取消归档", unsuspend: "恢复", untitled: "新会话", up: "好", usage: "用量", used: "已用", user: "用户", users: "用户", waiting: "等待你的回答", withKey: "用 API 密钥登录", withPassword: "用密码登录", withProvider: "使用组织账号登录", yes: "是", yesterday: "昨天", you: "你", version: "版本",
  error_session_busy: "正在回答，请等待或先停止。", error_rate_limited: "请求过多，请稍候。", error_quota_exceeded: "预算已用完。", error_not_allowed: "你没有这个权限。", error_unavailable: "服务器暂时无法处理，请重试。", error_llm_unavailable: "语言模型暂时没有响应。",
  completion: "回答 token", promptTokens: "提示 token", errorsOf: "加载错误", health: "状态", noTrace: "没有记录步骤。", seconds: "{n} 秒", keysText: "程序用密钥登录。", scopeAll: "全部", scopeChat: "仅聊天", unlimited: "不限", resets: "重新开始", tokensLimit: "最多 token", moneyLimit: "最多金额", json: "JSON", lines: "每行一个", invalid: "请检查这个值。", drop: "把文件放到这里", uploading: "正在上传 {name}…", uploadFailed: "{name} 上传失败。", answerOf: "{name} 的回答",
};

const words = { en, zh };
export const languages = { en: "English", zh: "中文" };
const preferred = () => (navigator.languages.find((each) => /^(zh|en)/.test(each)) ?? "en").slice(0, 2);
export const language = signal(localStorage.getItem("language") ?? preferred());

export function choose(code) {
  localStorage.setItem("language", code);
  language.value = code;
}

/** The words of a key, with `{name}`s filled in. */
export function t(key, fields) {
  const text = words[language.value]?.[key] ?? en[key] ?? key;
  return fields ? text.replace(/\{(\w+)\}/g, (_, name) => fields[name] ?? "") : text;
}

/** What to tell of an error: in the person's language where the page knows it, else the server's sentence. */
export function told(error) {
  if (error instanceof TypeError) return t("offline");
  const own = words[language.value]?.[`error_${error.code}`];
  return own ?? error.message;
}

export const number = (value) => new Intl.NumberFormat(language.value).format(value);
export const moment = (value) => new Date(value).toLocaleString(language.value, { dateStyle: "medium", timeStyle: "short" });
/** An amount in the currency of models.toml, which nobody names. */
export const money = (value) => (Number(value) >= 1 ? Number(value).toFixed(2) : Number(value) ? String(Number(Number(value).toPrecision(2))) : "0");
