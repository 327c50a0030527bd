-- Moves on what time has overtaken: leases that ran out, delays that are over, deadlines that passed.
-- ARGV: most jobs of each kind, crashes that make a job dead, failures of a job that are kept
-- Reply: {leases lost, of those dead, delays over, deadlines passed}; a full batch means that more may wait
local limit, budget = tonumber(ARGV[1]), tonumber(ARGV[2])
HISTORY = tonumber(ARGV[3])
if not (limit and budget and HISTORY) or limit < 0 or limit > 100 or HISTORY < 1 then
  return redis.error_reply('ERR reap: bad arguments')
end

local clock = lease_clock()
local lost, dead, over, passed = 0, 0, 0, 0

for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'deadline', '-inf', NOW, 'LIMIT', 0, limit)) do
  local job = load(id, 'owner')
  if job and LIVE[job.state] then
    revoke(job, 'deadline')
    bury(job, 5, 'the deadline passed before the job was done')
    passed = passed + 1
  else
    redis.call('ZREM', P .. 'deadline', id)
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'lease', '-inf', clock, 'LIMIT', 0, limit)) do
  local job = load(id, 'owner', 'acked', 'crashes', 'unacked')
  if job and job.state == 'running' then
    -- A lease that nobody ever gave a sign of may not have reached its worker: a gateway died with it. That is no crash,
    -- unless it happens so often that the job itself must be what kills its worker at once.
    local crashes, unacked, charged = number(job.crashes), number(job.unacked), 'crashes'
    if job.acked ~= job.nonce and unacked < budget then
      unacked, charged = unacked + 1, 'unacked'
    else
      crashes = crashes + 1
    end
    lost = lost + 1
    if crashes >= budget then
      dead = dead + 1
      bury(job, 4, crashes .. ' shards were lost while they held this job; it is not tried again', 'crashes', crashes)
    else
      note(job, 4, 'the shard was lost')
      requeue(job, job.nonce, 'crashes', crashes, 'unacked', unacked, 'charged', charged)
    end
  else
    redis.call('ZREM', P .. 'lease', id)
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'delay', '-inf', NOW, 'LIMIT', 0, limit)) do
  local job = load(id)
  if job and job.state == 'delayed' then
    requeue(job, '')
    over = over + 1
  else
    redis.call('ZREM', P .. 'delay', id)
  end
end
return { lost, dead, over, passed }
