--[[
  Note that a question of a job has been answered, and say what is to be done about the job.
  Guarantees: the note stays for as long as the job may miss the answer: until it is promoted, or while it runs and may
  have asked before the answer was there. Whoever parks a job looks for notes right afterwards.
    KEYS[1] answers (ours)   KEYS[2] delayed   KEYS[3] active   KEYS[4] the job
    ARGV[1] the note   ARGV[2] job id   ARGV[3] the field for when it is ready   ARGV[4] wall ms
  Returns 1 where it is parked: promote it, then remove the note. 0 where it runs. -1 where it is anywhere else: it
  will see the answer when it is run, if ever.
]]
redis.call('ZADD', KEYS[1], 0, ARGV[1])
if redis.call('ZSCORE', KEYS[2], ARGV[2]) then
  redis.call('HSET', KEYS[4], ARGV[3], ARGV[4])
  return 1
end
if redis.call('LPOS', KEYS[3], ARGV[2]) then
  return 0
end
redis.call('ZREM', KEYS[1], ARGV[1])
return -1
