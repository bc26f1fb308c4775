#!lua
-- Enqueue one request whose endpoint record this connection has not stored within some minutes.
-- (With the record known to be stored a plain RPUSH does the same.)
--
-- KEYS[1] ready  list   items, oldest left
-- KEYS[2] ep     string the endpoint record
-- ARGV[1] TTL of the record in seconds
-- ARGV[2] record
-- ARGV[3…] elements
-- Reply: the depth behind it; or the error CONFLICT when other content is stored under the record's id,
-- and then nothing is written.
local stored = redis.call('GET', KEYS[2])
if stored and stored ~= ARGV[2] then
  return redis.error_reply('CONFLICT another record is stored under this id')
end
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[1])
local depth = 0
for first = 3, #ARGV, 1000 do -- unpack has a limit of some 8,000
  depth = redis.call('RPUSH', KEYS[1], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
return depth
