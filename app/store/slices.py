"""What the processes tell one another of their limits, in Redis: one small JSON text for each endpoint, changed by one script.

Times are Redis's own. Losing it loses nothing that is not told again within `SETTLE_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import msgspec

from app.llm.pace import COOLDOWN_SECONDS, GROW, SHRINK, WELL_USED
from app.llm.slices import EXPIRY_SECONDS, SETTLE_SECONDS, Ask, Grant
from app.store.redis import Client

KEEP_SECONDS = 3600
"""How long the limit that was found is remembered when no process runs."""

_CONSTANTS = {
    "EXPIRY": EXPIRY_SECONDS,
    "SETTLE": SETTLE_SECONDS,
    "COOLDOWN": COOLDOWN_SECONDS,
    "GROW": GROW,
    "SHRINK": SHRINK,
    "WELL_USED": WELL_USED,
    "KEEP": KEEP_SECONDS,
}
_SCRIPT = (
    "".join(f"local {name} = {value}\n" for name, value in _CONSTANTS.items())
    + """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000

-- As Adaptive in app/llm/pace.py, over all processes. Peaks of different moments are added, so it may think more was in use.
local function adapt(state, ask)
  state.limit = math.min(ask.ceiling, math.max(ask.floor, state.limit or ask.start))
  if ask.throttled then
    if now >= state.cool then
      state.limit = math.max(ask.floor, state.limit * SHRINK)
      state.cool = now + COOLDOWN
    end
    state.successes, state.peak = 0, 0
  elseif now >= state.cool then
    local peak = 0
    for _, other in pairs(state.replicas) do peak = peak + other.peak end
    state.successes = state.successes + ask.successes
    state.peak = math.max(state.peak, peak)
    while state.successes >= math.floor(state.limit) do
      state.successes = state.successes - math.floor(state.limit)
      if state.peak < WELL_USED * math.floor(state.limit) then state.successes = 0 break end
      state.limit = math.min(ask.ceiling, state.limit * GROW)
      if state.successes < math.floor(state.limit) then state.peak = peak end
    end
  end
end

-- Who wants less than an equal part gets it; the others share the rest equally. Those that want the same take the odd slots, and the
-- last ones when there are fewer than processes, by turns of two seconds.
local function parts(state, limit)
  local ids, total, part = {}, 0, {}
  for id in pairs(state.replicas) do ids[#ids + 1] = id end
  table.sort(ids)
  local rank = {}
  for at, id in ipairs(ids) do rank[id] = (at + math.floor(now / 2)) % #ids end
  table.sort(ids, function(a, b)
    local x, y = state.replicas[a].wanted, state.replicas[b].wanted
    if x == y then return rank[a] < rank[b] end
    return x < y
  end)
  for at, id in ipairs(ids) do
    part[id] = math.min(state.replicas[id].wanted, math.floor((limit - total) / (#ids - at + 1)))
    total = total + part[id]
  end
  return part, limit - total, #ids
end

local function draw(bucket, wanted, burst, rate, short)
  if burst == 0 then return 0, nil end
  bucket = bucket or {level = burst, at = now}
  bucket.level = math.min(burst, bucket.level + math.max(0, now - bucket.at) * rate)
  bucket.at = now
  local got = math.min(wanted, math.ceil(math.floor(bucket.level) / short))
  bucket.level = math.min(burst, bucket.level - got)
  return got, bucket
end

local function exchange(key, id, ask)
  local text = redis.call('GET', key)
  local state = text and cjson.decode(text) or {successes = 0, peak = 0, cool = 0, hold = 0, seen = 0, settle = 0, replicas = {}}
  if now > state.seen + EXPIRY then state.settle = now + SETTLE end
  state.seen = now
  for other, entry in pairs(state.replicas) do
    if now > entry.expires then state.replicas[other] = nil end
  end
  local mine = {held = ask.keep, wanted = ask.wanted, peak = ask.peak, expires = now + EXPIRY}
  mine.short = ask.requests > 0 or ask.tokens > 0
  state.replicas[id] = mine
  adapt(state, ask)
  state.hold = math.max(state.hold, now + ask.hold)

  local limit, others, short, hungry = math.floor(state.limit), 0, 0, false
  for other, entry in pairs(state.replicas) do
    entry.wanted = math.min(entry.wanted, limit)
    if entry.short then short = short + 1 end
    if other ~= id then
      others = others + entry.held
      hungry = hungry or entry.wanted > entry.held
    end
  end
  local part, left, count = parts(state, limit)
  local spare = 0
  if ask.wanted > 0 then
    spare = math.min(math.floor(left / (count + 1)), math.max(1, math.floor(limit / 8)))
  end
  local slots = math.max(0, math.min(part[id] + spare, limit - others))
  if ask.hard and now < state.settle then slots = math.min(slots, ask.keep) end
  mine.held = math.max(ask.keep, slots)
  local free = math.max(0, limit - others - mine.held)

  local requests, tokens
  requests, state.requests = draw(state.requests, ask.requests, ask.request_burst, ask.request_rate, math.max(1, short))
  tokens, state.tokens = draw(state.tokens, ask.tokens, ask.token_burst, ask.token_rate, math.max(1, short))
  redis.call('SET', key, cjson.encode(state), 'EX', KEEP)
  return cjson.encode({
    slots = slots, limit = limit, free = free, replicas = count, requests = requests, tokens = tokens,
    tight = hungry or slots < ask.keep or (free == 0 and count > 1), hold = math.max(0, state.hold - now)
  })
end

local grants = {}
for at, key in ipairs(KEYS) do grants[at] = exchange(key, ARGV[1], cjson.decode(ARGV[at + 1])) end
return grants
"""
)
_decoder = msgspec.json.Decoder(Grant)


async def take(redis: Client, replica: UUID, asks: Sequence[Ask]) -> list[Grant]:
    """Tell what this process holds and wants of each endpoint; hear what it may have. One round trip."""
    script = redis.register_script(_SCRIPT)
    keys = [f"slices:{ask.endpoint}" for ask in asks]
    return [_decoder.decode(text) for text in await script(keys, [replica.hex, *map(msgspec.json.encode, asks)])]
