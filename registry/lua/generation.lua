-- Make the marker of a generation of keys, unless this server made a valid marker before.
--
-- The marker is lost together with the keys, so an absent marker shows a loss. A marker that was
-- made by another server came here by a failover or a restore, and the last writes may not have come
-- along; or the slot of the keys moved, and nothing is lost: only the caller can tell
-- (registry/generations.py). A marker from the future was made before this server's clock was set
-- back. Where the server has evicted keys since the marker was made, entries may be among them.
--
-- KEYS[1]  the marker, "<server> <made>": the run id of the server that made the marker, and when,
--          in epoch microseconds by that server's clock
-- KEYS[2]  how many keys the server had evicted when the marker was made (INFO's evicted_keys).
--          Absent while the slot of the keys moves, on a Cluster: evictions are not looked at
-- ARGV[1]  for a marker of another server: "ask", and the marker stays; or the marker itself, whose
--          slot has moved here: this server takes the marker over, made when it was (with KEYS[1]
--          alone later); "": the marker is made anew
--
-- Returns the marker, this server's run id, and how many keys the server has evicted.

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
local is_valid = maker and #made <= 16 and tonumber(made) <= now + 1e6

local function keep(text)
  marker = text
  redis.call('SET', KEYS[1], marker)
  if KEYS[2] then redis.call('SET', KEYS[2], evicted) end
end

if is_valid and maker ~= server and (ARGV[1] == 'ask' or ARGV[1] == marker) then
  if ARGV[1] == marker and KEYS[2] then keep(server .. ' ' .. made) end
  return {marker, server, evicted}
end
local has_evicted = KEYS[2] and found[2] ~= evicted
if not is_valid or maker ~= server or (has_evicted and now - tonumber(made) >= settle) then
  keep(string.format('%s %.0f', server, now))
end
return {marker, server, evicted}
