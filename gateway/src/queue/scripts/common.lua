-- Stands before every script of a queue shard, as far as the script needs it (`compose` of the gateway takes the rest
-- out: what is not there costs nothing at each call). KEYS[1] is the shard's `meta` key, for routing and for the prefix;
-- every other key has the same hash tag. Each name is a statement of its own that begins a line.
--
-- A call into Redis costs more than all the Lua around it: what can be had in one is not asked for in two, also where it is
-- for several jobs.
--
-- A job is in exactly one place: queued (`q:` and `wait:`), running (`lease`), delayed (`delay`), or ended (`done`
-- or `dead`). `enqueue`, `leave` and `finish` are the only ways in and out. docs/queue.md describes keys and scripts.

local P = string.sub(KEYS[1], 1, -5)

local TIME = redis.call('TIME')
local NOW = TIME[1] * 1000 + math.floor(TIME[2] / 1000)

-- An outage of Redis or a jump of its clock adds at most this to the lease clock, so that it expires nothing.
local LONGEST_TICK = 2000
-- Failures of a job that are kept: an argument of the scripts that note one.
local HISTORY

local LIVE = { queued = true, running = true, delayed = true }

-- A job, or nil: the fields that moves need, and those named. As strings, '' when absent.
local function load(id, ...)
  local v = redis.call('HMGET', P .. 'j:' .. id, 'state', 'stage', 'model', 'tenant', 'stages', 'score', 'bytes', 'ver',
    'nonce', 'prev', ...)
  if not v[1] then return nil end
  local job = {
    id = id, state = v[1], stage = v[2] or '', model = v[3] or '', tenant = v[4] or '', stages = v[5] or '',
    score = v[6] or '', bytes = v[7] or '', ver = v[8] or '', nonce = v[9] or '', prev = v[10] or '',
    has_prev = v[10] ~= false,
  }
  for i = 1, select('#', ...) do job[select(i, ...)] = v[10 + i] or '' end
  return job
end

local function is_empty(text) return not text or text == '' end

-- One item of a call that has several: the answer, or nil and what broke. A key that something else has written over must not
-- end the call with the other items half done.
local function guarded(work, ...)
  local fine, answer = pcall(work, ...)
  if fine then return answer end
  return nil, type(answer) == 'table' and answer.err or tostring(answer)
end

local function number(text) return tonumber(text) or 0 end

local function pool_of(job) return job.model .. ':' .. job.stage end

-- Puts a job to those of its pool and tenant; `groups` is also the list of its groups, in order.
local function gather(groups, job)
  local name = pool_of(job) .. ':' .. job.tenant
  local group = groups[name]
  if not group then
    group = {}
    groups[name], groups[#groups + 1] = group, group
  end
  group[#group + 1] = job
end

-- Milliseconds that only pass while the queue is alive. Leases expire by it.
local function lease_clock()
  local stored = redis.call('HMGET', P .. 'clk', 'last', 'clock')
  local passed = NOW - (tonumber(stored[1]) or NOW)
  local clock = number(stored[2]) + math.max(0, math.min(passed, LONGEST_TICK))
  redis.call('HSET', P .. 'clk', 'last', NOW, 'clock', clock)
  return clock
end

-- A counter in a hash; 0 is no field.
local function add(key, field, by)
  if by ~= 0 and redis.call('HINCRBY', P .. key, field, by) == 0 then redis.call('HDEL', P .. key, field) end
end

-- The audit that is recounting, or nil. It tallies each live job once, marks it with `seen`, and from then on follows it
-- through `count` and `charge`; so what it has at the end is exact, though the queue moved all the time.
local audit
local function auditing()
  if audit == nil then audit = redis.call('GET', P .. 'audit') end
  return audit
end

-- The recount goes with its audit, also where the auditor does not come back.
local function keep_recount()
  redis.call('PEXPIRE', P .. 'recount', math.max(1, redis.call('PTTL', P .. 'audit')))
end

local function tally_state(job, state, by)
  add('recount', 'cnt:' .. state .. ':' .. pool_of(job) .. ':' .. job.tenant, by)
  add('recount', 'use:' .. job.tenant .. ':' .. state, by)
  keep_recount()
end

local function tally_bytes(job, by)
  add('recount', 'use:' .. job.tenant .. ':bytes', by)
  add('recount', 'use::bytes', by)
  keep_recount()
end

-- The audit that has counted the job, or ''.
local function seen_by(job)
  if not job.seen then job.seen = redis.call('HGET', P .. 'j:' .. job.id, 'seen') or '' end
  return job.seen
end

-- Takes a live job into the recount, unless it is there.
local function see(job)
  if seen_by(job) == audit then return false end
  job.seen = audit
  redis.call('HSET', P .. 'j:' .. job.id, 'seen', audit)
  tally_bytes(job, number(job.bytes))
  return true
end

-- Jobs of one pool and tenant into (1) or out of (-1) a live state.
local function count_all(state, jobs, by)
  local pool, tenant = pool_of(jobs[1]), jobs[1].tenant
  add('cnt', state .. ':' .. pool .. ':' .. tenant, by * #jobs)
  add('use:' .. tenant, state, by * #jobs)
  if not auditing() then return end
  for _, job in ipairs(jobs) do
    if by > 0 then see(job) end
    if seen_by(job) == audit then tally_state(job, state, by) end
  end
end

-- The same of one job.
local function count(state, job, by) count_all(state, { job }, by) end

-- Bytes that live jobs take up, on their tenants' accounts and on the queue's; `by[i]` more of the i-th job.
local function charge_all(jobs, by)
  local sums, all = {}, 0
  for i, job in ipairs(jobs) do
    sums[job.tenant] = (sums[job.tenant] or 0) + by[i]
    all = all + by[i]
  end
  for tenant, sum in pairs(sums) do add('use:' .. tenant, 'bytes', sum) end
  add('use:', 'bytes', all)
  if not auditing() then return end
  for i, job in ipairs(jobs) do
    if seen_by(job) == audit then tally_bytes(job, by[i]) end
  end
end

-- The same of one job.
local function charge(job, by) charge_all({ job }, { by }) end

-- Jobs that changed and whose doorbell waits for `tell`, in a script that gathers them.
local changed

-- Rings for those, once.
local function tell()
  if #changed > 0 then redis.call('PUBLISH', P .. 'ev', table.concat(changed, ' ')) end
  changed = nil
end

-- Writes fields of a job and makes the change visible: a new version, and the doorbell, where a dot stands before a job that
-- has ended (`ends`).
local function save(job, ...)
  job.ver = number(job.ver) + 1
  redis.call('HSET', P .. 'j:' .. job.id, 'updated', NOW, 'ver', job.ver, ...)
  local told = job.ends and '. ' .. job.id or job.id
  if changed then changed[#changed + 1] = told else redis.call('PUBLISH', P .. 'ev', told) end
end

-- Says that there may be work for a pool, once in a call.
local rung = {}
local function ring(pool)
  if rung[pool] then return end
  rung[pool] = true
  redis.call('PUBLISH', P .. 'work', pool)
end

-- Virtual time of a pool: what the tenant served last had when it was chosen.
local function pool_time(pool) return number(redis.call('HGET', P .. 'vt:' .. pool, '')) end

-- A tenant into a pool's line. One that comes back after a pause starts at the pool's virtual time: it gets no credit for
-- having been away.
local function line_up(pool, tenant)
  local own = number(redis.call('HGET', P .. 'vt:' .. pool, tenant))
  redis.call('ZADD', P .. 'act:' .. pool, math.max(own, pool_time(pool)), tenant)
end

-- A tenant out of a pool's line.
local function step_out(pool, tenant)
  local own = number(redis.call('ZSCORE', P .. 'act:' .. pool, tenant))
  redis.call('ZREM', P .. 'act:' .. pool, tenant)
  -- Only a tenant ahead of the pool must be remembered; the others start at the pool's time anyway.
  if own > pool_time(pool) then
    redis.call('HSET', P .. 'vt:' .. pool, tenant, own)
  else
    redis.call('HDEL', P .. 'vt:' .. pool, tenant)
  end
end

-- A tenant that is paused or at its cap leaves the line, so that it costs no claim a look, until `admit`.
local function hold(pool, tenant)
  step_out(pool, tenant)
  redis.call('SADD', P .. 'held:' .. tenant, pool)
end

-- A tenant that was held, back into every line it was taken out of. The next claim looks again whether it may go.
local function admit(tenant)
  local held = P .. 'held:' .. tenant
  local pools = redis.call('SMEMBERS', held)
  if #pools == 0 then return end
  redis.call('DEL', held)
  for _, pool in ipairs(pools) do
    line_up(pool, tenant)
    ring(pool)
  end
end

-- Jobs of one pool and tenant into the queue of their stage, at their original scores.
local function enqueue_all(jobs)
  local pool, tenant = pool_of(jobs[1]), jobs[1].tenant
  local queued, waiting = {}, {}
  for i, job in ipairs(jobs) do
    queued[2 * i - 1], queued[2 * i] = job.score, job.id
    waiting[2 * i - 1], waiting[2 * i] = NOW, job.id
  end
  redis.call('ZADD', P .. 'q:' .. pool .. ':' .. tenant, unpack(queued))
  redis.call('ZADD', P .. 'wait:' .. pool, unpack(waiting))
  if not redis.call('ZSCORE', P .. 'act:' .. pool, tenant)
    and redis.call('SISMEMBER', P .. 'held:' .. tenant, pool) == 0 then
    line_up(pool, tenant)
  end
  count_all('queued', jobs, 1)
  ring(pool)
end

-- The same of one job.
local function enqueue(job) enqueue_all({ job }) end

local function dequeue_all(jobs, ids)
  local pool, tenant = pool_of(jobs[1]), jobs[1].tenant
  local queue = P .. 'q:' .. pool .. ':' .. tenant
  redis.call('ZREM', queue, unpack(ids))
  redis.call('ZREM', P .. 'wait:' .. pool, unpack(ids))
  count_all('queued', jobs, -1)
  if redis.call('EXISTS', queue) == 0 and redis.call('SREM', P .. 'held:' .. tenant, pool) == 0 then
    step_out(pool, tenant)
  end
end

local function dequeue(job) dequeue_all({ job }, { job.id }) end

-- Out of the one place where a live job is.
local function leave(job)
  if job.state == 'queued' then
    dequeue(job)
  elseif job.state == 'running' then
    redis.call('ZREM', P .. 'lease', job.id)
    count('running', job, -1)
    admit(job.tenant)
  elseif job.state == 'delayed' then
    redis.call('ZREM', P .. 'delay', job.id)
    count('delayed', job, -1)
  end
end

-- Tells the hub session of the shard that holds the lease to drop the job (`owner` is loaded). Only a doorbell: the next
-- heartbeat says the same.
local function revoke(job, reason)
  if job.state == 'running' and job.owner ~= '' then
    redis.call('PUBLISH', P .. 'rev', job.owner .. ' ' .. job.id .. ' ' .. job.nonce .. ' ' .. reason)
  end
end

-- The budget that a lost lease was charged to, one less: its shard turned out to be alive.
local function forgive(job)
  local v = redis.call('HMGET', P .. 'j:' .. job.id, 'charged', 'unacked', 'crashes')
  if v[1] == 'unacked' then return 'unacked', math.max(0, number(v[2]) - 1) end
  return 'crashes', math.max(0, number(v[3]) - 1)
end

-- Remembers what went wrong, with which worker, for an operator. Of a running job `owner` is loaded.
local function note(job, reason, message)
  local history = P .. 'hist:' .. job.id
  local owner = job.state == 'running' and job.owner ~= '' and job.owner or '-'
  redis.call('RPUSH', history, table.concat({ NOW, job.stage, reason, owner, message }, ' '))
  redis.call('LTRIM', history, -HISTORY, -1)
end

-- Ends a live job for good. More fields may follow.
local function finish(job, state, ...)
  leave(job)
  charge(job, -number(job.bytes))
  redis.call('ZREM', P .. 'deadline', job.id)
  redis.call('ZADD', P .. (state == 'failed' and 'dead' or 'done'), NOW, job.id)
  redis.call('HDEL', P .. 'j:' .. job.id, 'nonce', 'prev', 'ckpt')
  if state ~= 'failed' then redis.call('DEL', P .. 'hist:' .. job.id) end
  job.ends = true
  save(job, 'state', state, 'finished', NOW, ...)
end

-- Ends a live job as failed.
local function bury(job, reason, message, ...)
  note(job, reason, message)
  finish(job, 'failed', 'err_reason', reason, 'err_message', message, ...)
end

-- Back to its queue, with nobody's lease on it. `prev` is the nonce that may still finish it while nobody takes over.
local function requeue(job, prev, ...)
  leave(job)
  redis.call('HDEL', P .. 'j:' .. job.id, 'nonce')
  save(job, 'state', 'queued', 'prev', prev, 'queued', NOW, ...)
  job.state = 'queued'
  enqueue(job)
end

-- A dead job lives again, as if it had just come to its stage, at its old place in the queue. More fields may follow.
local function revive(job, ...)
  local v = redis.call('HMGET', P .. 'j:' .. job.id, 'timeout', 'created', 'deadline')
  local deadline = NOW + (tonumber(v[1]) or math.max(0, number(v[3]) - number(v[2])))
  redis.call('ZREM', P .. 'dead', job.id)
  redis.call('HDEL', P .. 'j:' .. job.id, 'finished', 'step', 'of', 'owner', 'unacked', 'err_reason', 'err_message')
  redis.call('ZADD', P .. 'deadline', deadline, job.id)
  charge(job, number(job.bytes))
  save(job, 'state', 'queued', 'queued', NOW, 'deadline', deadline, 'attempts', 0, 'crashes', 0, ...)
  job.state = 'queued'
  enqueue(job)
end

-- Forgets a tenant that has neither jobs nor settings: also how far it was ahead in pools, of which all that ever finished
-- something are known, and those of `stages` of a model.
local function forget_tenant(tenant, model, stages)
  redis.call('ZREM', P .. 'tenants', tenant)
  for _, pool in ipairs(redis.call('HKEYS', P .. 'took')) do redis.call('HDEL', P .. 'vt:' .. pool, tenant) end
  for stage in string.gmatch(stages or '', '[^,]+') do
    redis.call('HDEL', P .. 'vt:' .. model .. ':' .. stage, tenant)
  end
end

-- Forgets a job that has ended. Returns the nonce of its pictures, or ''.
local function forget(id)
  local v = redis.call('HMGET', P .. 'j:' .. id, 'tenant', 'idem', 'pictures_nonce', 'model', 'stages')
  local tenant = v[1]
  redis.call('ZREM', P .. 'done', id)
  redis.call('ZREM', P .. 'dead', id)
  redis.call('DEL', P .. 'j:' .. id, P .. 'hist:' .. id)
  if not tenant then return '' end
  redis.call('ZREM', P .. 'jobs:' .. tenant, id)
  if v[2] then redis.call('DEL', P .. 'idem:' .. tenant .. ':' .. v[2]) end
  if redis.call('EXISTS', P .. 'jobs:' .. tenant, P .. 'tenant:' .. tenant) == 0 then
    forget_tenant(tenant, v[4], v[5])
  end
  return v[3] or ''
end

-- The stages of a job are a comma-separated list, fixed when it was submitted. Returns those before and after `stage`.
local function neighbours(stages, stage)
  local before, found = nil, false
  for name in string.gmatch(stages, '[^,]+') do
    if found then return before, name end
    if name == stage then found = true else before = name end
  end
  return before, nil
end
