#!lua flags=allow-oom
-- Record the outcomes of attempts: delivered items leave, others go to later or to the dead letters.
-- Names tokens of the worker's own lease only: from a worker whose lease was reclaimed it changes nothing.
--
-- KEYS[1] lease  hash    token → item; field n = next token
-- KEYS[2] later  zset    item → due ms
-- KEYS[3] dead   stream  item, record, reason, answer
-- KEYS[4] stats  hash    counters
-- KEYS[5…] ep    string  endpoint records of the dead ones
-- ARGV[1] record TTL in seconds
-- ARGV[2] count of acks, then that many tokens
-- then    count of laters, then for each: token, delay in ms, trail entry ('' = parked, no attempt used)
-- then    count of deads, then for each: token, trail entry, reason, last answer, number of its ep key from 1 (0 = none)
-- Reply: how many of the tokens were there.
local lease, later, dead, stats = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local position = 2
local function argument()
  position = position + 1
  return ARGV[position - 1]
end

local settled = 0
local acks = tonumber(argument())
for first = position, position + acks - 1, 1000 do
  settled = settled + redis.call('HDEL', lease, unpack(ARGV, first, math.min(first + 999, position + acks - 1)))
end
position = position + acks
if settled > 0 then
  redis.call('HINCRBY', stats, 'delivered', settled)
end

local gone = {}
for _ = 1, tonumber(argument()) do
  local token, delay_ms, entry = argument(), argument(), argument()
  local item = redis.call('HGET', lease, token)
  if item then
    redis.call('ZADD', later, now_ms + delay_ms, item .. entry)
    gone[#gone + 1] = token
  end
end

for _ = 1, tonumber(argument()) do
  local token, entry, reason, answer, number = argument(), argument(), argument(), argument(), tonumber(argument())
  local item = redis.call('HGET', lease, token)
  if item then
    local record = ''
    if number > 0 then
      record = redis.call('GET', KEYS[4 + number]) or ''
      redis.call('EXPIRE', KEYS[4 + number], ARGV[1])
    end
    redis.call('XADD', dead, '*', 'item', item .. entry, 'record', record, 'reason', reason, 'answer', answer)
    redis.call('HINCRBY', stats, 'dead', 1)
    gone[#gone + 1] = token
  end
end

for first = 1, #gone, 1000 do
  settled = settled + redis.call('HDEL', lease, unpack(gone, first, math.min(first + 999, #gone)))
end
return settled
