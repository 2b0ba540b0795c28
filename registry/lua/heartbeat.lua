-- Renew a node's lease.
--
-- KEYS[1]  the node's lease, "<epoch> <address>", with a TTL
-- KEYS[2]  the names of nodes, a sorted set by the time of their last heartbeat
-- KEYS[3]  the last change among leases: who read them at this value knows them all
-- ARGV[1]  name
-- ARGV[2]  epoch
-- ARGV[3]  address
-- ARGV[4]  TTL of the lease, milliseconds
-- ARGV[5]  "1": take the lease over from another epoch (a start); "0": leave another's alone
--
-- Returns HELD, LAPSED or TAKEN (registry/directory.py).

local seconds, micros = unpack(redis.call('TIME'))
local held = redis.call('GET', KEYS[1])
local mine = held and string.sub(held, 1, #ARGV[2] + 1) == ARGV[2] .. ' '
if held and not mine and ARGV[5] == '0' then
  return 'TAKEN'
end
redis.call('SET', KEYS[1], ARGV[2] .. ' ' .. ARGV[3], 'PX', ARGV[4])
redis.call('ZADD', KEYS[2], seconds, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', seconds - 3600)
if mine then
  return 'HELD'
end
redis.call('SET', KEYS[3], table.concat({ARGV[2], seconds, micros}, ' '))
return 'LAPSED'
