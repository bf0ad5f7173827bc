--[[
  Keep the payload of one of BullMQ 5's old repeatable jobs (`repeat` given to `add`) where its later runs are made from.
  Guarantees: job schedulers, which have a template of their own (or none on purpose) and an `ic`, are left alone, and so
  are removed ones.
    KEYS[1] the scheduler's hash
    ARGV[1] the payload
  Returns 1 where it was kept, else 0.
]]
if redis.call('HEXISTS', KEYS[1], 'name') == 0 or redis.call('HEXISTS', KEYS[1], 'ic') == 1 then
  return 0
end
return redis.call('HSETNX', KEYS[1], 'data', ARGV[1])
