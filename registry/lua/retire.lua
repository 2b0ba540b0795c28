-- Give up a node's lease, unless the lease is of another epoch by now: a goodbye.
--
-- KEYS[1]  the node's lease, "<epoch> <address>"
-- KEYS[2]  the names of nodes, a sorted set
-- KEYS[3]  the last change among leases; see heartbeat.lua
-- KEYS[4]  where the node was last; see heartbeat.lua. After a goodbye no node is lost, also where
--          the lease has lapsed before
-- KEYS[5]  the epoch that said goodbye last, with a TTL: tells readers who vouch for a node
--          (registry/redis_store.py) a goodbye from a lease that lapsed
-- ARGV[1]  the node's name
-- ARGV[2]  the node's epoch
-- ARGV[3]  TTL of KEYS[5], milliseconds
--
-- With KEYS[5] alone, as KEYS[1] (on a Cluster, while the slot of the keys moves): the epoch is noted
-- as gone, and counts no more; the lease lapses by itself, and the caller writes KEYS[3].
--
-- Returns 1 if the node said goodbye, 0 if another epoch has the name; 2 with KEYS[5] alone.

if #KEYS == 1 then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 2
end
local found = redis.call('MGET', KEYS[1], KEYS[4])
local place = found[1] or found[2]
if place and string.sub(place, 1, #ARGV[2] + 1) ~= ARGV[2] .. ' ' then
  return 0
end
-- First what Redis may refuse (it deletes even when its memory is full): all of this happens, or
-- nothing.
local seconds, micros = unpack(redis.call('TIME'))
redis.call('SET', KEYS[3], table.concat({ARGV[2], seconds, micros}, ' '))
redis.call('SET', KEYS[5], ARGV[2], 'PX', ARGV[3])
redis.call('DEL', KEYS[1], KEYS[4])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
