"""The Lua scripts, twins of ``schedulers.admission``. Each runs atomically, in one round trip, on the server's clock.

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


_COMMON = """
local function text(number) return string.format('%.17g', number) end

local function number(value)
  local parsed = value and tonumber(value)
  if parsed ~= parsed then return nil end
  return parsed
end

local function refilled(key, joules_per_s, joules_burst, seconds_per_s, seconds_burst)
  local clock = redis.call('TIME')
  local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
  local stored = redis.call('HMGET', key, 'joules', 'seconds', 'at')
  local joules, seconds, at = number(stored[1]), number(stored[2]), number(stored[3])
  if not (joules and seconds and at) then return joules_burst, seconds_burst, now, now end
  local elapsed = math.max(0, now - at)
  return math.min(joules_burst, joules + joules_per_s * elapsed),
         math.min(seconds_burst, seconds + seconds_per_s * elapsed), math.max(at, now), now
end

local function save(key, joules, seconds, at)
  redis.call('HSET', key, 'joules', text(joules), 'seconds', text(seconds), 'at', text(at))
end
"""

LOOKUP_AND_RESERVE = Script(
    _COMMON
    + """
-- KEYS: n results, the bucket, the reservation
-- ARGV: n, reservation TTL in s, joules per s, joules burst, seconds per s, seconds burst, then joules, seconds per key
-- Answers {values} when nothing is missing, else {values, granted, joules, seconds, level_j, level_s, wait_s, now}
local n = tonumber(ARGV[1])
local values = redis.call('MGET', unpack(KEYS, 1, n))
local joules, seconds, missing = 0, 0, false
for i = 1, n do
  if not values[i] then
    missing = true
    joules, seconds = joules + tonumber(ARGV[5 + 2 * i]), seconds + tonumber(ARGV[6 + 2 * i])
  end
end
if not missing then return {values} end

local bucket, reservation = KEYS[n + 1], KEYS[n + 2]
local joules_per_s, joules_burst = tonumber(ARGV[3]), tonumber(ARGV[4])
local seconds_per_s, seconds_burst = tonumber(ARGV[5]), tonumber(ARGV[6])
local level_j, level_s, at, now = refilled(bucket, joules_per_s, joules_burst, seconds_per_s, seconds_burst)

-- Sent again because the first answer was lost: it is granted already.
local earlier = redis.call('HMGET', reservation, 'joules', 'seconds')
if earlier[1] then return {values, 1, earlier[1], earlier[2], text(level_j), text(level_s), '0', text(now)} end

local function wait(amount, level, rate, burst)
  if amount <= level then return 0 end
  if amount <= burst and rate > 0 then return math.max((amount - level) / rate, 4.9406564584124654e-324) end
  return math.huge
end

if joules <= level_j and seconds <= level_s then
  level_j, level_s = level_j - joules, level_s - seconds
  save(bucket, level_j, level_s, at)
  redis.call('HSET', reservation, 'joules', text(joules), 'seconds', text(seconds))
  redis.call('EXPIRE', reservation, ARGV[2])
  return {values, 1, text(joules), text(seconds), text(level_j), text(level_s), '0', text(now)}
end
local wait_s = math.max(wait(joules, level_j, joules_per_s, joules_burst),
                        wait(seconds, level_s, seconds_per_s, seconds_burst))
return {values, 0, text(joules), text(seconds), text(level_j), text(level_s), text(wait_s), text(now)}
"""
)

SETTLE = Script(
    _COMMON
    + """
-- KEYS: the bucket, the reservation
-- ARGV: joules, seconds used, joules per s, joules burst, seconds per s, seconds burst
-- Answers {} when there is no such reservation (any more), else {level_j, level_s, now}
local reserved = redis.call('HMGET', KEYS[2], 'joules', 'seconds')
if redis.call('DEL', KEYS[2]) == 0 then return {} end
local joules_burst, seconds_burst = tonumber(ARGV[4]), tonumber(ARGV[6])
local level_j, level_s, at, now = refilled(KEYS[1], tonumber(ARGV[3]), joules_burst, tonumber(ARGV[5]), seconds_burst)
level_j = math.min(joules_burst, level_j + tonumber(reserved[1]) - tonumber(ARGV[1]))
level_s = math.min(seconds_burst, level_s + tonumber(reserved[2]) - tonumber(ARGV[2]))
save(KEYS[1], level_j, level_s, at)
return {text(level_j), text(level_s), text(now)}
"""
)

CHARGE = Script(
    _COMMON
    + """
-- KEYS: the bucket, the mark of this charge
-- ARGV: joules, seconds used, joules per s, joules burst, seconds per s, seconds burst, lifetime of the mark in s
-- Answers {level_j, level_s, now}; a charge that was made before is not made again
local level_j, level_s, at, now =
  refilled(KEYS[1], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]))
if redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[7]) then
  level_j, level_s = level_j - tonumber(ARGV[1]), level_s - tonumber(ARGV[2])
  save(KEYS[1], level_j, level_s, at)
end
return {text(level_j), text(level_s), text(now)}
"""
)

SETTLE_JOB = Script(
    _COMMON
    + """
-- KEYS: the bucket, the mark of the job
-- ARGV: joules and seconds to give back (below 0: to charge), lifetime of the mark in s
-- Answers 1, or 0 when the tenant has no bucket or the job was settled before. What is above the burst, the next refill
-- takes away.
local stored = redis.call('HMGET', KEYS[1], 'joules', 'seconds', 'at')
local joules, seconds, at = number(stored[1]), number(stored[2]), number(stored[3])
if not (joules and seconds and at) then return 0 end
if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[3]) then return 0 end
save(KEYS[1], joules + tonumber(ARGV[1]), seconds + tonumber(ARGV[2]), at)
return 1
"""
)
