-- Give up a node's lease, unless the lease is of another epoch by now.
--
-- KEYS[1]  the node's lease, "<epoch> <address>"
-- KEYS[2]  the names of nodes, a sorted set
-- KEYS[3]  the last change among leases; see heartbeat.lua
-- ARGV[1]  the node's name
-- ARGV[2]  the node's epoch
--
-- Returns 1 if the lease was given up, else 0.

local lease = redis.call('GET', KEYS[1])
if not lease or string.sub(lease, 1, #ARGV[2] + 1) ~= ARGV[2] .. ' ' then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
local seconds, micros = unpack(redis.call('TIME'))
redis.call('SET', KEYS[3], table.concat({ARGV[2], seconds, micros}, ' '))
return 1
