--[[
  Keep the places of requests that still run: they would expire as those of a worker that died.
  Guarantees: what was given back meanwhile stays so.
    KEYS[1] running   KEYS[2] unanswered
    ARGV[1] ms to hold the places from now on
  then, for each request: its id, and the tokens it may use
  Returns nothing.
]]
local time = redis.call('TIME')
local gone = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
for i = 2, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], 'XX', gone, ARGV[i])
  redis.call('ZADD', KEYS[2], 'XX', gone, ARGV[i] .. ':' .. ARGV[i + 1])
end
for i = 1, 2 do redis.call('PEXPIRE', KEYS[i], ARGV[1]) end
