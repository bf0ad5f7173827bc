--[[
  Add entries to a job's stream, for those who follow the job.
  Guarantees: nothing is added while another attempt holds the job's lease, so that a worker which lost it can't write
  between the lines of its successor.
    KEYS[1] the job's stream (ours)   KEYS[2] the job's lock
    ARGV[1] this attempt's token   ARGV[2] how many entries are kept, about   ARGV[3] ms for which the stream is kept
    then the entries, as JSON
  Returns how many were added: 0 where another attempt has the job.
]]
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then
  return 0
end
for i = 4, #ARGV do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'entry', ARGV[i])
end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return #ARGV - 3
