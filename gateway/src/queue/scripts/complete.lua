-- Stages are done, one after another: each job goes on to its next stage, or to its end, in one step.
-- ARGV: for each id, nonce, stage, 'tokens' | 'pictures', the tokens or the list of pictures, timing, rows in the result,
--       digest of the result
-- Reply: for each {'accepted' | 'duplicate' | 'stale' | 'refused' | 'broken', state now or what broke, ms since the job was
--        created, the digest that another finisher of this stage gave when it is not this one, else ''}
local SIZE, MOST = 8, 100
local bad = #ARGV == 0 or #ARGV % SIZE ~= 0 or #ARGV > MOST * SIZE
for i = 1, #ARGV, SIZE do
  bad = bad or ARGV[i] == '' or ARGV[i + 1] == '' or ARGV[i + 2] == '' or not tonumber(ARGV[i + 6])
    or (ARGV[i + 3] ~= 'tokens' and ARGV[i + 3] ~= 'pictures')
end
if bad then return redis.error_reply('ERR complete: bad arguments') end

changed = {}
-- Jobs that are out of their leases, those that ended, and those that go on, as far as the other keys do not say so yet.
local left, ended, on, charged, by
local function begin() left, ended, on, charged, by = {}, {}, {}, {}, {} end
begin()

-- Has the other keys say so.
local function settle()
  local leases, tenants = {}, {}
  for _, group in ipairs(left) do
    for _, job in ipairs(group) do leases[#leases + 1] = job.id end
    count_all('running', group, -1)
    tenants[group[1].tenant] = true
  end
  if #leases > 0 then redis.call('ZREM', P .. 'lease', unpack(leases)) end
  for tenant in pairs(tenants) do admit(tenant) end
  if #charged > 0 then charge_all(charged, by) end
  if #ended > 0 then
    local done, histories = {}, {}
    for i, id in ipairs(ended) do
      done[2 * i - 1], done[2 * i] = NOW, id
      histories[i] = P .. 'hist:' .. id
    end
    redis.call('ZREM', P .. 'deadline', unpack(ended))
    redis.call('ZADD', P .. 'done', unpack(done))
    redis.call('DEL', unpack(histories))
  end
  for _, group in ipairs(on) do enqueue_all(group) end
  begin()
end

-- How long a pool's shards take for a job: a moving average, for estimates.
local averages = {}
local function took(pool, ms)
  local before = tonumber(averages[pool] or redis.call('HGET', P .. 'took', pool) or ms)
  averages[pool] = string.format('%.1f', before + (ms - before) / 16)
end

local function complete(id, nonce, stage, kind, result, timing, rows, digest)
  local job = load(id, 'rows', 'created', 'claimed', 'completed:' .. stage, 'digest:' .. stage)
  if not job then return { 'stale', '', 0, '' } end
  local age, by_nonce, known = NOW - (tonumber(job.created) or NOW), job['completed:' .. stage], job['digest:' .. stage]
  local other = known ~= '' and known ~= digest and known or ''
  if by_nonce == nonce then return { 'duplicate', job.state, age, other } end
  local holds = job.state == 'running' and job.nonce == nonce
  local late = job.state == 'queued' and job.prev == nonce
  if not (holds or late) or job.stage ~= stage then return { 'stale', job.state, age, other } end
  local _, after = neighbours(job.stages, stage)
  if (kind == 'tokens') ~= (after ~= nil) or tonumber(rows) ~= tonumber(job.rows) then
    return { 'refused', job.state, age, '' }
  end

  local fields = { 'completed:' .. stage, nonce, 'digest:' .. stage, digest, 'timing:' .. stage, timing, 'reported', nonce }
  local function with(...)
    for _, value in ipairs({ ... }) do fields[#fields + 1] = value end
  end
  if late then
    -- Late, but not dead: the lost lease was no crash. Who leaves a queue must see all that are in it.
    settle()
    dequeue(job)
    with(forgive(job))
  else
    gather(left, job)
    local claimed = tonumber(job.claimed)
    if claimed then took(pool_of(job), NOW - claimed) end
  end
  charged[#charged + 1] = job
  if not after then
    by[#charged] = -number(job.bytes)
    ended[#ended + 1] = id
    redis.call('HDEL', P .. 'j:' .. id, 'nonce', 'prev', 'ckpt')
    with('state', 'succeeded', 'finished', NOW, 'pictures', result, 'pictures_nonce', nonce)
    job.ends = true
    save(job, unpack(fields))
    return { 'accepted', 'succeeded', age, '' }
  end
  by[#charged] = #result
  local bytes = number(job.bytes) + #result
  redis.call('HDEL', P .. 'j:' .. id, 'nonce', 'prev', 'ckpt', 'step', 'of', 'owner')
  with('out:' .. stage, result, 'bytes', bytes, 'stage', after, 'state', 'queued', 'queued', NOW, 'attempts', 0)
  save(job, unpack(fields))
  gather(on, {
    id = id, state = 'queued', stage = after, model = job.model, tenant = job.tenant, score = job.score, bytes = bytes,
  })
  return { 'accepted', 'queued', age, '' }
end

local replies = {}
for i = 1, #ARGV, SIZE do
  local answer, fault = guarded(complete, unpack(ARGV, i, i + SIZE - 1))
  replies[#replies + 1] = answer or { 'broken', fault, 0, '' }
end
settle()
for pool, average in pairs(averages) do redis.call('HSET', P .. 'took', pool, average) end
tell()
return replies
