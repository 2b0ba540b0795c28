-- Assert or remove one node's own element in users' entries; drop expired elements of all nodes.
-- An entry is "<name>:<epoch>:<expires-at> …": elements with a single space between two elements,
-- expires-at in epoch seconds.
--
-- KEYS[i]      user i's entry; on a Cluster all keys are of one bucket
-- ARGV[1]      the writing node's tag, "<name>:<epoch>"
-- ARGV[2]      the life of an element, seconds
-- ARGV[2 + i]  "1": user i is here, assert the element; "0": remove it

local now = tonumber(redis.call('TIME')[1])
local own_tag = ARGV[1]
-- Whole minutes, so that users on the same nodes have byte-equal entries, and readers can remember
-- which nodes an entry means.
local own_expires_at = math.ceil((now + tonumber(ARGV[2])) / 60) * 60
-- No element of a gateway lives longer than a month, and no entry of gateways is this long. Other
-- bytes are not a gateway's, and are dropped.
local max_expires_at, max_entry_bytes = now + 31 * 86400, 65536

local entries = redis.call('MGET', unpack(KEYS))
for i, key in ipairs(KEYS) do
  local kept, latest = {}, 0
  local entry = entries[i] or ''
  if #entry > max_entry_bytes then entry = '' end
  -- Element by element: a single pattern over an entry that no gateway wrote would try every start
  -- against every end, and block Redis for all clients.
  for element in string.gmatch(entry, '%S+') do
    local tag, expires_at = string.match(element, '^([^:]+:[^:]+):(%d+)$')
    expires_at = tonumber(expires_at) or 0
    if tag ~= own_tag and expires_at > now and expires_at <= max_expires_at then
      kept[#kept + 1] = string.format('%s:%d', tag, expires_at)
      latest = math.max(latest, expires_at)
    end
  end
  if ARGV[2 + i] == '1' then
    kept[#kept + 1] = string.format('%s:%d', own_tag, own_expires_at)
    latest = math.max(latest, own_expires_at)
  end
  if #kept > 0 then
    redis.call('SET', key, table.concat(kept, ' '), 'EXAT', latest)
  elseif entries[i] then
    redis.call('DEL', key)
  end
end
return #KEYS
