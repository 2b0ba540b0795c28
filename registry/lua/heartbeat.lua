-- Renew a node's lease, or claim the lease at a start.
--
-- KEYS[1]  the node's lease, "<epoch> <address>", with a TTL
-- KEYS[2]  the names of nodes, a sorted set by the time of the last heartbeat; a name is dropped an
--          hour after the last heartbeat
-- KEYS[3]  the last change among leases: as long as the value is the same, no node has gained a
--          lease or given a lease up, and a reader of the leases knows all of them
-- KEYS[4]  where the node was last: the same text as the lease, and outlives the lease. A node
--          without a lease that has this key is lost (registry/directory.py)
-- KEYS[5]  the epoch that said goodbye last; see retire.lua
-- ARGV[1]  the node's name
-- ARGV[2]  the node's epoch
-- ARGV[3]  the node's internal address
-- ARGV[4]  TTL of the lease, milliseconds
-- ARGV[5]  "1" at a start: take the lease over from another epoch; "0": leave a lease of another
--          epoch alone
-- ARGV[6]  TTL of KEYS[4], milliseconds; "0": lost nodes are not kept
--
-- With KEYS[1] alone (on a Cluster, while the slot of the keys moves): the lease is renewed, and the
-- caller writes the other keys one by one.
--
-- Returns HELD, LAPSED or TAKEN (registry/directory.py); with KEYS[1] alone HELD ALONE or LAPSED
-- ALONE.

local seconds, micros = unpack(redis.call('TIME'))
local lease = redis.call('GET', KEYS[1])
local is_own = lease and string.sub(lease, 1, #ARGV[2] + 1) == ARGV[2] .. ' '
if lease and not is_own and ARGV[5] == '0' then
  return 'TAKEN'
end
local place = ARGV[2] .. ' ' .. ARGV[3]
redis.call('SET', KEYS[1], place, 'PX', ARGV[4])
if #KEYS == 1 then
  return (is_own and 'HELD' or 'LAPSED') .. ' ALONE'
end
if ARGV[6] == '0' then
  redis.call('DEL', KEYS[4])
else
  redis.call('SET', KEYS[4], place, 'PX', ARGV[6])
end
redis.call('ZADD', KEYS[2], seconds, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', seconds - 3600)
if is_own then
  return 'HELD'
end
redis.call('DEL', KEYS[5])
redis.call('SET', KEYS[3], table.concat({ARGV[2], seconds, micros}, ' '))
return 'LAPSED'
