-- Give up a node's lease, unless the lease is of another epoch by now: a goodbye.
--
-- KEYS[1]  the node's lease, "<epoch> <address>"
-- KEYS[2]  the names of nodes, a sorted set
-- KEYS[3]  the last change among leases; see heartbeat.lua
-- KEYS[4]  where the node was last; see heartbeat.lua. After a goodbye no node is lost, also where
--          the lease has lapsed before
-- ARGV[1]  the node's name
-- ARGV[2]  the node's epoch
--
-- Returns 1 if the node was live or lost, else 0.

local found = redis.call('MGET', KEYS[1], KEYS[4])
local place = found[1] or found[2]
if not place or string.sub(place, 1, #ARGV[2] + 1) ~= ARGV[2] .. ' ' then
  return 0
end
-- First what Redis may refuse (it deletes even when its memory is full): all of this happens, or
-- nothing.
local seconds, micros = unpack(redis.call('TIME'))
redis.call('SET', KEYS[3], table.concat({ARGV[2], seconds, micros}, ' '))
redis.call('DEL', KEYS[1], KEYS[4])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
