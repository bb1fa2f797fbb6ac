"""The Lua scripts, twins of ``schedulers.admission`` and ``schedulers.spending``. Each runs atomically, in one round
trip, on the server's clock.

Numbers go out as text with 17 digits: Redis would cut a Lua number to an integer. Each script answers with the time it
used, so that a test can replay the same step in Python and find the same levels to the last bit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Script:
    """Source and the name under which a server has it cached."""

    source: str

    @property
    def sha1(self) -> str:
        """The digest that EVALSHA takes."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


MOST = 1e15
"""Joules or seconds that a bucket may hold or owe, and seconds since 1970: more was not written by these scripts."""
MOST_AHEAD_S = 5.0
"""Seconds by which a bucket's time may be after the server's, as after a failover to a server whose clock is late."""

MOST_EXPIRED = 1_000
"""Expired reservations that one script forgets, or one look at an account takes off."""

_COMMON = (
    f"local MOST, MOST_AHEAD_S, MOST_EXPIRED = {MOST!r}, {MOST_AHEAD_S!r}, {MOST_EXPIRED}"
    + """
local function text(number) return string.format('%.17g', number) end

local function number(value)
  local parsed = value and tonumber(value)
  if parsed and math.abs(parsed) <= MOST then return parsed end
end

local function save(key, joules, seconds, at)
  redis.call('HSET', key, 'joules', text(joules), 'seconds', text(seconds), 'at', text(at))
end

-- What is stored: joules, seconds, at, the time now, and whether it was broken: what no bucket can hold is nil, as for
-- a tenant that was never seen; a time that has not come yet is now.
local function read(key)
  local clock = redis.call('TIME')
  local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
  local stored = redis.pcall('HMGET', key, 'joules', 'seconds', 'at')
  if stored.err then
    redis.call('DEL', key)
    return nil, nil, nil, now, true
  end
  local joules, seconds, at = number(stored[1]), number(stored[2]), number(stored[3])
  if not (joules and seconds and at) then
    return nil, nil, nil, now, (stored[1] or stored[2] or stored[3]) and true or false
  end
  if at > now + MOST_AHEAD_S then return joules, seconds, now, now, true end
  return joules, seconds, at, now, false
end

local function refilled(key, joules_per_s, joules_burst, seconds_per_s, seconds_burst)
  local joules, seconds, at, now, is_broken = read(key)
  if not joules then joules, seconds, at = joules_burst, seconds_burst, now end
  local elapsed = math.max(0, now - at)
  joules = math.min(joules_burst, joules + joules_per_s * elapsed)
  seconds = math.min(seconds_burst, seconds + seconds_per_s * elapsed)
  at = math.max(at, now)
  if is_broken then save(key, joules, seconds, at) end
  return joules, seconds, at, now, is_broken and 1 or 0
end

-- Months up to a day since 1970, from any month on: years of the Gregorian calendar that begin in March, after the leap
-- day, in eras of 400.
local function month_of(day)
  local days = day + 719468
  local era = math.floor(days / 146097)
  days = days - 146097 * era
  local leap = math.floor(days / 1460) - math.floor(days / 36524) + math.floor(days / 146096)
  local year = math.floor((days - leap) / 365)
  days = days - 365 * year - math.floor(year / 4) + math.floor(year / 100)
  return 12 * (400 * era + year) + math.floor((5 * days + 2) / 153)
end

local function save_spent(key, its)
  redis.call('HSET', key, 'day_j', text(its.day_j), 'month_j', text(its.month_j), 'spent_at', text(its.at))
end

local function add(key, field_j, field_s, joules, seconds)
  local so_far = redis.call('HMGET', key, field_j, field_s)
  redis.call('HSET', key, field_j, text((number(so_far[1]) or 0) + joules),
             field_s, text((number(so_far[2]) or 0) + seconds))
end

local function member(id, joules, seconds, predicted_j)
  return id .. ' ' .. joules .. ' ' .. seconds .. (predicted_j and ' ' .. predicted_j or '')
end

-- Reservations that have expired are no longer open; some at a time. Answers the joules by which they are above their
-- predictions.
local function forget(key, open, now)
  local expired = redis.pcall('ZRANGEBYSCORE', open, '-inf', text(now), 'LIMIT', 0, MOST_EXPIRED)
  if expired.err or #expired == 0 then return 0 end
  local joules, seconds, above_j = 0, 0, 0
  for _, one in ipairs(expired) do
    local its_j, its_s, predicted_j = one:match('^%S+ (%S+) (%S+) ?(%S*)$')
    its_j = number(its_j) or 0
    joules, seconds = joules + its_j, seconds + (number(its_s) or 0)
    above_j = above_j + math.max(0, its_j - (number(predicted_j) or its_j))
  end
  redis.call('ZREM', open, unpack(expired))
  add(key, 'open_j', 'open_s', -joules, -seconds)
  return above_j
end

-- Joules of this day and this month of UTC, with those that open reservations hold (open_j), which belong to the period
-- that begins while they are open. Of one that expired, only the prediction counts: no refill would ever give the rest
-- back. What cannot be is none but what is open; a time that has not come yet is now.
local function spent(key, open, now)
  local above_j = forget(key, open, now)
  local stored = redis.call('HMGET', key, 'day_j', 'month_j', 'spent_at', 'open_j')
  local day_j, month_j, at = number(stored[1]), number(stored[2]), number(stored[3])
  local its = {open_j = math.max(0, number(stored[4]) or 0), mended = 0}
  if not (day_j and month_j and at) or math.min(day_j, month_j) < 0 then
    its.mended = (stored[1] or stored[2] or stored[3]) and 1 or 0
    day_j, month_j, at = its.open_j, its.open_j, now
  else
    if at > now + MOST_AHEAD_S then its.mended, at = 1, now end
    day_j, month_j = math.max(0, day_j - above_j), math.max(0, month_j - above_j)
  end
  local day, today = math.floor(at / 86400), math.floor(now / 86400)
  if day < today then
    day_j = its.open_j
    if month_of(day) < month_of(today) then month_j = its.open_j end
  end
  its.day_j, its.month_j, its.at = day_j, month_j, math.max(at, now)
  if its.mended == 1 or above_j > 0 then save_spent(key, its) end
  return its
end

-- All that was ever taken and not given back, on which no decision depends, and what was spent of late, which may be
-- another sum.
local function count(key, joules, seconds, its, late_j)
  add(key, 'taken_j', 'taken_s', joules, seconds)
  late_j = late_j or joules
  its.day_j, its.month_j = math.max(0, its.day_j + late_j), math.max(0, its.month_j + late_j)
  save_spent(key, its)
end

-- What the open reservations hold together.
local function count_open(key, joules, seconds, its)
  add(key, 'open_j', 'open_s', joules, seconds)
  its.open_j = math.max(0, its.open_j + joules)
end

local function levels(joules, seconds, its, now, repaired)
  return text(joules), text(seconds), text(its.day_j), text(its.month_j), text(its.open_j), text(now),
         math.max(repaired, its.mended)
end

"""
)

LOOKUP_AND_RESERVE = Script(
    _COMMON
    + """
-- KEYS: n results, the bucket, the reservation, the open reservations
-- ARGV: n, reservation TTL in s, joules per s, joules burst, seconds per s, seconds burst, most joules a day, a month,
-- overrun of joules, of seconds, id of the reservation, then joules, seconds per key
-- Answers {values} when nothing is missing, else
-- {values, granted, joules, seconds, wait_s for the buckets, then as SETTLE}
local n = tonumber(ARGV[1])
local values = redis.call('MGET', unpack(KEYS, 1, n))
local joules, seconds, missing = 0, 0, false
for i = 1, n do
  if not values[i] then
    missing = true
    joules, seconds = joules + tonumber(ARGV[10 + 2 * i]), seconds + tonumber(ARGV[11 + 2 * i])
  end
end
if not missing then return {values} end

local bucket, reservation, open = KEYS[n + 1], KEYS[n + 2], KEYS[n + 3]
local joules_per_s, joules_burst = tonumber(ARGV[3]), tonumber(ARGV[4])
local seconds_per_s, seconds_burst = tonumber(ARGV[5]), tonumber(ARGV[6])
local joules_a_day, joules_a_month = tonumber(ARGV[7]), tonumber(ARGV[8])
local level_j, level_s, at, now, repaired =
  refilled(bucket, joules_per_s, joules_burst, seconds_per_s, seconds_burst)
local its = spent(bucket, open, now)

-- Sent again because the first answer was lost: it is granted already.
local earlier = redis.call('HMGET', reservation, 'joules', 'seconds')
if earlier[1] then
  return {values, 1, earlier[1], earlier[2], '0', levels(level_j, level_s, its, now, repaired)}
end

local num_open = redis.pcall('ZCOUNT', open, text(now), '+inf')  -- a table: what is there is no sorted set
local is_alone = num_open == 0 or type(num_open) == 'table'
local room_j = math.min(joules_a_day - its.day_j, joules_a_month - its.month_j)
local most_j = math.min(joules_burst, joules_a_day, joules_a_month)
local predicted_j = joules
local function widened(amount, overrun, most) return math.max(amount, math.min(amount * overrun, most)) end
joules = widened(joules, tonumber(ARGV[9]), is_alone and math.min(level_j, room_j) or most_j)
seconds = widened(seconds, tonumber(ARGV[10]), is_alone and level_s or seconds_burst)

local function wait(amount, level, rate, burst)
  if amount <= level then return 0 end
  if amount <= burst and rate > 0 then return math.max((amount - level) / rate, 4.9406564584124654e-324) end
  return math.huge
end

if joules <= level_j and seconds <= level_s and joules <= room_j then
  level_j, level_s = level_j - joules, level_s - seconds
  save(bucket, level_j, level_s, at)
  redis.call('HSET', reservation, 'joules', text(joules), 'seconds', text(seconds), 'predicted_j', text(predicted_j))
  redis.call('EXPIRE', reservation, ARGV[2])
  if type(num_open) == 'table' then redis.call('DEL', open) end
  if redis.call('ZCARD', open) == 0 then
    redis.call('HDEL', bucket, 'open_j', 'open_s')
    its.open_j = 0
  end
  local one = member(ARGV[11], text(joules), text(seconds), text(predicted_j))
  redis.call('ZADD', open, text(now + tonumber(ARGV[2])), one)
  count(bucket, joules, seconds, its)
  count_open(bucket, joules, seconds, its)
  return {values, 1, text(joules), text(seconds), '0', levels(level_j, level_s, its, now, repaired)}
end
local wait_s = math.max(wait(joules, level_j, joules_per_s, joules_burst),
                        wait(seconds, level_s, seconds_per_s, seconds_burst))
return {values, 0, text(joules), text(seconds), text(wait_s), levels(level_j, level_s, its, now, repaired)}
"""
)

SETTLE = Script(
    _COMMON
    + """
-- KEYS: the bucket, the reservation, the open reservations
-- ARGV: joules, seconds used, joules per s, joules burst, seconds per s, seconds burst, id of the reservation
-- Answers {level_j, level_s, day_j, month_j, open_j, now, repaired}, or {} when there is no such reservation (any
-- more), or none to be read
local reserved = redis.pcall('HMGET', KEYS[2], 'joules', 'seconds', 'predicted_j')
local reserved_j, reserved_s = number(reserved[1]), number(reserved[2])
local one = member(ARGV[7], reserved[1] or '', reserved[2] or '', reserved[3])
local was_open = redis.pcall('ZREM', KEYS[3], one) == 1
if redis.call('DEL', KEYS[2]) == 0 or not (reserved_j and reserved_s) then return {} end
local joules_burst, seconds_burst = tonumber(ARGV[4]), tonumber(ARGV[6])
local level_j, level_s, at, now, repaired =
  refilled(KEYS[1], tonumber(ARGV[3]), joules_burst, tonumber(ARGV[5]), seconds_burst)
local its = spent(KEYS[1], KEYS[3], now)
level_j = math.min(joules_burst, level_j + reserved_j - tonumber(ARGV[1]))
level_s = math.min(seconds_burst, level_s + reserved_s - tonumber(ARGV[2]))
save(KEYS[1], level_j, level_s, at)
if was_open then count_open(KEYS[1], -reserved_j, -reserved_s, its) end
local late_j = was_open and reserved_j or number(reserved[3]) or reserved_j
count(KEYS[1], tonumber(ARGV[1]) - reserved_j, tonumber(ARGV[2]) - reserved_s, its, tonumber(ARGV[1]) - late_j)
return {levels(level_j, level_s, its, now, repaired)}
"""
)

CHARGE = Script(
    _COMMON
    + """
-- KEYS: the bucket, the mark of this charge, the open reservations
-- ARGV: joules, seconds to charge (below 0: to give back), joules per s, joules burst, seconds per s, seconds burst,
-- lifetime of the mark in s
-- Answers as SETTLE; a charge that was made before is not made again
local level_j, level_s, at, now, repaired =
  refilled(KEYS[1], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]))
local its = spent(KEYS[1], KEYS[3], now)
if redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[7]) then
  level_j = math.min(tonumber(ARGV[4]), level_j - tonumber(ARGV[1]))
  level_s = math.min(tonumber(ARGV[6]), level_s - tonumber(ARGV[2]))
  save(KEYS[1], level_j, level_s, at)
  count(KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), its)
end
return {levels(level_j, level_s, its, now, repaired)}
"""
)

SETTLE_JOB = Script(
    _COMMON
    + """
-- KEYS: the bucket, the mark of the job, the open reservations
-- ARGV: joules and seconds to give back (below 0: to charge), lifetime of the mark in s
-- Answers 1, or 0 when the tenant has no bucket or the job was settled before. What is above the burst, the next refill
-- takes away.
local joules, seconds, at, now = read(KEYS[1])
if not joules then return 0 end
if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[3]) then return 0 end
save(KEYS[1], joules + tonumber(ARGV[1]), seconds + tonumber(ARGV[2]), at)
count(KEYS[1], -tonumber(ARGV[1]), -tonumber(ARGV[2]), spent(KEYS[1], KEYS[3], now))
return 1
"""
)
