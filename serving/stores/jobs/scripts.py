"""The Lua scripts of the job index. Each is atomic, one round trip, on the server's clock.

Any of them may be sent again because its answer was lost, and then says what it said before: a claim is found by its
token, an end by the token that wrote it, a removal by its nonce. They run on Redis 6.2. ``KEYS[1]`` is the prefix of
``serving.stores.jobs.keys``; the other keys are made from it, in the same slot.

Whose job is claimed next is start-time fair among owners, as in ``schedulers.fair_queue``, whose bound holds here: for
each model an owner that waits has a tag, the smallest goes next, virtual time moves there, and the tag moves on by the
job's predicted joules over the owner's weight. What other models served it is charged as there, too, when it adds a job
while others wait. A job pays once: one that comes back (its replica died, or stops) waits in a flow of its own that
goes before all others, and is claimed again for nothing. When nothing waits, everybody starts anew.
"""

from __future__ import annotations

from serving.stores.scripts import Script

_COMMON = """
local P = KEYS[1]
local clock = redis.call('TIME')
local now_ms = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local now_s = string.format('%.6f', tonumber(clock[1]) + tonumber(clock[2]) / 1000000)

local function job_key(id) return P .. ':job:' .. id end
local function whole(number) return string.format('%.0f', number) end
local function exact(number) return string.format('%.17g', number) end

-- What somebody else wrote in a record's place is an empty record.
local function get(id, ...)
  local values = redis.pcall('HMGET', job_key(id), ...)
  return values.err and {} or values
end

local function record(id)
  local fields = redis.pcall('HGETALL', job_key(id))
  return fields.err and {} or fields
end

local function is_count(text) return text and #text < 16 and string.match(text, '^%d+$') end

local function is_joules(text)
  local joules = tonumber(text or '')
  return joules and joules >= 0 and joules < math.huge
end

-- Whether a record has what these scripts count with.
local function is_sound(id)
  local job = get(id, 'record', 'model', 'key', 'us', 'steps', 'checkpoint_step', 'attempts', 'joules', 'weight')
  for i = 4, 7 do
    if not is_count(job[i]) then return false end
  end
  local key = tonumber(job[3] or '')
  return job[1] and job[2] and key and key == key and is_joules(job[8]) and is_joules(job[9]) and tonumber(job[9]) > 0
end

-- Owner, model and predicted microseconds that wait, of a job that is not over.
local function live(id)
  local owner, model, us = string.match(redis.call('HGET', P .. ':live', id) or '', '^(%S*) (%S+) (%d+)$')
  return owner, model, us
end

local function set_live(id, owner, model, us)
  redis.call('HSET', P .. ':live', id, owner .. ' ' .. model .. ' ' .. us)
end

local CALLED = '*'  -- the flow of jobs that have been paid for; no owner is spelt so

local function flow_key(owner, model) return P .. ':flow:' .. owner .. ':' .. model end
local function turns_key(model) return P .. ':turns:' .. model end
local function load_key(model) return P .. ':load:' .. model end
local function virtual(model) return redis.call('HGET', P .. ':virtual', model) or '0' end

-- Part of a job that is still to be done.
local function left_of(id)
  local job = get(id, 'steps', 'checkpoint_step')
  return 1 - math.min(1, tonumber(job[2]) / math.max(1, tonumber(job[1])))
end

-- A job that was charged has cost its owner so many joules more, or less.
local function correct(id, joules)
  local owner, model = live(id)
  local tag = owner and redis.call('ZSCORE', turns_key(model), owner)
  if not tag then return end  -- forgotten: it stands no further on than anybody
  redis.call('ZADD', turns_key(model), exact(tonumber(tag) + joules / tonumber(get(id, 'weight')[1])), owner)
end

-- So many microseconds more wait in a flow, or less.
local function add_load(flow, model, us)
  if redis.call('HINCRBY', load_key(model), flow, us) <= 0 then redis.call('HDEL', load_key(model), flow) end
end

local function dequeue(id)
  local owner, model, us = live(id)
  if owner then
    local was_called = redis.call('ZREM', flow_key(CALLED, model), id) == 1
    redis.call('ZREM', flow_key(owner, model), id)
    if us ~= '0' then add_load(was_called and CALLED or owner, model, '-' .. us) end
    set_live(id, owner, model, '0')
  end
  redis.call('SREM', P .. ':waiting', id)
end

local function enqueue(id)
  local job, owner = get(id, 'model', 'key', 'us', 'checkpoint_step', 'due'), live(id) or ''
  local us = whole(tonumber(job[3]) * left_of(id))
  redis.call('HSET', job_key(id), 'status', 'queued', 'stage', 'queued', 'step', job[4])
  redis.call('HDEL', job_key(id), 'token', 'worker', 'remaining_s')
  local flow = job[5] and CALLED or owner
  if redis.call('ZADD', flow_key(flow, job[1]), job[2], id) == redis.call('ZCARD', flow_key(flow, job[1])) then
    redis.call('ZADD', turns_key(job[1]), 'GT', job[5] and '-inf' or virtual(job[1]), flow)  -- it begins to wait
  end
  redis.call('SADD', P .. ':waiting', id)
  add_load(flow, job[1], us)
  set_live(id, owner, job[1], us)
end

-- Nobody waits for it and nobody works on it any more.
local function retire(id)
  dequeue(id)
  local owner = live(id)
  redis.call('ZREM', P .. ':leases', id)
  if owner then redis.call('SREM', P .. ':open:' .. owner, id) end
  redis.call('HDEL', P .. ':live', id)
  return owner
end

-- Bytes that the jobs of an owner which are not over may hold.
local function held_by(owner)
  local bytes = 0
  for _, id in ipairs(redis.call('SMEMBERS', P .. ':open:' .. owner)) do
    local its = get(id, 'held')[1]
    if is_count(its) then bytes = bytes + tonumber(its) end
  end
  return bytes
end

-- The one way in which a job ends.
local function finish(id, status, ttl_ms, ...)
  local owner = retire(id)
  local expires_ms = now_ms + tonumber(ttl_ms)
  redis.call('HSET', job_key(id), 'status', status, 'stage', 'done', 'completed_at_s', now_s,
             'expires_at_s', string.format('%.3f', expires_ms / 1000), ...)
  redis.call('HDEL', job_key(id), 'token', 'worker', 'remaining_s')
  redis.call('PEXPIREAT', job_key(id), whole(expires_ms))
  if owner then redis.call('ZADD', P .. ':ended', whole(expires_ms), id .. ' ' .. owner) end
  redis.call('ZADD', P .. ':unsettled', whole(now_ms), id)
end

-- The one way in which a job that cannot be read, or is gone, leaves the index. Its files are swept.
local function discard(id)
  local owner = retire(id)
  if owner then redis.call('ZREM', P .. ':owner:' .. owner, id) end
  redis.call('DEL', job_key(id))
end

-- Back into the queue, unless it was cancelled or its attempts are used up. Answers what became of it.
local function put_back(id, max_attempts, ttl_ms)
  local job = get(id, 'attempts', 'cancel')
  redis.call('ZREM', P .. ':leases', id)
  if job[2] then
    finish(id, 'failed', ttl_ms, 'ended', 'cancelled')
    return 'cancelled'
  end
  if tonumber(job[1]) >= tonumber(max_attempts) then
    finish(id, 'failed', ttl_ms, 'ended', 'attempts_exhausted')
    return 'exhausted'
  end
  enqueue(id)
  return 'requeued'
end

-- A server that has just been started asks the holders of leases first: they could not renew while it was away.
local function has_been_up(seconds)
  local info = redis.pcall('INFO', 'server')  -- which an operator may have forbidden
  local uptime = type(info) == 'string' and string.match(info, 'uptime_in_seconds:(%d+)')
  return not uptime or tonumber(uptime) >= seconds
end

local function sweep_leases(max_attempts, ttl_ms, grace_s)
  local counts = {requeued = 0, exhausted = 0, cancelled = 0}
  local expired = redis.call('ZRANGEBYSCORE', P .. ':leases', '-inf', whole(now_ms), 'LIMIT', 0, 100)
  if #expired == 0 or not has_been_up(grace_s) then return counts end
  for _, id in ipairs(expired) do
    if not is_sound(id) then
      discard(id)
    else
      local outcome = put_back(id, max_attempts, ttl_ms)
      counts[outcome] = counts[outcome] + 1
    end
  end
  return counts
end

local function sweep_ended()
  local ended = redis.call('ZRANGEBYSCORE', P .. ':ended', '-inf', whole(now_ms), 'LIMIT', 0, 100)
  for _, entry in ipairs(ended) do
    local id, owner = string.match(entry, '^(%S+) (.*)$')
    if redis.call('EXISTS', job_key(id)) == 0 then
      redis.call('ZREM', P .. ':owner:' .. owner, id)
    end
    redis.call('ZREM', P .. ':ended', entry)
  end
end

local function is_there(id)
  local job = get(id, 'record', 'deleted')
  return job[1] and not job[2]
end

local function holds(id, token)
  local job = get(id, 'token', 'status')
  return job[1] == token and job[2] == 'in_progress'
end
"""

CREATE = Script(
    _COMMON
    + """
-- ARGV: id, owner, model, created_at_s, queue key, predicted us, steps, max queued, max open of the owner,
--   record, predicted joules, weight of the owner, joules that it was served elsewhere, most of them that count,
--   bytes that it may hold, most bytes of the owner's jobs or ''
-- Answers {created, exists, full or owner_full, the fields of what exists}, or {owner_bytes, bytes of the owner's jobs}
local id, owner, model = ARGV[1], ARGV[2], ARGV[3]
sweep_ended()

local function others_wait()
  for _, flow in ipairs(redis.call('ZRANGE', turns_key(model), 0, 99)) do
    if flow ~= owner and flow ~= CALLED and redis.call('EXISTS', flow_key(flow, model)) == 1 then return true end
  end
end

if redis.call('EXISTS', job_key(id)) == 1 then
  if not get(id, 'deleted')[1] then return {'exists', record(id)} end
  redis.call('DEL', job_key(id))  -- kept for a removal whose answer was lost; its key may be used again
end
if redis.call('SCARD', P .. ':waiting') >= tonumber(ARGV[8]) then return {'full', {}} end
if redis.call('SCARD', P .. ':open:' .. owner) >= tonumber(ARGV[9]) then return {'owner_full', {}} end
if ARGV[16] ~= '' then
  local held = held_by(owner)
  if held + tonumber(ARGV[15]) > tonumber(ARGV[16]) then return {'owner_bytes', whole(held)} end
end
redis.call('HSET', job_key(id), 'model', model, 'created', ARGV[4], 'key', ARGV[5], 'us', ARGV[6], 'steps', ARGV[7],
           'attempts', '0', 'preemptions', '0', 'checkpoint_step', '0', 'record', ARGV[10],
           'joules', ARGV[11], 'weight', ARGV[12], 'held', ARGV[15])
redis.call('ZADD', P .. ':owner:' .. owner, ARGV[4], id)
redis.call('SADD', P .. ':open:' .. owner, id)
set_live(id, owner, model, '0')
if tonumber(ARGV[13]) > 0 and others_wait() then  -- before it is lifted to virtual time
  local tag, weight = tonumber(redis.call('ZSCORE', turns_key(model), owner) or '0'), tonumber(ARGV[12])
  local furthest = tonumber(virtual(model)) + tonumber(ARGV[14]) / weight
  tag = math.max(tag, math.min(tag + tonumber(ARGV[13]) / weight, furthest))
  redis.call('ZADD', turns_key(model), exact(tag), owner)
end
enqueue(id)
return {'created', {}}
"""
)

GET = Script(
    _COMMON
    + """
-- ARGV: id. Answers the fields, or {}
return is_there(ARGV[1]) and record(ARGV[1]) or {}
"""
)

LIST = Script(
    _COMMON
    + """
-- ARGV: owner, cursor or '', how many, 1 for newest first. Answers {found, ids and records in turns}
local owner, after, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local list = P .. ':owner:' .. owner
sweep_ended()
local range = ARGV[4] == '1' and 'ZREVRANGE' or 'ZRANGE'
local at = 0
if after ~= '' then
  local rank = redis.call(ARGV[4] == '1' and 'ZREVRANK' or 'ZRANK', list, after)
  if not rank then return {0, {}} end
  at = rank + 1
end
local entries = {}
while #entries < 2 * limit do
  local ids = redis.call(range, list, at, at + 99)
  if #ids == 0 then break end
  for _, id in ipairs(ids) do
    if #entries < 2 * limit and is_there(id) then
      entries[#entries + 1] = id
      entries[#entries + 1] = record(id)
    end
  end
  at = at + #ids
end
return {1, entries}
"""
)

CANCEL = Script(
    _COMMON
    + """
-- ARGV: id of a job that is the caller's, max attempts, TTL in ms, grace in s. Answers its fields then, or {}
local id = ARGV[1]
if not is_there(id) then return {} end
sweep_leases(ARGV[2], ARGV[3], tonumber(ARGV[4]))
local status = get(id, 'status')[1]
if status == 'queued' then
  local job = get(id, 'due', 'joules')
  if job[1] and is_sound(id) then correct(id, -tonumber(job[2]) * left_of(id)) end
  finish(id, 'failed', ARGV[3], 'ended', 'cancelled')
elseif status == 'in_progress' then
  redis.call('HSET', job_key(id), 'cancel', '1')
end
return record(id)
"""
)

DELETE = Script(
    _COMMON
    + """
-- ARGV: id of a job that is the caller's, owner, nonce. Answers the fields of what was removed, or {}
local id, owner = ARGV[1], ARGV[2]
local job = get(id, 'record', 'deleted', 'status')
if not job[1] or (job[2] and job[2] ~= ARGV[3]) then return {} end
if job[3] ~= 'completed' and job[3] ~= 'failed' then return {} end
redis.call('HSET', job_key(id), 'deleted', ARGV[3])
redis.call('PEXPIRE', job_key(id), 60000)
redis.call('ZREM', P .. ':owner:' .. owner, id)
redis.call('ZREM', P .. ':ended', id .. ' ' .. owner)
return record(id)
"""
)

DISCARD = Script(
    _COMMON
    + """
-- ARGV: id of a record that nobody can read
discard(ARGV[1])
return 1
"""
)

CLAIM = Script(
    _COMMON
    + """
-- ARGV: token, worker, lease in ms, max attempts, TTL in ms, grace in s, model, then owners that are passed over
-- Answers {id or '', fields, requeued, exhausted, cancelled}
local token, model = ARGV[1], ARGV[7]
local earlier = redis.call('GET', P .. ':claim:' .. token)
if earlier then
  if holds(earlier, token) then return {earlier, record(earlier), 0, 0, 0} end
  return {'', {}, 0, 0, 0}
end
local swept = sweep_leases(ARGV[4], ARGV[5], tonumber(ARGV[6]))
sweep_ended()

local is_passed = {}
for i = 8, #ARGV do is_passed[ARGV[i]] = true end

-- The next job, whose flow it is in, that flow's tag, and the smallest tag of all that wait. Who has nothing waiting
-- and stands no further on than whoever goes next is forgotten: coming back, it would start from there.
local function next_job()
  local at, smallest = 0, nil
  while true do
    local first = redis.call('ZRANGE', turns_key(model), at, at, 'WITHSCORES')
    if not first[1] then
      if at == 0 then redis.call('HDEL', P .. ':virtual', model) end
      return
    end
    local flow = flow_key(first[1], model)
    local id = redis.call('ZRANGE', flow, 0, 0)[1]
    if not id and at == 0 then
      redis.call('ZREM', turns_key(model), first[1])
    elseif not id then
      at = at + 1
    elseif not is_sound(id) then
      discard(id)
      redis.call('ZREM', flow, id)  -- which the table of live jobs may not know of
    elseif is_passed[first[1]] then  -- what it is owed is kept: its tag stays, and so does virtual time
      at, smallest = at + 1, smallest or first[2]
    else
      return id, first[1], first[2], smallest or first[2]
    end
  end
end

local id, flow, tag, smallest = next_job()
if not id then return {'', {}, swept.requeued, swept.exhausted, swept.cancelled} end
dequeue(id)
local job = get(id, 'joules', 'weight')
local due = tonumber(job[1]) * left_of(id)
redis.call('HSET', job_key(id), 'due', exact(due))
if flow ~= CALLED then
  redis.call('HSET', P .. ':virtual', model, exact(math.max(tonumber(smallest), tonumber(virtual(model)))))
  redis.call('ZADD', turns_key(model), exact(tonumber(tag) + due / tonumber(job[2])), flow)
end
redis.call('HSET', job_key(id), 'status', 'in_progress', 'stage', 'text', 'token', token, 'worker', ARGV[2])
redis.call('HSETNX', job_key(id), 'started_at_s', now_s)
redis.call('HINCRBY', job_key(id), 'attempts', 1)
redis.call('ZADD', P .. ':leases', whole(now_ms + tonumber(ARGV[3])), id)
redis.call('SET', P .. ':claim:' .. token, id, 'PX', 60000)
return {id, record(id), swept.requeued, swept.exhausted, swept.cancelled}
"""
)

_PROGRESS = """
local function note(id, at)
  redis.call('HSET', job_key(id), 'stage', ARGV[at], 'step', ARGV[at + 1], 'checkpoint_step', ARGV[at + 3],
             'preemptions', ARGV[at + 4])
  if ARGV[at + 2] ~= '' then redis.call('HSET', job_key(id), 'remaining_s', ARGV[at + 2]) end
end
"""

RENEW = Script(
    _COMMON
    + _PROGRESS
    + """
-- ARGV: id, token, lease in ms, then progress: stage, step, remaining, checkpoint's step, preemptions
-- Answers held, cancelled or lost
local id = ARGV[1]
if not holds(id, ARGV[2]) then return 'lost' end
redis.call('ZADD', P .. ':leases', whole(now_ms + tonumber(ARGV[3])), id)
note(id, 4)
return get(id, 'cancel')[1] and 'cancelled' or 'held'
"""
)

REQUEUE = Script(
    _COMMON
    + _PROGRESS
    + """
-- ARGV: id, token, 1 if it counts as an attempt, max attempts, TTL in ms, then progress. Answers whether it was held
local id = ARGV[1]
if get(id, 'requeued_by')[1] == ARGV[2] then return 1 end
if not holds(id, ARGV[2]) then return 0 end
note(id, 6)
if ARGV[3] ~= '1' and is_sound(id) then redis.call('HINCRBY', job_key(id), 'attempts', -1) end
redis.call('HSET', job_key(id), 'requeued_by', ARGV[2])
if is_sound(id) then put_back(id, ARGV[4], ARGV[5]) else discard(id) end
return 1
"""
)

END = Script(
    _COMMON
    + """
-- ARGV: id, token, status, TTL in ms, joules that this attempt took or '', then fields and values
-- Answers whether the lease was held
local id = ARGV[1]
if get(id, 'ended_by')[1] == ARGV[2] then return 1 end
if not holds(id, ARGV[2]) then return 0 end
local due = get(id, 'due')[1]
if is_joules(ARGV[5]) and is_joules(due) and is_sound(id) then correct(id, tonumber(ARGV[5]) - tonumber(due)) end
finish(id, ARGV[3], ARGV[4], 'ended_by', ARGV[2], unpack(ARGV, 6))
return 1
"""
)

UNSETTLED = Script(
    _COMMON
    + """
-- ARGV: for how many ms they must have been over, how many. Answers ids and records in turns, the oldest first
local found = {}
local before = whole(now_ms - tonumber(ARGV[1]))
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. ':unsettled', '-inf', before, 'LIMIT', 0, ARGV[2])) do
  found[#found + 1] = id
  found[#found + 1] = record(id)
end
return found
"""
)

QUEUED = Script(
    _COMMON
    + """
-- ARGV: model. Answers how many jobs wait
local count = 0
for _, owner in ipairs(redis.call('ZRANGE', turns_key(ARGV[1]), 0, -1)) do
  count = count + redis.call('ZCARD', flow_key(owner, ARGV[1]))
end
return count
"""
)

ALL = (CREATE, GET, LIST, CANCEL, DELETE, DISCARD, CLAIM, RENEW, REQUEUE, END, UNSETTLED, QUEUED)
