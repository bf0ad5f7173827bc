--[[
  Put what a call cost in the place of what was set aside for it.
  Guarantees: each hold is settled once; the same call again changes nothing.
    KEYS[1] hold
    ARGV[1] cost, in nano-dollars
  Returns 1, or 0 where it was settled before or has expired.
]]
local amount = redis.call('HGET', KEYS[1], 'amount')
if not amount then
  return 0
end
local change = string.format('%.0f', tonumber(ARGV[1]) - tonumber(amount))
for _, scope in ipairs(redis.call('HKEYS', KEYS[1])) do
  if scope ~= 'amount' and redis.call('EXISTS', scope) == 1 then
    redis.call('INCRBY', scope, change)
  end
end
redis.call('DEL', KEYS[1])
return 1
