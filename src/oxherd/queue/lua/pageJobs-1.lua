--[[
  A page of one state's jobs, with what a list shows of each.
  Guarantees: reads no more than ARGV[5] jobs. A page begins right after the job that the one before ended with, however
  many were added meanwhile. Where that job has left a sorted set, it begins at the place that it had; where it has left
  a list, it begins at the list's end: those before it were taken off as well.
    KEYS[1] the state's list or sorted set
    ARGV[1] key prefix
    ARGV[2] 'list' (from its end, which runs next), 'up' or 'down' (a sorted set, by its scores)
    ARGV[3] id of the job that the page before ended with, or ''
    ARGV[4] that job's score, or its distance from the list's end
    ARGV[5] how many jobs
    ARGV[6] lowest and ARGV[7] highest score that counts, in a sorted set
    ARGV[8] payloads of more bytes are left out
    ARGV[9] how far into a list to look for that job
  Returns {id, score or distance, {field, value, …}} for each job.
]]
local key, way, after, given = KEYS[1], ARGV[2], ARGV[3], ARGV[4]
local size, low, high = tonumber(ARGV[5]), ARGV[6], ARGV[7]

local function of_list()
  local from = 0
  if after ~= '' then
    local index = redis.call('LPOS', key, after, 'RANK', -1, 'MAXLEN', ARGV[9])
    if index then
      from = redis.call('LLEN', key) - index
    elseif tonumber(given) >= tonumber(ARGV[9]) then
      from = tonumber(given)
    end
  end
  local ids = redis.call('LRANGE', key, -from - size, -from - 1)
  local found = {}
  for i = #ids, 1, -1 do
    found[#found + 1] = {ids[i], tostring(from + #ids - i)}
  end
  return found
end

-- How many come before the page.
local function rank(down)
  if after == '' then
    return down and redis.call('ZCOUNT', key, '(' .. high, '+inf') or redis.call('ZCOUNT', key, '-inf', '(' .. low)
  end
  local score = redis.call('ZSCORE', key, after)
  if score and tonumber(score) == tonumber(given) then
    return redis.call(down and 'ZREVRANK' or 'ZRANK', key, after) + 1
  end
  local before = down and redis.call('ZCOUNT', key, '(' .. given, '+inf') or redis.call('ZCOUNT', key, '-inf', '(' .. given)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, given, given)) do
    if (down and id >= after) or (not down and id <= after) then
      before = before + 1
    end
  end
  return before
end

local function of_set(down)
  local first = rank(down)
  local flat = redis.call(down and 'ZREVRANGE' or 'ZRANGE', key, first, first + size - 1, 'WITHSCORES')
  local found = {}
  for i = 1, #flat, 2 do
    local score = tonumber(flat[i + 1])
    if (low == '-inf' or score >= tonumber(low)) and (high == '+inf' or score <= tonumber(high)) then
      found[#found + 1] = {flat[i], flat[i + 1]}
    end
  end
  return found
end

local FIELDS = {
  'name', 'opts', 'timestamp', 'processedOn', 'finishedOn', 'atm', 'attemptsMade', 'ats', 'stc', 'priority', 'delay',
  'parentKey', 'rjk',
}
local found
if way == 'list' then
  found = of_list()
else
  found = of_set(way == 'down')
end
for _, entry in ipairs(found) do
  local job = ARGV[1] .. entry[1]
  local fields = {}
  for i, value in ipairs(redis.call('HMGET', job, unpack(FIELDS))) do
    if value then
      fields[#fields + 1] = FIELDS[i]
      fields[#fields + 1] = value
    end
  end
  local reason = redis.call('HGET', job, 'failedReason')
  if reason then
    fields[#fields + 1] = 'failedReason'
    fields[#fields + 1] = string.sub(reason, 1, 1000)
  end
  if redis.call('HSTRLEN', job, 'data') <= tonumber(ARGV[8]) then
    fields[#fields + 1] = 'data'
    fields[#fields + 1] = redis.call('HGET', job, 'data') or ''
  end
  entry[3] = fields
end
return found
