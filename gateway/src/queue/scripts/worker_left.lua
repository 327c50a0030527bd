-- A worker's stream ended. Nothing happens when it has attached elsewhere meanwhile.
-- ARGV: worker id, session
local P = string.sub(KEYS[1], 1, -5)
local worker, session = ARGV[1], ARGV[2]
if not (worker and session) then return redis.error_reply('ERR worker_left: bad arguments') end
local v = redis.call('HMGET', P .. 'worker:' .. worker, 'session', 'model', 'stage')
if v[1] ~= session then return 0 end
redis.call('ZREM', P .. 'live:' .. v[2] .. ':' .. v[3], worker)
redis.call('ZREM', P .. 'seen', worker)
redis.call('DEL', P .. 'worker:' .. worker)
redis.call('PUBLISH', P .. 'reg', v[2])
return 1
