--[[
  Look at all running jobs' leases, one watcher per queue.
  Guarantees: while the watcher is alive no other worker does this work; when it dies its place is free after ARGV[3] ms.
    KEYS[1] active   KEYS[2] watch (ours)
    ARGV[1] key prefix   ARGV[2] this worker   ARGV[3] ms to hold the watch
  Returns {1, ms until the next lease runs out or -1, number without a lease}, or {0, ms until the watch is free}.
]]
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[2] then
  return {0, redis.call('PTTL', KEYS[2])}
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
local soonest, bare = -1, 0
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  local ttl = redis.call('PTTL', ARGV[1] .. id .. ':lock')
  if ttl == -2 then
    bare = bare + 1
  elseif ttl >= 0 and (soonest < 0 or ttl < soonest) then
    soonest = ttl
  end
end
return {1, soonest, bare}
