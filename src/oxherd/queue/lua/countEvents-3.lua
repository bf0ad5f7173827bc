--[[
  Add what a worker counted to the buckets of a moment.
  Guarantees: both sizes of bucket get the same, and every bucket ends by itself.
    KEYS[1] the fine bucket (ours)   KEYS[2] the coarse bucket (ours)   KEYS[3] since when this queue is counted (ours)
    ARGV[1] when counting began at the latest, seconds since the epoch
    ARGV[2] seconds for which a fine bucket is kept   ARGV[3] a coarse one
    ARGV[4] how many minutes of the hour follow, in which a worker was healthy   then these, then pairs of a counter's
    name and what to add to it
]]
local minutes = tonumber(ARGV[4])
for i = 5, 4 + minutes do
  redis.call('HSET', KEYS[2], 'up' .. ARGV[i], 1)
end
for i = 5 + minutes, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('HINCRBY', KEYS[2], ARGV[i], ARGV[i + 1])
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('SET', KEYS[3], ARGV[1], 'NX')
