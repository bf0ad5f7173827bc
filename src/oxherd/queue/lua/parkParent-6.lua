--[[
  Put a parent back to wait for its children, at the end of the transaction that adds them.
  A child that exists and is completed releases its parent as soon as it is added, although others follow. Nobody can
  have taken the parent yet, since the transaction is not over.
  Guarantees: a parent without open children, and one that is anywhere else, is left alone.
    KEYS[1] the parent's dependencies   KEYS[2] wait   KEYS[3] paused   KEYS[4] prioritized   KEYS[5] delayed
    KEYS[6] waiting-children
    ARGV[1] the parent's id   ARGV[2] wall ms
  Returns 1 where it was put back, else 0.
]]
if redis.call('SCARD', KEYS[1]) == 0 then
  return 0
end
local found = redis.call('LREM', KEYS[2], 1, ARGV[1]) + redis.call('LREM', KEYS[3], 1, ARGV[1])
  + redis.call('ZREM', KEYS[4], ARGV[1]) + redis.call('ZREM', KEYS[5], ARGV[1])
if found > 0 then
  redis.call('ZADD', KEYS[6], ARGV[2], ARGV[1])
end
return found
