--[[
  A request was answered: learn what its provider says about limits, or that it refused.
  Guarantees: of two answers the one that leaves less counts, whichever comes first; a refusal halves the requests at
  once, at most once per ARGV[4]; each success adds a little, and as long as nothing was ever refused, doubles them.
    KEYS[1] state   KEYS[2] running   KEYS[3] unanswered
    ARGV[1] id   ARGV[2] tokens it was to use   ARGV[3] ms for which all this is remembered
    ARGV[4] ms between two halvings   ARGV[5] requests at once to begin with   ARGV[6] most at once
    ARGV[7] 'ok', 'refused', or '' for neither   ARGV[8] ms that a refusal asks to wait, or 0
    ARGV[9] ms by which two answers about one window may differ   ARGV[10] ms from sending to this answer
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
    end
    return
  end
  local reset, known, told = now + rest, state[kind .. 'reset'], state[kind .. 'told']
  if reset <= (state[kind .. 'since'] or 0) + tonumber(ARGV[9]) then return end  -- told of a window that is over
  left = math.min(left, state[kind .. 'left'] or left)
  if known then
    if state.silent ~= 1 then reset = math.max(reset, known) end  -- of a silent provider, `known` is only reckoned
  end
  -- A window is as long as from one end to the next; before there are two, at least as long as since the first request.
  if told and reset > told + tonumber(ARGV[9]) then
    local window = reset - told
    if state.guessed ~= 1 then window = math.min(window, state[kind .. 'window'] or window) end
    redis.call('HSET', KEYS[1], kind .. 'window', window, 'guessed', 0)
  elseif not told and ARGV[7] == 'refused' and state.first then
    redis.call('HSET', KEYS[1], kind .. 'window', reset - state.first, 'guessed', 1)
  end
  redis.call('HSET', KEYS[1], kind .. 'told', string.format('%.0f', math.max(reset, told or 0)))
  if ARGV[7] == 'ok' then redis.call('HSET', KEYS[1], 'silent', 0) end
  redis.call('HSET', KEYS[1], kind .. 'limit', limit, kind .. 'left', left, kind .. 'reset', string.format('%.0f', reset))
end
learn('r', 11)
learn('t', 14)
if ARGV[7] == 'ok' and ARGV[11] == '' and ARGV[14] == '' then
  redis.call('HSET', KEYS[1], 'silent', 1)
  if (state.rsince or 0) > (state.rtold or 0) then redis.call('HSET', KEYS[1], 'guessed', 0) end  -- it was right
end

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
elseif ARGV[7] == 'ok' then
  local took = tonumber(ARGV[10])
  redis.call('HSET', KEYS[1], 'latency', string.format('%.1f', (state.latency or took) * 0.8 + took * 0.2))
end
if ARGV[7] == 'ok' and redis.call('ZCARD', KEYS[2]) * 2 >= atonce then
  atonce = math.min(tonumber(ARGV[6]), atonce + (state.halved and 1 / atonce or 1))
end
redis.call('HSET', KEYS[1], 'atonce', string.format('%.6f', atonce))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
