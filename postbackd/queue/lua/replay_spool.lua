#!lua
-- Enqueue one request from a spool file, exactly in the file's order and at most once per number.
--
-- KEYS[1] ready    list    items, oldest left
-- KEYS[2] spooled  string  last number of this spool file that was enqueued
-- KEYS[3] ep       string  the request's endpoint record
-- ARGV[1] number of the request in its file, from 1
-- ARGV[2] TTL of spooled in seconds
-- ARGV[3] TTL of the record in seconds
-- ARGV[4] record
-- ARGV[5…] elements; none: the number is passed over
-- Reply: the last number enqueued, which is ARGV[1] when this one is in (now or before); or the error CONFLICT when
-- other content is stored under the record's id, and then nothing is written.
local done = tonumber(redis.call('GET', KEYS[2]) or '0')
if tonumber(ARGV[1]) ~= done + 1 then -- in already; or the server has lost what came before: the caller goes back
  return done
end
if #ARGV > 4 then
  local stored = redis.call('GET', KEYS[3])
  if stored and stored ~= ARGV[4] then
    return redis.error_reply('CONFLICT another record is stored under this id')
  end
  redis.call('SET', KEYS[3], ARGV[4], 'EX', ARGV[3])
  for first = 5, #ARGV, 1000 do -- unpack has a limit of some 8,000
    redis.call('RPUSH', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
  end
end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
return done + 1
