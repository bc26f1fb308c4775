#!lua flags=allow-oom
-- Give every item of a worker's lease back to ready, in one step: no worker is ever half reclaimed.
--
-- KEYS[1] lease    hash  token → item; field n = next token
-- KEYS[2] ready    list  items, oldest left
-- KEYS[3] workers  zset  worker → lease clock at its last claim
-- KEYS[4] clock    hash  at = server ms, ms = lease clock
-- ARGV[1] worker
-- ARGV[2] why: timeout (only if its heartbeat is still too old), death (its process is known to have ended), or
--         drain (its own, at a clean stop: the items were not in the hands of a dying worker and get no reclaim mark)
-- ARGV[3] lease timeout in ms
-- Reply: how many items went back.
-- Field n stays for 24 h: a late claim of the dead worker finds it and is told that its lease is lost.
local lease, ready, workers, clock = unpack(KEYS)
local worker, why, lease_timeout_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
if why == 'timeout' then
  local score = tonumber(redis.call('ZSCORE', workers, worker) or nil)
  local clock_ms = tonumber(redis.call('HGET', clock, 'ms') or '0')
  if not score or score >= clock_ms - lease_timeout_ms then
    return 0
  end
end

local mark = why == 'drain' and '' or '\192'
local fields = redis.call('HGETALL', lease)
local items, next_token = {}, nil
for i = 1, #fields, 2 do
  if fields[i] == 'n' then
    next_token = fields[i + 1]
  else
    items[#items + 1] = fields[i + 1] .. mark
  end
end
for first = 1, #items, 1000 do
  redis.call('LPUSH', ready, unpack(items, first, math.min(first + 999, #items)))
end
redis.call('DEL', lease)
if next_token then
  redis.call('HSET', lease, 'n', next_token)
  redis.call('EXPIRE', lease, 86400)
end
redis.call('ZREM', workers, worker)
return #items
