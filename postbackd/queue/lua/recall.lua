#!lua flags=allow-oom
-- Bring parked items forward whose host has room now: they are due at once. Items that wait for their retry or their
-- deliver_at stay: what a lane has parked is told by its due time, which ends in half a millisecond.
-- allow-oom: members only change their score.
--
-- KEYS[1] later  zset  item → due ms
-- ARGV[1] where to look from, as the last reply said; '' = from now on
-- ARGV[2] how many to look at, at most 1,000
-- then    for each host: how many to bring forward, count of its endpoint ids, then those (8 bytes each)
-- Reply: {where to look from next, '' = the end was reached; for each host: how many were brought forward, and how many
-- were seen beyond that}.
local later = KEYS[1]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local from, pages = ARGV[1], tonumber(ARGV[2])
if from == '' then
  from = '(' .. now_ms
end

local host_of, left, reply = {}, {}, {''}
local position = 3
while position <= #ARGV do
  local host = #left + 1
  left[host] = tonumber(ARGV[position])
  reply[2 * host], reply[2 * host + 1] = 0, 0
  local ids = tonumber(ARGV[position + 1])
  for i = position + 2, position + 1 + ids do
    host_of[ARGV[i]] = host
  end
  position = position + 2 + ids
end

local found = redis.call('ZRANGEBYSCORE', later, from, '+inf', 'WITHSCORES', 'LIMIT', 0, pages)
for i = 1, #found, 2 do
  if tonumber(found[i + 1]) % 1 == 0.5 then
    local item = found[i]
    local start = string.byte(item) == 0xdc and 6 or 4 -- the element: an array (of more than 15: 0xdc), a bin of 8
    local host = host_of[string.sub(item, start, start + 7)]
    if host then
      if left[host] > 0 then
        left[host] = left[host] - 1
        redis.call('ZADD', later, now_ms - 0.5, item)
        reply[2 * host] = reply[2 * host] + 1
      else
        reply[2 * host + 1] = reply[2 * host + 1] + 1
      end
    end
  end
end
if #found == 2 * pages then -- the last score once more, unless the page has no other: items of one ms may go over its end
  local first, last = found[2], found[#found]
  reply[1] = (first == last and '(' or '') .. last
end
return reply
