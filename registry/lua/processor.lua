-- Keep the list of live processors, and tell the time by which leases of processors lapse. The list
-- of the processors' ports for tools is kept likewise.
--
-- KEYS[1]  live processors: a sorted set of their names by the second in which their leases lapse
-- ARGV[1]  the name of the processor whose lease is renewed; "" to read alone
-- ARGV[2]  life of the lease in seconds; "0": the processor leaves
--
-- Returns Redis's time in milliseconds, then the names of the live processors.

local seconds, micros = unpack(redis.call('TIME'))
if ARGV[1] ~= '' then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', seconds)
  if ARGV[2] == '0' then
    redis.call('ZREM', KEYS[1], ARGV[1])
  else
    redis.call('ZADD', KEYS[1], seconds + ARGV[2], ARGV[1])
  end
end
local names = redis.call('ZRANGE', KEYS[1], '(' .. seconds, '+inf', 'BYSCORE')
table.insert(names, 1, seconds * 1000 + math.floor(micros / 1000))
return names
