#!lua
-- Give dead letters back to ready, each in one step: an entry is in dead or in ready, never in both nor in none.
--
-- KEYS[1] dead   stream  item, record, reason, answer
-- KEYS[2] ready  list    items, oldest left
-- KEYS[3…] ep    string  endpoint records of the entries
-- ARGV[1] record TTL in seconds
-- then    for each entry, 500 at most: its id in the stream, number of its ep key from 1 (0 = it has no record)
-- Reply: how many went back. One that is gone (replayed or purged meanwhile) is passed over.
-- The item gets the server's time behind it, as an integer: a new start, from which attempts and expiry count.
local dead, ready = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local start = cmsgpack.pack(time[1] * 1000 + math.floor(time[2] / 1000))
local count = 0
for i = 2, #ARGV, 2 do
  local id, number = ARGV[i], tonumber(ARGV[i + 1])
  local entry = redis.call('XRANGE', dead, id, id)[1]
  if entry then
    local fields = {}
    for f = 1, #entry[2], 2 do
      fields[entry[2][f]] = entry[2][f + 1]
    end
    if number > 0 and fields.record ~= '' then
      redis.call('SET', KEYS[2 + number], fields.record, 'NX')
      redis.call('EXPIRE', KEYS[2 + number], ARGV[1])
    end
    redis.call('RPUSH', ready, fields.item .. start)
    redis.call('XDEL', dead, id)
    count = count + 1
  end
end
return count
