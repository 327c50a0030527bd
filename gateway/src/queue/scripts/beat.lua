-- Renews leases, and records progress and checkpoints.
-- ARGV: owner, lease ms, then for each lease: id, nonce, step, of, checkpoint or ''
-- Reply: for each lease 'held' | 'cancelled' | 'deadline' | 'reported' | 'lost'
local owner, lease = ARGV[1], tonumber(ARGV[2])
local bad = not (owner and lease) or (#ARGV - 2) % 5 ~= 0 or #ARGV > 502
for i = 3, #ARGV, 5 do bad = bad or ARGV[i] == '' or ARGV[i + 1] == '' end
if bad then return redis.error_reply('ERR beat: bad arguments') end

changed = {}
local expires = lease_clock() + lease
local replies = {}
for i = 3, #ARGV, 5 do
  local id, nonce, step, of, checkpoint = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local job = load(id, 'reported', 'acked', 'step', 'of', 'err_reason')
  local reply
  if not job then
    reply = 'lost'
  elseif job.reported == nonce then
    reply = 'reported'
  elseif job.state == 'queued' and job.prev == nonce then
    -- The lease ran out, but the shard is alive and nobody took the job over: it keeps it, and it was no crash.
    leave(job)
    redis.call('HDEL', P .. 'j:' .. id, 'prev')
    redis.call('ZADD', P .. 'lease', expires, id)
    count('running', job, 1)
    save(job, 'state', 'running', 'nonce', nonce, 'owner', owner, 'step', step, 'of', of, 'acked', nonce,
      forgive(job))
    reply = 'held'
  elseif job.state == 'running' and job.nonce == nonce then
    redis.call('ZADD', P .. 'lease', expires, id)
    if job.acked ~= nonce then redis.call('HSET', P .. 'j:' .. id, 'acked', nonce) end
    if job.step ~= step or job.of ~= of then save(job, 'step', step, 'of', of) end
    reply = 'held'
  elseif job.state == 'cancelled' then
    reply = 'cancelled'
  elseif job.state == 'failed' and job.err_reason == '5' then
    reply = 'deadline'
  else
    reply = 'lost'
  end
  if reply == 'held' and checkpoint ~= '' then redis.call('HSET', P .. 'j:' .. id, 'ckpt', checkpoint) end
  replies[#replies + 1] = reply
end
tell()
return replies
