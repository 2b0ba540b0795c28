-- Make the marker of a generation of keys, unless this server made a valid marker before.
--
-- The marker is lost together with the keys, so an absent marker shows a loss. A marker that was
-- made by another server came here by a failover, a restore or a move of the slot, and the last
-- writes may not have come along. A marker from the future was made before this server's clock was
-- set back. Where the server has evicted keys since the marker was made, entries may be among them.
--
-- KEYS[1]  the marker, "<server> <made>": the run id of the server that made the marker, and when,
--          in epoch microseconds by that server's clock
-- KEYS[2]  how many keys the server had evicted when the marker was made (INFO's evicted_keys).
--          Absent while the slot of the keys moves, on a Cluster: evictions are not looked at
--
-- Returns the marker: a new marker where keys may have been lost, else the marker of before.

local seconds, micros = unpack(redis.call('TIME'))
local now = seconds * 1e6 + micros
-- For evictions alone the marker is made anew once in this time: a server that evicts without end
-- would otherwise have every gateway assert every user at each heartbeat.
local settle = 5e6

local function info(section, field)
  -- Where an operator forbids INFO, every server has the id "-" and has evicted "-" keys: then only
  -- an absent marker shows a loss.
  local text = redis.pcall('INFO', section)
  return type(text) == 'string' and string.match(text, field .. ':(%w+)') or '-'
end

local server, evicted = info('server', 'run_id'), info('stats', 'evicted_keys')
local found = redis.call('MGET', unpack(KEYS))
local marker = found[1] or ''
local maker, made = string.match(marker, '^(%S+) (%d+)$')
local is_valid = maker == server and #made <= 16 and tonumber(made) <= now + 1e6
local has_evicted = KEYS[2] and found[2] ~= evicted
if not is_valid or (has_evicted and now - tonumber(made) >= settle) then
  marker = string.format('%s %.0f', server, now)
  redis.call('SET', KEYS[1], marker)
  if KEYS[2] then redis.call('SET', KEYS[2], evicted) end
end
return marker
