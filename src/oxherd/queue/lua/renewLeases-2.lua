--[[
  Renew the leases of one worker's running jobs, in one call.
  Guarantees: a lease is renewed only for the attempt that holds it. A lease that ran out while nobody else took the
  job (Redis was away, the machine slept) is taken back: the job is still in `active`, has no lock, and its `ats`
  proves that no later attempt began.
    KEYS[1] stalled   KEYS[2] active
    ARGV[1] key prefix   ARGV[2] lock ms   then triples: job id, token, ats
  Returns the ids whose lease is lost.
]]
local lost = {}
for i = 3, #ARGV, 3 do
  local id, token, ats = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local lock = ARGV[1] .. id .. ':lock'
  local holder = redis.call('GET', lock)
  if holder == token then
    redis.call('PEXPIRE', lock, ARGV[2])
    redis.call('SREM', KEYS[1], id)
  elseif not holder and redis.call('HGET', ARGV[1] .. id, 'ats') == ats and redis.call('LPOS', KEYS[2], id) then
    redis.call('SET', lock, token, 'PX', ARGV[2])
    redis.call('SREM', KEYS[1], id)
  else
    lost[#lost + 1] = id
  end
end
return lost
