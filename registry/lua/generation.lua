-- Make the marker of a generation of keys, unless this server made a valid marker before.
--
-- The marker is lost together with the keys, so an absent marker shows a loss. A marker that was
-- made by another server came here by a failover, a restore or a move of the slot, and the last
-- writes may not have come along. A marker from the future was made before this server's clock was
-- set back.
--
-- KEYS[1]  the marker, "<server> <made>": the run id of the server that made the marker, and when,
--          in epoch microseconds by that server's clock
--
-- Returns the marker: a new marker where keys may have been lost, else the marker of before.

local seconds, micros = unpack(redis.call('TIME'))
local now = seconds * 1e6 + micros
-- Where an operator forbids INFO, every server has the id "-": then only an absent marker shows a
-- loss.
local info = redis.pcall('INFO', 'server')
local server = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or '-'
local marker = redis.call('MGET', KEYS[1])[1] or ''
local maker, made = string.match(marker, '^(%S+) (%d+)$')
if maker ~= server or #made > 16 or tonumber(made) > now + 1e6 then
  marker = string.format('%s %.0f', server, now)
  redis.call('SET', KEYS[1], marker)
end
return marker
