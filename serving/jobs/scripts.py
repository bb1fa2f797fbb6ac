"""The Lua scripts of the job index. Each is atomic, one round trip, on the server's clock.

Any of them may be sent again because its answer was lost, and then says what it said before: a claim is found by its
token, an end by the token that wrote it, a removal by its nonce. They run on Redis 6.2. ``KEYS[1]`` is the prefix of
``serving.jobs.keys``; the other keys are made from it, in the same slot.
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
local function get(id, ...) return redis.call('HMGET', job_key(id), ...) end
local function record(id) return redis.call('HGETALL', job_key(id)) end

local function enqueue(id)
  local job = get(id, 'model', 'key', 'us', 'steps', 'checkpoint_step')
  local left = 1 - math.min(1, tonumber(job[5]) / math.max(1, tonumber(job[4])))
  local us = whole(tonumber(job[3]) * left)
  redis.call('HSET', job_key(id), 'status', 'queued', 'stage', 'queued', 'step', job[5], 'queued_us', us)
  redis.call('HDEL', job_key(id), 'token', 'worker', 'remaining_s')
  redis.call('ZADD', P .. ':queue:' .. job[1], job[2], id)
  redis.call('SADD', P .. ':waiting', id)
  redis.call('HINCRBY', P .. ':load', job[1], us)
end

local function dequeue(id, model, us)
  redis.call('ZREM', P .. ':queue:' .. model, id)
  if redis.call('SREM', P .. ':waiting', id) == 1 then
    redis.call('HINCRBY', P .. ':load', model, whole(-tonumber(us or 0)))
  end
end

-- The one way in which a job ends.
local function finish(id, status, ttl_ms, ...)
  local job = get(id, 'owner', 'model', 'queued_us')
  dequeue(id, job[2], job[3])
  redis.call('ZREM', P .. ':leases', id)
  redis.call('SREM', P .. ':open:' .. job[1], id)
  local expires_ms = now_ms + tonumber(ttl_ms)
  redis.call('HSET', job_key(id), 'status', status, 'stage', 'done', 'completed_at_s', now_s,
             'expires_at_s', string.format('%.3f', expires_ms / 1000), ...)
  redis.call('HDEL', job_key(id), 'token', 'worker', 'remaining_s')
  redis.call('PEXPIREAT', job_key(id), whole(expires_ms))
  redis.call('ZADD', P .. ':ended', whole(expires_ms), id .. ' ' .. job[1])
end

local CANCELLED = '{"code":"cancelled","message":"the job was cancelled"}'

-- Back into the queue, unless it was cancelled or its attempts are used up. Answers what became of it.
local function put_back(id, max_attempts, ttl_ms)
  local job = get(id, 'attempts', 'cancel')
  redis.call('ZREM', P .. ':leases', id)
  if job[2] then
    finish(id, 'failed', ttl_ms, 'error', CANCELLED)
    return 'cancelled'
  end
  if tonumber(job[1]) >= tonumber(max_attempts) then
    finish(id, 'failed', ttl_ms, 'error', '{"code":"attempts_exhausted","message":"the job was begun ' .. job[1] ..
           ' times and never finished; simplify it or try again later"}')
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
    if redis.call('EXISTS', job_key(id)) == 0 then
      redis.call('ZREM', P .. ':leases', id)
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

local function is_mine(id, owner)
  local job = get(id, 'owner', 'deleted')
  return job[1] == owner and not job[2]
end

local function holds(id, token)
  local job = get(id, 'token', 'status')
  return job[1] == token and job[2] == 'in_progress'
end
"""

CREATE = Script(
    _COMMON
    + """
-- ARGV: id, owner, model, created_at_s, queue key, predicted us, steps, max queued, max open of the owner, record
-- Answers created, exists, taken, full or owner_full
local id, owner, model = ARGV[1], ARGV[2], ARGV[3]
sweep_ended()
local earlier = redis.call('HGET', job_key(id), 'owner')
if earlier then return earlier == owner and 'exists' or 'taken' end
if redis.call('SCARD', P .. ':waiting') >= tonumber(ARGV[8]) then return 'full' end
if redis.call('SCARD', P .. ':open:' .. owner) >= tonumber(ARGV[9]) then return 'owner_full' end
redis.call('HSET', job_key(id), 'owner', owner, 'model', model, 'created', ARGV[4], 'key', ARGV[5], 'us', ARGV[6],
           'steps', ARGV[7], 'attempts', '0', 'preemptions', '0', 'checkpoint_step', '0', 'record', ARGV[10])
redis.call('ZADD', P .. ':owner:' .. owner, ARGV[4], id)
redis.call('SADD', P .. ':open:' .. owner, id)
enqueue(id)
return 'created'
"""
)

GET = Script(
    _COMMON
    + """
-- ARGV: id, owner. Answers the fields, or {} for unknown and for not yours
if not is_mine(ARGV[1], ARGV[2]) then return {} end
return record(ARGV[1])
"""
)

LIST = Script(
    _COMMON
    + """
-- ARGV: owner, cursor or '', how many, 1 for newest first. Answers {found, records}
local owner, after, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local list = P .. ':owner:' .. owner
sweep_ended()
local range = ARGV[4] == '1' and 'ZREVRANGE' or 'ZRANGE'
local at = 0
if after ~= '' then
  local rank = is_mine(after, owner) and redis.call(ARGV[4] == '1' and 'ZREVRANK' or 'ZRANK', list, after)
  if not rank then return {0, {}} end
  at = rank + 1
end
local records = {}
while #records < limit do
  local ids = redis.call(range, list, at, at + 99)
  if #ids == 0 then break end
  for _, id in ipairs(ids) do
    if #records < limit and is_mine(id, owner) then records[#records + 1] = record(id) end
  end
  at = at + #ids
end
return {1, records}
"""
)

CANCEL = Script(
    _COMMON
    + """
-- ARGV: id, owner, max attempts, TTL in ms, grace in s. Answers the fields as they are then, or {}
local id = ARGV[1]
if not is_mine(id, ARGV[2]) then return {} end
sweep_leases(ARGV[3], ARGV[4], tonumber(ARGV[5]))
local status = redis.call('HGET', job_key(id), 'status')
if status == 'queued' then
  finish(id, 'failed', ARGV[4], 'error', CANCELLED)
elseif status == 'in_progress' then
  redis.call('HSET', job_key(id), 'cancel', '1')
end
return record(id)
"""
)

DELETE = Script(
    _COMMON
    + """
-- ARGV: id, owner, nonce. Answers the fields of what was removed, or {}
local id, owner = ARGV[1], ARGV[2]
local job = get(id, 'owner', 'deleted', 'status')
if job[1] ~= owner or (job[2] and job[2] ~= ARGV[3]) then return {} end
if job[3] ~= 'completed' and job[3] ~= 'failed' then return {} end
redis.call('HSET', job_key(id), 'deleted', ARGV[3])
redis.call('PEXPIRE', job_key(id), 60000)
redis.call('ZREM', P .. ':owner:' .. owner, id)
redis.call('ZREM', P .. ':ended', id .. ' ' .. owner)
return record(id)
"""
)

CLAIM = Script(
    _COMMON
    + """
-- ARGV: token, worker, lease in ms, max attempts, TTL in ms, grace in s, then models
-- Answers {fields or {}, requeued, exhausted, cancelled}
local token = ARGV[1]
local earlier = redis.call('GET', P .. ':claim:' .. token)
if earlier then
  if holds(earlier, token) then return {record(earlier), 0, 0, 0} end
  return {{}, 0, 0, 0}
end
local swept = sweep_leases(ARGV[4], ARGV[5], tonumber(ARGV[6]))
sweep_ended()

local function first()
  local best, best_key
  for i = 7, #ARGV do
    local head = redis.call('ZRANGE', P .. ':queue:' .. ARGV[i], 0, 0, 'WITHSCORES')
    if head[1] and (not best_key or tonumber(head[2]) < best_key) then
      best, best_key = {head[1], ARGV[i]}, tonumber(head[2])
    end
  end
  return best
end

local job = first()
if not job then return {{}, swept.requeued, swept.exhausted, swept.cancelled} end
local id = job[1]
dequeue(id, job[2], redis.call('HGET', job_key(id), 'queued_us'))
redis.call('HSET', job_key(id), 'status', 'in_progress', 'stage', 'text', 'token', token, 'worker', ARGV[2])
redis.call('HSETNX', job_key(id), 'started_at_s', now_s)
redis.call('HINCRBY', job_key(id), 'attempts', 1)
redis.call('ZADD', P .. ':leases', whole(now_ms + tonumber(ARGV[3])), id)
redis.call('SET', P .. ':claim:' .. token, id, 'PX', 60000)
return {record(id), swept.requeued, swept.exhausted, swept.cancelled}
"""
)

_PROGRESS = """
local function note(id, at)
  redis.call('HSET', job_key(id), 'stage', ARGV[at], 'step', ARGV[at + 1], 'preemptions', ARGV[at + 5])
  if ARGV[at + 2] ~= '' then redis.call('HSET', job_key(id), 'remaining_s', ARGV[at + 2]) end
  if ARGV[at + 3] ~= '' then
    redis.call('HSET', job_key(id), 'checkpoint_key', ARGV[at + 3], 'checkpoint_step', ARGV[at + 4])
  end
end
"""

RENEW = Script(
    _COMMON
    + _PROGRESS
    + """
-- ARGV: id, token, lease in ms, then progress: stage, step, remaining, checkpoint key, its step, preemptions
-- Answers held, cancelled or lost
local id = ARGV[1]
if not holds(id, ARGV[2]) then return 'lost' end
redis.call('ZADD', P .. ':leases', whole(now_ms + tonumber(ARGV[3])), id)
note(id, 4)
return redis.call('HEXISTS', job_key(id), 'cancel') == 1 and 'cancelled' or 'held'
"""
)

REQUEUE = Script(
    _COMMON
    + _PROGRESS
    + """
-- ARGV: id, token, 1 if it counts as an attempt, max attempts, TTL in ms, then progress. Answers whether it was held
local id = ARGV[1]
if redis.call('HGET', job_key(id), 'requeued_by') == ARGV[2] then return 1 end
if not holds(id, ARGV[2]) then return 0 end
note(id, 6)
if ARGV[3] ~= '1' then redis.call('HINCRBY', job_key(id), 'attempts', -1) end
redis.call('HSET', job_key(id), 'requeued_by', ARGV[2])
put_back(id, ARGV[4], ARGV[5])
return 1
"""
)

END = Script(
    _COMMON
    + """
-- ARGV: id, token, status, TTL in ms, then fields and values. Answers whether the lease was held
local id = ARGV[1]
if redis.call('HGET', job_key(id), 'ended_by') == ARGV[2] then return 1 end
if not holds(id, ARGV[2]) then return 0 end
finish(id, ARGV[3], ARGV[4], 'ended_by', ARGV[2], unpack(ARGV, 5))
return 1
"""
)

ALL = (CREATE, GET, LIST, CANCEL, DELETE, CLAIM, RENEW, REQUEUE, END)
