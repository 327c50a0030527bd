-- An operator wants a worker to give its jobs back and end. Told with its next heartbeat, and until it is gone.
-- ARGV: worker id
-- Reply: 1, or 0 when no such worker is attached
local P = string.sub(KEYS[1], 1, -5)
local worker = ARGV[1]
if not worker then return redis.error_reply('ERR worker_drain: bad arguments') end
if redis.call('EXISTS', P .. 'worker:' .. worker) == 0 then return 0 end
redis.call('HSET', P .. 'worker:' .. worker, 'drain', 1)
return 1
