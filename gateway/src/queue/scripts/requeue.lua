-- A job back into its queue now, because an operator says so: taken from its shard, out of its delay, or from the dead.
-- No budget pays for it; the shard that had it is revoked and its result counts no more.
-- ARGV: id
-- Reply: 'queued' | 'ended' | 'unknown'
local id = ARGV[1]
if not id then return redis.error_reply('ERR requeue: bad arguments') end

local job = load(id, 'owner')
if not job then return 'unknown' end
if job.state == 'running' then
  revoke(job, 'requeued')
  requeue(job, '')
elseif job.state == 'delayed' then
  requeue(job, '')
elseif job.state == 'failed' then
  revive(job)
elseif job.state ~= 'queued' then
  return 'ended'
end
return 'queued'
