--[[
  Look at all running jobs' leases, at the work that waits, and at answers that nobody acted on; one watcher per queue.
  Guarantees: while the watcher is alive no other worker does this work; when it dies its place is free after ARGV[3] ms.
  Every worker leaves its sign of life, whoever holds the watch; those that have been silent for long are forgotten.
  A marker is gone for good when the worker that took it died before it fetched: where work waits it is put back.
    KEYS[1] active   KEYS[2] watch (ours)   KEYS[3] wait   KEYS[4] prioritized   KEYS[5] delayed   KEYS[6] meta
    KEYS[7] marker   KEYS[8] workers (ours)   KEYS[9] when each was seen (ours)
    KEYS[10] answers (ours)
    ARGV[1] key prefix   ARGV[2] this worker   ARGV[3] ms to hold the watch   ARGV[4] wall ms
    ARGV[5] this worker's sign of life   ARGV[6] ms after which a silent worker is forgotten
    ARGV[7] ms after which it counts as silent
  Returns {1, ms until the next lease runs out or -1, number without a lease, 1 where work waits, number of silent
  workers, then notes of answers that are due}, or {0, ms until the watch is free}.
]]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', KEYS[9], '-inf', now - ARGV[6])) do
  redis.call('HDEL', KEYS[8], silent)
  redis.call('ZREM', KEYS[9], silent)
end
redis.call('HSET', KEYS[8], ARGV[2], ARGV[5])
redis.call('ZADD', KEYS[9], now, ARGV[2])
redis.call('PEXPIRE', KEYS[8], ARGV[6])
redis.call('PEXPIRE', KEYS[9], ARGV[6])

local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] then
  return {0, redis.call('PTTL', KEYS[2])}
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])

local active = redis.call('LRANGE', KEYS[1], 0, -1)
local soonest, bare = -1, 0
for _, id in ipairs(active) do
  local ttl = redis.call('PTTL', ARGV[1] .. id .. ':lock')
  if ttl == -2 then
    bare = bare + 1
  elseif ttl >= 0 and (soonest < 0 or ttl < soonest) then
    soonest = ttl
  end
end

local function due()
  local first = redis.call('ZRANGE', KEYS[5], 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2]) / 4096 <= tonumber(ARGV[4])
end

local limits = redis.call('HMGET', KEYS[6], 'paused', 'concurrency')
local open = not limits[1] and (not limits[2] or #active < tonumber(limits[2]))
local waits = 0
if open and (redis.call('LLEN', KEYS[3]) > 0 or redis.call('ZCARD', KEYS[4]) > 0 or due()) then
  waits = 1
  redis.call('ZADD', KEYS[7], 0, '0')
end
local due_notes = redis.call('ZRANGEBYSCORE', KEYS[10], '-inf', ARGV[4], 'LIMIT', 0, 100)
local silent = redis.call('ZCOUNT', KEYS[9], '-inf', now - ARGV[7])
return {1, soonest, bare, waits, silent, unpack(due_notes)}
