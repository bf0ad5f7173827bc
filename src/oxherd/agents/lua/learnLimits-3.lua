--[[
  A request was answered: learn what its provider says about limits, or that it refused.
  Guarantees: of two answers the one that leaves less counts, whichever comes first; a refusal halves the requests at
  once, at most once per ARGV[4]; each success adds a little, and as long as nothing was ever refused, doubles them.
    KEYS[1] state   KEYS[2] running   KEYS[3] unanswered
    ARGV[1] id   ARGV[2] tokens it was to use   ARGV[3] ms for which all this is remembered
    ARGV[4] ms between two halvings   ARGV[5] requests at once to begin with   ARGV[6] most at once
    ARGV[7] 'ok', 'refused', or '' for neither   ARGV[8] ms that a refusal asks to wait, or 0
    ARGV[9] ms by which two answers about one window may differ
  then, for requests and for tokens: limit, left, ms until the window ends; '' where it says none
  Returns nothing.
]]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREM', KEYS[3], ARGV[1] .. ':' .. ARGV[2])

local state = {}
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do state[flat[i]] = tonumber(flat[i + 1]) end

local function learn(kind, first)
  local limit, left, rest = tonumber(ARGV[first]), tonumber(ARGV[first + 1]), tonumber(ARGV[first + 2])
  if not limit or not left or not rest then
    if ARGV[7] == 'ok' and state[kind .. 'left'] then
      redis.call('HINCRBY', KEYS[1], kind .. 'left', kind == 'r' and -1 or -ARGV[2])
      redis.call('HSET', KEYS[1], 'silent', 1)
    end
    return
  end
  local reset, known = now + rest, state[kind .. 'reset']
  if reset <= (state[kind .. 'since'] or 0) + tonumber(ARGV[9]) then return end  -- told of a window that is over
  left = math.min(left, state[kind .. 'left'] or left)
  if known then
    if state.silent ~= 1 then reset = math.max(reset, known) end  -- of a silent provider, `known` is only reckoned
  elseif state[kind .. 'since'] then
    local window = reset - state[kind .. 'since']
    redis.call('HSET', KEYS[1], kind .. 'window', math.min(window, state[kind .. 'window'] or window))
  end
  if ARGV[7] == 'ok' then redis.call('HSET', KEYS[1], 'silent', 0) end
  redis.call('HSET', KEYS[1], kind .. 'limit', limit, kind .. 'left', left, kind .. 'reset', string.format('%.0f', reset))
end
learn('r', 10)
learn('t', 13)

local atonce = state.atonce or tonumber(ARGV[5])
if ARGV[7] == 'refused' then
  if now - (state.halved or 0) >= tonumber(ARGV[4]) then
    atonce = math.max(1, atonce / 2)
    redis.call('HSET', KEYS[1], 'halved', string.format('%.0f', now))
  end
  local blocked = now + tonumber(ARGV[8])
  if blocked > (state.blocked or 0) then
    redis.call('HSET', KEYS[1], 'blocked', string.format('%.0f', blocked))
  end
elseif ARGV[7] == 'ok' and redis.call('ZCARD', KEYS[2]) * 2 >= atonce then
  atonce = math.min(tonumber(ARGV[6]), atonce + (state.halved and 1 / atonce or 1))
end
redis.call('HSET', KEYS[1], 'atonce', string.format('%.6f', atonce))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
