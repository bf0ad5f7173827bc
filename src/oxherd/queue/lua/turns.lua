--[[
  Whose turn it is: which job BullMQ's script is about to take. `scripts.py` puts this before each script that takes one,
  and lets it call `nextInTurn` right before it does.

  A job's tenant is the `tenant` of its payload. The tenant with the fewest running jobs is next, among equals the one
  that has waited longest since its last turn; within a tenant, BullMQ's order counts. Jobs without a tenant count as
  nobody's and share one turn: they are never put aside and have no limit.

  A look goes through the waiting jobs in BullMQ's order. The tenants' jobs it meets are put aside: they go to
  `prioritized`, to scores above all that BullMQ gives, so that nobody looks at them again. There they are BullMQ's like
  any other job: shown, counted, removed and drained by all, and taken by other workers after the jobs that were not put
  aside. Nothing is written to the job itself.

  Guarantees: a job is at no moment in no state. Our own keys are hints, made right from BullMQ's: an entry whose job is
  not where it was put is dropped when it is met; what runs is counted anew from `active` whenever it has another length,
  so no death leaves a count too high.
    turns: tenants that have jobs put aside, by when they had their turn or came; nobody is '' and has none aside
    turns:<tenant>: its jobs, by their scores in `prioritized`
    running: tenants of the jobs in `active`, by id; counts: how many that are, by tenant; counted: not long ago
]]
local aside, verdict = 0, 0

-- Its own functions are made only where it is called: most queues have no tenants.
local function inTurn(wait, active, turns)
  local PUT_ASIDE = 2 ^ 54 -- from here on; BullMQ's own scores end at 2^53 + 2^32
  local PER_PRIORITY = 2 ^ 32
  local STEP = 4 -- between scores of this size there are no finer ones
  local LOOK = 200 -- jobs that one call puts aside at most
  local LOOK_BYTES = 1000000 -- and bytes of their payloads, but for the last one
  local BATCH = 1000 -- arguments of one command
  local COUNTED_MS = 1000 -- for other workers' jobs may come and go in equal numbers
  local OVER_LIMIT, LOOK_ON = 1, 2

  local call = redis.call
  local prefix = string.match(wait, '^(.*:)wait$')
  local prioritized = prefix .. 'prioritized'
  local queue, running, counts, counted = turns['turns'], turns['running'], turns['counts'], turns['counted']
  local limit = turns['limit']
  local waiting = call('LLEN', wait)

  local function tenantIn(data)
    if not data or not string.find(data, '"tenant"', 1, true) then
      return ''
    end
    local read, payload = pcall(cjson.decode, data)
    local tenant = read and type(payload) == 'table' and payload['tenant']
    return type(tenant) == 'string' and tenant or ''
  end

  -- What is put aside

  local function indexOf(tenant)
    return queue .. ':' .. tenant
  end

  local function forgetAll()
    for _, tenant in ipairs(call('ZRANGE', queue, 0, -1)) do
      call('UNLINK', indexOf(tenant))
    end
    call('DEL', queue)
  end

  local function anyAside()
    if call('EXISTS', queue) == 0 then
      return false
    end
    if call('ZCOUNT', prioritized, PUT_ASIDE, '+inf') > 0 then
      return true
    end
    forgetAll() -- the queue was drained, or other workers took all
    return false
  end

  local function giveTurn(tenant)
    local last = call('ZREVRANGE', queue, 0, 0, 'WITHSCORES')
    call('ZADD', queue, (tonumber(last[2]) or 0) + 1, tenant)
  end

  local function scoreOf(job)
    local low = PUT_ASIDE + job.priority * PER_PRIORITY
    local high = low + PER_PRIORITY - STEP
    if job.front then
      local first = call('ZRANGEBYSCORE', prioritized, low, high, 'WITHSCORES', 'LIMIT', 0, 1)
      return first[2] and math.max(tonumber(first[2]) - STEP, low) or low + PER_PRIORITY / 2
    end
    local last = call('ZREVRANGEBYSCORE', prioritized, high, low, 'WITHSCORES', 'LIMIT', 0, 1)
    return last[2] and math.min(tonumber(last[2]) + STEP, high) or low + PER_PRIORITY / 2
  end

  local function putOneAside(job)
    local score = scoreOf(job)
    call('ZADD', prioritized, score, job.id)
    call('ZADD', indexOf(job.tenant), score, job.id)
    if not call('ZSCORE', queue, job.tenant) then
      giveTurn(job.tenant)
    end
  end

  local function putAside(jobs)
    for _, job in ipairs(jobs) do
      if not job.front then
        putOneAside(job)
      end
    end
    for place = #jobs, 1, -1 do
      if jobs[place].front then
        putOneAside(jobs[place])
      end
    end
    call('LTRIM', wait, 0, -1 - #jobs) -- those from `prioritized` are past its beginning, and already moved
    aside = #jobs
  end

  -- The first of a tenant's jobs that is still where it was put, or nil.
  local function firstOf(tenant)
    local index = indexOf(tenant)
    while true do
      local head = call('ZRANGE', index, 0, 0, 'WITHSCORES')
      if not head[1] then
        call('ZREM', queue, tenant)
        return nil
      end
      if tonumber(call('ZSCORE', prioritized, head[1])) == tonumber(head[2]) then
        return head[1]
      end
      call('ZREM', index, head[1])
    end
  end

  -- What nobody has looked at

  -- The n-th job (from 0) and, where it has a priority, its score.
  local function unseen(n)
    if n < waiting then
      return call('LINDEX', wait, -1 - n), nil
    end
    local top = string.format('(%.0f', PUT_ASIDE)
    local found = call('ZRANGEBYSCORE', prioritized, '-inf', top, 'WITHSCORES', 'LIMIT', n - waiting, 1)
    return found[1], tonumber(found[2])
  end

  local function read(id, score)
    local job = call('HMGET', prefix .. id, 'data', 'opts', 'ats', 'atm')
    -- What BullMQ puts before others: with a priority, what was given back; else also LIFO jobs.
    local front = score and score % PER_PRIORITY == 0
    if not score then
      local lifo = job[2] and string.find(job[2], '"lifo":true', 1, true)
      front = lifo or (tonumber(job[3]) or 0) > (tonumber(job[4]) or 0)
    end
    return {
      id = id,
      tenant = tenantIn(job[1]),
      bytes = job[1] and #job[1] or 0,
      priority = score and math.floor(score / PER_PRIORITY) or 0,
      front = front,
    }
  end

  -- The tenants' jobs up to the first one that is nobody's, and that one's id, if any.
  local function look()
    local jobs, bytes = {}, 0
    while #jobs < LOOK and bytes < LOOK_BYTES do
      local id, score = unseen(#jobs)
      if not id then
        return jobs, nil
      end
      local job = read(id, score)
      if job.tenant == '' then
        return jobs, id
      end
      jobs[#jobs + 1] = job
      bytes = bytes + job.bytes
    end
    verdict = LOOK_ON
    return jobs, nil
  end

  -- What runs

  local function started(id, tenant)
    call('HSET', running, id, tenant)
    call('HINCRBY', counts, tenant, 1)
  end

  local function ended(id)
    local tenant = call('HGET', running, id)
    if tenant then
      call('HDEL', running, id)
      if call('HINCRBY', counts, tenant, -1) <= 0 then
        call('HDEL', counts, tenant)
      end
    end
  end

  local function countAnew()
    local ids, tenants = call('LRANGE', active, 0, -1), {}
    for from = 1, #ids, BATCH do
      for place, tenant in ipairs(call('HMGET', running, unpack(ids, from, math.min(from + BATCH - 1, #ids)))) do
        local id = ids[from + place - 1]
        tenants[id] = tenant or tenantIn(call('HGET', prefix .. id, 'data'))
      end
    end
    call('DEL', running, counts)
    for id, tenant in pairs(tenants) do
      started(id, tenant)
    end
    call('SET', counted, 1, 'PX', COUNTED_MS)
  end

  -- The job whose turn it is and its tenant; nil where all that waits is over its limit.
  local function whoIsNext(nobodys)
    local from, best, least = 0, nil, nil
    while least ~= 0 do
      local tenants = call('ZRANGE', queue, from, from + 31)
      if #tenants == 0 then
        break
      end
      for place, count in ipairs(call('HMGET', counts, unpack(tenants))) do
        local tenant = tenants[place]
        count = tonumber(count) or 0
        local allowed = limit == 0 or count < limit
        if tenant == '' then
          allowed = nobodys
        end
        if allowed and (not least or count < least) then
          best, least = tenant, count
        end
      end
      from = from + #tenants
    end
    if not best then
      return nil
    end
    local id = best == '' and nobodys or firstOf(best)
    if not id then
      return whoIsNext(nobodys) -- all its jobs are gone, and so is its entry
    end
    return id, best
  end

  -- Put a job to where BullMQ's script takes it from in the next moment.
  local function take(id, tenant)
    started(id, tenant)
    if tenant ~= '' then
      local index = indexOf(tenant)
      call('RPUSH', wait, id)
      call('ZREM', prioritized, id)
      call('ZREM', index, id)
      if call('EXISTS', index) == 0 then
        call('ZREM', queue, tenant)
        return
      end
    end
    giveTurn(tenant)
  end

  if turns['ended'] then
    ended(turns['ended'])
  end
  local rivals = anyAside()
  if not rivals and limit == 0 and waiting < 2 and waiting + call('ZCARD', prioritized) < 2 then
    return not turns['look'] -- one job or none
  end
  local jobs, nobodys = look()
  if not rivals and #jobs == 0 then
    return not turns['look'] -- nothing waits, or the next job is nobody's
  end
  putAside(jobs)
  if turns['look'] then
    return false
  end
  if not nobodys then
    call('ZREM', queue, '')
  elseif not call('ZSCORE', queue, '') then
    giveTurn('')
  end
  if call('HLEN', running) ~= call('LLEN', active) or call('EXISTS', counted) == 0 then
    countAnew()
  end
  local id, tenant = whoIsNext(nobodys)
  if id then
    take(id, tenant)
    return true
  end
  if verdict ~= LOOK_ON then
    if call('EXISTS', queue) == 0 then
      return true -- nothing of what we had put aside is left: BullMQ's order is right
    end
    verdict = OVER_LIMIT
  end
  return false
end

--[[
  Arrange that the job whose turn it is is the one that BullMQ's script takes.
    opts.turns: {tenants: whether the worker has met any; limit: how many jobs of a tenant may run, 0 for any number;
      ended: the id of a job that has just left `active`; look: true to look on only;
      turns, running, counts, counted: the names of our keys}. Without it, jobs run in BullMQ's order
  Returns false where none may be taken.
]]
local function nextInTurn(wait, active, opts)
  local turns = opts['turns']
  if not turns or not (turns['tenants'] or redis.call('EXISTS', turns['turns']) == 1) then
    return true
  end
  return inTurn(wait, active, turns)
end

-- The reply of BullMQ's script; where there is something to say, with two more entries: jobs put aside, verdict.
local function told(reply)
  if aside == 0 and verdict == 0 then
    return reply
  end
  if reply == 0 then
    reply = {0, 0, 0, 0}
  end
  reply[5], reply[6] = aside, verdict
  return reply
end
