-- An attempt failed. It is tried again after a delay while the error budget lasts.
-- ARGV: id, nonce, reason, message, '1' when another attempt may help, failures of a job that are kept,
--       delay ms before attempt 2, before attempt 3, …
-- Reply: {'accepted' | 'duplicate' | 'stale', state now}
local id, nonce, reason, message, retriable = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
HISTORY = tonumber(ARGV[6])
-- The first delay's place.
local FIRST = 7
local bad = is_empty(id) or is_empty(nonce) or not (tonumber(reason) and message and retriable and HISTORY) or HISTORY < 1
for i = FIRST, #ARGV do bad = bad or not tonumber(ARGV[i]) end
if bad then return redis.error_reply('ERR fail: bad arguments') end

local job = load(id, 'owner', 'attempts')
if not job then return { 'stale', '' } end
if redis.call('HGET', P .. 'j:' .. id, 'failed') == nonce then return { 'duplicate', job.state } end
if job.state ~= 'running' or job.nonce ~= nonce then return { 'stale', job.state } end

local attempts = number(job.attempts) + 1
local delay = retriable == '1' and tonumber(ARGV[FIRST - 1 + attempts])
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
