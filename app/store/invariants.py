"""What holds of a database whatever happened to it, as statements that count where it does not."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

INVARIANTS = {
    "Every message follows one of its session.": """
        SELECT count(*) FROM messages m WHERE parent_id IS NOT NULL AND NOT EXISTS (
          SELECT FROM messages p WHERE p.id = m.parent_id AND p.session_id = m.session_id)""",
    "Every message is numbered below its session's counter.": """
        SELECT count(*) FROM messages m JOIN sessions s ON s.id = m.session_id WHERE m.seq >= s.next_seq""",
    "Every message belongs to the user of its session.": """
        SELECT count(*) FROM messages m JOIN sessions s ON s.id = m.session_id WHERE m.user_id <> s.user_id""",
    "Every active branch ends with a message of its session.": """
        SELECT count(*) FROM sessions s WHERE leaf_id IS NOT NULL AND NOT EXISTS (
          SELECT FROM messages m WHERE m.id = s.leaf_id AND m.session_id = s.id)""",
    "Every answer has its run.": """
        SELECT count(*) FROM messages m WHERE run_id IS NOT NULL AND NOT EXISTS (
          SELECT FROM runs r WHERE r.id = m.run_id AND r.session_id = m.session_id)""",
    "Every run that has begun has its message.": """
        SELECT count(*) FROM runs r WHERE status NOT IN ('queued', 'cancelled') AND NOT EXISTS (
          SELECT FROM messages m WHERE m.id = r.message_id AND m.session_id = r.session_id)""",
    "Every ended run has used what the ledger says.": """
        SELECT count(*) FROM runs r LEFT JOIN LATERAL (
          SELECT coalesce(sum(prompt_tokens), 0) AS prompt, coalesce(sum(completion_tokens), 0) AS completion,
            coalesce(sum(cost), 0) AS cost FROM ledger l WHERE l.run_id = r.id) used ON true
        WHERE r.ended_at IS NOT NULL
          AND (r.prompt_tokens, r.completion_tokens, r.cost) IS DISTINCT FROM (used.prompt, used.completion, used.cost)""",
    "Every step's values are kept.": """
        SELECT count(*) FROM steps s CROSS JOIN LATERAL (VALUES (input_hash), (output_hash)) AS v(hash)
        WHERE v.hash IS NOT NULL AND NOT EXISTS (
          SELECT FROM step_values k WHERE k.scope_id = s.scope_id AND k.hash = v.hash)""",
    "Every index and constraint is valid.": """
        SELECT (SELECT count(*) FROM pg_index WHERE NOT indisvalid AND indrelid IN (
          SELECT oid FROM pg_class WHERE relnamespace = current_schema()::regnamespace))
          + (SELECT count(*) FROM pg_constraint WHERE NOT convalidated
             AND connamespace = current_schema()::regnamespace)""",
}


async def violations(db: AsyncConnection) -> dict[str, int]:
    """How often each one does not hold, by its sentence; empty when all is well."""
    found = {sentence: int((await db.execute(text(query))).scalar_one()) for sentence, query in INVARIANTS.items()}
    return {sentence: count for sentence, count in found.items() if count}
