#!lua
-- Give dead letters of an overflow file back to ready, each once, however often this is called.
--
-- KEYS[1] dead      stream  what still stands there is left to `replay`
-- KEYS[2] ready     list    items, oldest left
-- KEYS[3] restored  hash    mark → 1: what this script has given back already
-- KEYS[4…] ep       string  endpoint records
-- ARGV[1] TTL of record and of restored in seconds
-- then    for each letter, 500 at most: its entry id ('' = of another shard's stream), mark (the entry id, with the shard
--         where that is another), item, record ('' = none), number of its ep key from 1 (0 = none)
-- Reply: how many went back now.
-- The item gets the server's time behind it, as an integer: a new start, from which attempts and expiry count.
local dead, ready, restored = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local start = cmsgpack.pack(time[1] * 1000 + math.floor(time[2] / 1000))
local count = 0
for i = 2, #ARGV, 5 do
  local id, mark, item, record, number = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], tonumber(ARGV[i + 4])
  local is_there = id ~= '' and #redis.call('XRANGE', dead, id, id) > 0
  if not is_there and redis.call('HSETNX', restored, mark, 1) == 1 then
    if number > 0 then
      redis.call('SET', KEYS[3 + number], record, 'NX')
      redis.call('EXPIRE', KEYS[3 + number], ARGV[1])
    end
    redis.call('RPUSH', ready, item .. start)
    count = count + 1
  end
end
redis.call('EXPIRE', restored, ARGV[1])
return count
