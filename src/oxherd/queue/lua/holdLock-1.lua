--[[
  Take, renew or release a lock of operators.
  Guarantees: only whoever holds it renews or releases it. One that ran out and that nobody else took is taken back.
    KEYS[1] lock   ARGV[1] value, which is unique to a holder   ARGV[2] ms; 0 releases
  Returns nothing, or whoever else holds it: their value, and ms until it runs out.
]]
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return {holder, redis.call('PTTL', KEYS[1])}
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return {}
