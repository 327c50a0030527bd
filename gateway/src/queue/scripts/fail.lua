-- An attempt failed. It is tried again after a delay while the error budget lasts.
-- ARGV: id, nonce, reason, message, '1' when another attempt may help, delay ms before attempt 2, before attempt 3, …
-- Reply: {'accepted' | 'duplicate' | 'stale', state now}
local id, nonce, reason, message, retriable = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if not (id and nonce and tonumber(reason) and message and retriable) then
  return redis.error_reply('ERR fail: bad arguments')
end

local job = load(id)
if not job then return { 'stale', '' } end
if redis.call('HGET', P .. 'j:' .. id, 'failed') == nonce then return { 'duplicate', job.state } end
if job.state ~= 'running' or job.nonce ~= nonce then return { 'stale', job.state } end

local attempts = number(job.attempts) + 1
local delay = retriable == '1' and tonumber(ARGV[5 + attempts])
if not delay then
  bury(job, reason, message, 'attempts', attempts, 'failed', nonce, 'reported', nonce)
  return { 'accepted', 'failed' }
end
note(job, reason, message)
leave(job)
-- The next attempt starts afresh: the checkpoint may be what made this one fail.
redis.call('HDEL', P .. 'j:' .. id, 'nonce', 'prev', 'ckpt', 'step', 'of')
redis.call('ZADD', P .. 'delay', NOW + delay, id)
count('delayed', job, 1)
save(job, 'state', 'delayed', 'attempts', attempts, 'failed', nonce, 'reported', nonce, 'err_reason', reason,
  'err_message', message)
return { 'accepted', 'delayed' }
