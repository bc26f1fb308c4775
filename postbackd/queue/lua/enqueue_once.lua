#!lua
-- Enqueue one request with an Idempotency-Key: once in 24 h, decided in the same step.
--
-- KEYS[1] once   string msgpack [body hash, ids], TTL 24 h
-- KEYS[2] ready  list   items, oldest left
-- KEYS[3] ep     string the endpoint record
-- ARGV[1] body hash
-- ARGV[2] ids, 8 bytes each
-- ARGV[3] TTL of once in seconds
-- ARGV[4] TTL of the record in seconds
-- ARGV[5] record
-- ARGV[6…] elements
-- Reply: {'new', ids, depth}; {'same', the first request's ids, 0}; {'differs'} when the key came with another body.
-- The error CONFLICT when other content is stored under the record's id. Only 'new' enqueues anything.
local once, ready, ep = KEYS[1], KEYS[2], KEYS[3]
local hash, ids, once_ttl, ttl, record = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local kept = redis.call('GET', once)
if kept then
  local first = cmsgpack.unpack(kept)
  if first[1] ~= hash then
    return {'differs'}
  end
  redis.call('SET', once, kept, 'KEEPTTL') -- a write, so that a WAIT behind it proves that replicas have the first
  return {'same', first[2], 0}
end
local stored = redis.call('GET', ep)
if stored and stored ~= record then
  return redis.error_reply('CONFLICT another record is stored under this id')
end
redis.call('SET', ep, record, 'EX', ttl)
redis.call('SET', once, cmsgpack.pack({hash, ids}), 'EX', once_ttl)
local depth = 0
for first = 6, #ARGV, 1000 do -- unpack has a limit of some 8,000
  depth = redis.call('RPUSH', ready, unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
return {'new', ids, depth}
