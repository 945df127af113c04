"""Chats as ChatGPT and Open WebUI export them: with branches, hidden messages, tools, pictures and thoughts."""

from __future__ import annotations

from typing import Any

TIME = 1_700_000_000.0


def place(parent: str | None, role: str = "", *parts: Any, at: float | None = None, **fields: Any) -> dict[str, Any]:
    """A node of ChatGPT's mapping."""
    if not role:
        return {"message": None, "parent": parent, "children": []}
    content = fields.pop("content", {"content_type": "text", "parts": list(parts)})
    author = {"role": role, "name": fields.pop("name", None), "metadata": {}}
    message = {"author": author, "content": content, "create_time": at, "status": "finished_successfully", **fields}
    return {"message": message, "parent": parent, "children": []}


def chatgpt(id: str = "one") -> dict[str, Any]:
    """A question with two answers, of which the second has thought and used a tool, and a question with a picture."""
    picture = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x", "width": 1}
    thoughts = {"content_type": "thoughts", "thoughts": [{"summary": "Sum", "content": "Let me see."}]}
    code = {"content_type": "code", "language": "python", "text": "6 * 7"}
    result = {"content_type": "execution_output", "text": "42"}
    mapping = {
        "root": place(None),
        "hidden": place("root", "system", "", metadata={"is_visually_hidden_from_conversation": True}),
        "profile": place("hidden", "user", content={"content_type": "user_editable_context", "user_profile": "I am"}),
        "ask": place("profile", "user", "What is six", " by seven?", at=TIME),
        "first": place("ask", "assistant", "41", at=TIME + 1, metadata={"model_slug": "gpt-4o"}),
        "think": place("ask", "assistant", content=thoughts),
        "call": place("think", "assistant", content=code, recipient="python"),
        "result": place("call", "tool", content=result, name="python"),
        "second": place(
            "result", "assistant", "It is 42.\ue200cite\ue202turn0\ue201", at=TIME + 2, metadata={"model_slug": "o3"}
        ),
        "look": place("second", "user", content={"content_type": "multimodal_text", "parts": [picture, "And this?"]}),
        "reply": place("look", "assistant", "A cat.", at=TIME + 4, metadata={"model_slug": "o3"}, recipient="all"),
    }
    about = {"title": " Six by\nseven ", "create_time": TIME, "update_time": TIME + 5, "is_archived": False}
    return {"id": id, "conversation_id": id, "mapping": mapping, "current_node": "reply", **about}


def entry(id: str, parent: str | None, role: str, content: str, **fields: Any) -> dict[str, Any]:
    """A message of Open WebUI's history."""
    return {"id": id, "parentId": parent, "childrenIds": [], "role": role, "content": content, **fields}


def open_webui(id: str = "chat-1") -> dict[str, Any]:
    """A question with a picture, and two models' answers, of which one thinks and calls a tool."""
    fold = '<details type="reasoning" done="true" duration="3">\n<summary>Thought</summary>\n&gt; Hm.\n</details>\n'
    call = '<details type="tool_calls" done="true" name="clock" arguments="&quot;{}&quot;" result="&quot;noon&quot;">\n'
    call += "<summary>Tool Executed</summary>\n</details>\n"
    picture = {"type": "image", "url": "data:image/png;base64,AAAA"}
    rows = [
        entry("q", None, "user", "When?", timestamp=1_700_000_000, files=[picture], models=["a", "b"]),
        entry("a", "q", "assistant", f"{fold}{call}At noon.", timestamp=1_700_000_001, model="a", modelIdx=0),
        entry("b", "q", "assistant", "Never.", timestamp=1_700_000_002, model="b", annotation={"rating": -1}),
        entry("q2", "a", "user", "Sure?", timestamp=1_700_000_003, files=[{"type": "file", "id": "f"}]),
        entry("a2", "q2", "assistant", "Yes.", timestamp=1_700_000_004, model="a"),
    ]
    history = {"messages": {row["id"]: row for row in rows}, "currentId": "a2"}
    body = {"title": "Times", "models": ["a", "b"], "history": history, "messages": rows[:1], "tags": ["x"]}
    times = {"created_at": 1_700_000_000, "updated_at": 1_700_000_009, "archived": False, "pinned": None}
    return {"id": id, "user_id": "u", "title": "Times", "chat": body, **times}
