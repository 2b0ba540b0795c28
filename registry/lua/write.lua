-- Assert or remove one node's own element in users' entries, and drop what has expired.
-- An entry is "<name>:<epoch>:<expires-at> …": elements with one space between them, epoch seconds.
--
-- KEYS[i]      user i's entry; on a Cluster all of one bucket
-- ARGV[1]      the writing node's tag, "<name>:<epoch>"
-- ARGV[2]      the life of an element, seconds
-- ARGV[2 + i]  "1": user i is here, assert the element; "0": remove it

local now = tonumber(redis.call('TIME')[1])
local mine = ARGV[1]
-- Whole minutes, so that equal entries are equal bytes and readers can remember what they mean.
local expires = math.ceil((now + tonumber(ARGV[2])) / 60) * 60
-- No element of ours lives longer than a month, and no entry of ours is this long.
local furthest, longest = now + 31 * 86400, 65536

local entries = redis.call('MGET', unpack(KEYS))
for i, key in ipairs(KEYS) do
  local kept, latest = {}, 0
  local entry = entries[i] or ''
  if #entry > longest then entry = '' end
  -- Element by element: one pattern over an entry that is not ours would try every start against
  -- every end, and keep Redis from answering anybody.
  for element in string.gmatch(entry, '%S+') do
    local tag, at = string.match(element, '^([^:]+:[^:]+):(%d+)$')
    at = tonumber(at) or 0
    if tag ~= mine and at > now and at <= furthest then
      kept[#kept + 1] = string.format('%s:%d', tag, at)
      latest = math.max(latest, at)
    end
  end
  if ARGV[2 + i] == '1' then
    kept[#kept + 1] = string.format('%s:%d', mine, expires)
    latest = math.max(latest, expires)
  end
  if #kept > 0 then
    redis.call('SET', key, table.concat(kept, ' '), 'EXAT', latest)
  elseif entries[i] then
    redis.call('DEL', key)
  end
end
return #KEYS
