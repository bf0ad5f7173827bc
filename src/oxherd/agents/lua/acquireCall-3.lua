--[[
  Ask for leave to send one request to a model.
  Guarantees: over all workers no more requests run than the learned limit, and no more are sent in a window than the
  provider says it takes, those whose answer is not known yet included. Where it has not said, they are sent evenly: a
  refusal then meets one or two, not all that were let through together. A worker that dies gives its places back after
  ARGV[3].
    KEYS[1] state   KEYS[2] running   KEYS[3] unanswered
    ARGV[1] id   ARGV[2] tokens it may use   ARGV[3] ms to hold its places   ARGV[4] requests at once to begin with
    ARGV[5] ms for which all that is known is remembered
  Returns 0, or how many ms to wait before asking again.
]]
local time = redis.call('TIME')
local now, exact = time[1] * 1000 + math.floor(time[2] / 1000), time[1] * 1000 + time[2] / 1000
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)

if redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  return 0  -- the reply to an earlier call was lost
end

local state = {}
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do state[flat[i]] = tonumber(flat[i + 1]) end

if (state.blocked or 0) > now then
  return math.ceil(state.blocked - now)
end
local atonce = math.floor(state.atonce or tonumber(ARGV[4]))
if redis.call('ZCARD', KEYS[2]) >= atonce then
  return 50
end

-- How many may still be sent of a kind, nil for no limit. A window that is over begins again, full. When it ends, the
-- first answer tells; of a provider that is silent while all is well, the window before does, once one was measured.
local function left(kind)
  local reset, since = state[kind .. 'reset'], state[kind .. 'reset']
  if reset and now >= reset then
    local window = state.silent == 1 and state[kind .. 'window']
    if window then
      since = reset + math.floor((now - reset) / window) * window
      redis.call('HSET', KEYS[1], kind .. 'reset', string.format('%.0f', since + window))
    else
      redis.call('HDEL', KEYS[1], kind .. 'reset')
    end
    redis.call('HSET', KEYS[1], kind .. 'left', state[kind .. 'limit'], kind .. 'since', string.format('%.0f', since))
    state[kind .. 'left'], state[kind .. 'reset'] = state[kind .. 'limit'], window and since + window
  end
  if state.silent == 1 and not state[kind .. 'reset'] then return nil end
  return state[kind .. 'left']
end

-- Until the window ends; but where requests are unanswered, one of their answers may tell that there is more.
local function wait(kind, soon)
  local rest = state[kind .. 'reset'] and math.ceil(state[kind .. 'reset'] - now) or 20
  return math.max(1, soon and math.min(rest, 20) or rest)
end

local requests, tokens = left('r'), left('t')
if requests or tokens then
  local unanswered = redis.call('ZRANGE', KEYS[3], 0, -1)
  if requests and requests - #unanswered < 1 then
    return wait('r', requests >= 1)
  end
  if tokens then
    local asked = 0
    for _, member in ipairs(unanswered) do asked = asked + tonumber(string.match(member, ':(%d+)$')) end
    -- A request larger than the whole limit is sent alone: the provider has to say what it makes of it.
    local alone = #unanswered == 0 and tokens >= state.tlimit
    if tokens - asked < tonumber(ARGV[2]) and not alone then
      return wait('t', #unanswered > 0)
    end
  end
end

local guessing = not (requests or tokens) or (state.silent == 1 and state.guessed == 1)
if guessing and state.latency then
  if (state.next or 0) > exact then
    return math.max(20, math.ceil(state.next - exact))  -- not sooner: many may be waiting
  end
  redis.call('HSET', KEYS[1], 'next', string.format('%.3f', exact + state.latency / atonce))
end
redis.call('HSETNX', KEYS[1], 'first', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], ARGV[5])

local gone = now + ARGV[3]
redis.call('ZADD', KEYS[2], gone, ARGV[1])
redis.call('ZADD', KEYS[3], gone, ARGV[1] .. ':' .. ARGV[2])
for i = 2, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
return 0
