-- See to it that a generation of keys has its marker: where the keys are lost, the marker is too.
-- A marker that another server made came here by a failover, a restore or a move of the slot, and
-- the last writes may not have come with it. One from the future is older than a clock set back.
--
-- KEYS[1]  the marker, "<server> <made>": the run id of its maker, epoch microseconds by its clock
--
-- Returns the marker: another one than before where keys may have been lost.

local seconds, micros = unpack(redis.call('TIME'))
local now = seconds * 1e6 + micros
-- Where an operator hides this, only a marker that is gone tells.
local info = redis.pcall('INFO', 'server')
local server = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or '-'
local marker = redis.call('MGET', KEYS[1])[1] or ''
local maker, made = string.match(marker, '^(%S+) (%d+)$')
if maker ~= server or #made > 16 or tonumber(made) > now + 1e6 then
  marker = string.format('%s %.0f', server, now)
  redis.call('SET', KEYS[1], marker)
end
return marker
