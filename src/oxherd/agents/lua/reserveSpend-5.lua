--[[
  Set money aside for one try of a model call, in every scope or in none.
  Guarantees: no scope's sum passes its cap, however many workers ask at once. What is set aside counts as spent until
  `settleSpend` says what it cost: a worker that dies leaves it counted, for it may be billed. The same id again
  changes nothing, so a lost reply may be followed by the same call.
    KEYS[1] hold   KEYS[2] run   KEYS[3] tenant, day   KEYS[4] agent, day   KEYS[5] all, day
    KEYS[6..] runs that the run is inside of
    ARGV[1] amount, in nano-dollars   ARGV[2] ms to keep all this   ARGV[3..] the caps of KEYS[2..], '' for none
  Returns {0, 0}, or the place of the cap that is in the way, from 1, and what its scope has used as text.
]]
if redis.call('EXISTS', KEYS[1]) == 1 then
  return {0, '0'}
end
for place = 1, #KEYS - 1 do
  local cap = tonumber(ARGV[place + 2])
  local used = redis.call('GET', KEYS[place + 1]) or '0'
  if cap and (tonumber(used) >= cap or tonumber(used) + tonumber(ARGV[1]) > cap) then
    return {place, used}
  end
end
for place = 2, #KEYS do
  redis.call('INCRBY', KEYS[place], ARGV[1])
  redis.call('PEXPIRE', KEYS[place], ARGV[2])
  redis.call('HSET', KEYS[1], KEYS[place], 'scope')
end
redis.call('HSET', KEYS[1], 'amount', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {0, '0'}
