-- A shard gives a job back unfinished; no budget pays for it. It goes to its old place in the queue.
-- ARGV: id, nonce, checkpoint or ''
-- Reply: {'accepted' | 'duplicate' | 'stale', state now}
local id, nonce, checkpoint = ARGV[1], ARGV[2], ARGV[3]
if is_empty(id) or is_empty(nonce) or not checkpoint then return redis.error_reply('ERR release: bad arguments') end

local job = load(id)
if not job then return { 'stale', '' } end
if redis.call('HGET', P .. 'j:' .. id, 'released') == nonce then return { 'duplicate', job.state } end
local late = job.state == 'queued' and job.prev == nonce
if not late and (job.state ~= 'running' or job.nonce ~= nonce) then return { 'stale', job.state } end

if checkpoint ~= '' then redis.call('HSET', P .. 'j:' .. id, 'ckpt', checkpoint) end
if late then
  redis.call('HDEL', P .. 'j:' .. id, 'prev')
  save(job, 'released', nonce, 'reported', nonce, forgive(job))
else
  requeue(job, '', 'released', nonce, 'reported', nonce)
end
return { 'accepted', 'queued' }
