#!lua flags=allow-oom
-- Take up to n items into the worker's lease, in one step; the worker's heartbeat is this call and no other.
-- allow-oom: a full server must still hand out work, or it stays full for ever.
--
-- KEYS[1] ready    list   items, oldest left
-- KEYS[2] wake     list   items moved by an idle wait; belong to nobody, taken first
-- KEYS[3] later    zset   item → due ms
-- KEYS[4] lease    hash   token → item; field n = next token
-- KEYS[5] workers  zset   worker → lease clock at its last claim
-- KEYS[6] clock    hash   at = server ms, ms = lease clock
-- ARGV[1] worker
-- ARGV[2] base: the next token the worker expects
-- ARGV[3] held: items it holds, without those of a settle sent ahead of this call in the same write
-- ARGV[4] n, at most 512; 0 is a heartbeat alone
-- ARGV[5] lease timeout in ms
-- Reply: {'ok', base, items, ms to the next due item or nil, a worker whose heartbeat is too old or nil};
-- {'lost'} when the lease was reclaimed or the server went back in time. The next due item is looked up only
-- when the claim came short: a full one is followed by another at once.
local ready, wake, later, lease, workers, clock = unpack(KEYS)
local worker, base, held, wanted = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local lease_timeout_ms = tonumber(ARGV[5])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- The lease clock advances with server time, at most 2 s a step: a paused or restarted server expires nobody.
local saved = redis.call('HMGET', clock, 'at', 'ms')
local at_ms, clock_ms = tonumber(saved[1]), tonumber(saved[2]) or 0
if not at_ms or now_ms - at_ms >= 100 or now_ms < at_ms then
  if at_ms then
    clock_ms = clock_ms + math.min(math.max(now_ms - at_ms, 0), 2000)
  end
  redis.call('HSET', clock, 'at', now_ms, 'ms', clock_ms)
end

local next_token = tonumber(redis.call('HGET', lease, 'n') or nil)
if not redis.call('ZSCORE', workers, worker) then
  if base ~= 0 or held ~= 0 or next_token then
    return {'lost'}
  end
  redis.call('HSET', lease, 'n', 0)
  next_token = 0
end
redis.call('ZADD', workers, clock_ms, worker)
if not next_token or next_token < base or redis.call('HLEN', lease) - 1 ~= held + next_token - base then
  return {'lost'}
end

local items = {}
local function take(found)
  for i = 1, #found do
    items[#items + 1] = found[i]
  end
end

if next_token > base then -- an earlier claim's answer did not arrive: give the same items again, take nothing new
  local tokens = {}
  for token = base, next_token - 1 do
    tokens[#tokens + 1] = token
  end
  items = redis.call('HMGET', lease, unpack(tokens))
elseif wanted > 0 then
  local waking = redis.call('LLEN', wake)
  local fresh = waking + redis.call('LLEN', ready)
  -- Parked items get half at most while fresh ones wait, and fresh ones half while parked ones are due: neither
  -- starves the other. A claim of one gives them turns.
  local half = wanted == 1 and next_token % 2 or math.floor(wanted / 2)
  local due = redis.call('ZRANGEBYSCORE', later, '-inf', now_ms, 'LIMIT', 0, math.max(half, wanted - fresh))
  if #due > 0 then
    redis.call('ZREM', later, unpack(due))
    take(due)
  end
  if #items < wanted and waking > 0 then
    take(redis.call('LPOP', wake, wanted - #items))
  end
  if #items < wanted and fresh > waking then
    take(redis.call('LPOP', ready, wanted - #items))
  end
  if #items > 0 then
    local fields = {'n', next_token + #items}
    for i = 1, #items do -- at most 512, so 1,026 values: below what unpack can hold
      fields[#fields + 1] = next_token + i - 1
      fields[#fields + 1] = items[i]
    end
    redis.call('HSET', lease, unpack(fields))
  end
end

local next_due_ms = false
if #items < wanted then
  local first = redis.call('ZRANGE', later, 0, 0, 'WITHSCORES')
  if first[2] then
    next_due_ms = math.max(tonumber(first[2]) - now_ms, 0)
  end
end
local expired = redis.call('ZRANGEBYSCORE', workers, '-inf', '(' .. (clock_ms - lease_timeout_ms), 'LIMIT', 0, 1)
return {'ok', base, items, next_due_ms, expired[1] or false}
