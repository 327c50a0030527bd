-- A stage is done: on to the next one, or to the end, in one step.
-- ARGV: id, nonce, stage, 'tokens' | 'pictures', the tokens or the list of pictures, timing, rows in the result, digest of
--       the result
-- Reply: {'accepted' | 'duplicate' | 'stale' | 'refused', state now, ms since the job was created, the digest that another
--         finisher of this stage gave when it is not this one, else ''}
local id, nonce, stage, kind, result, timing = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local rows, digest = tonumber(ARGV[7]), ARGV[8]
if is_empty(id) or is_empty(nonce) or is_empty(stage) or not (result and timing and rows and digest)
  or (kind ~= 'tokens' and kind ~= 'pictures') then
  return redis.error_reply('ERR complete: bad arguments')
end

local job = load(id, 'rows', 'created', 'claimed', 'completed:' .. stage, 'digest:' .. stage)
if not job then return { 'stale', '', 0, '' } end
local age, by, known = NOW - (tonumber(job.created) or NOW), job['completed:' .. stage], job['digest:' .. stage]
local claimed = tonumber(job.claimed)
local other = known ~= '' and known ~= digest and known or ''
if by == nonce then return { 'duplicate', job.state, age, other } end
local holds = job.state == 'running' and job.nonce == nonce
local late = job.state == 'queued' and job.prev == nonce
if not (holds or late) or job.stage ~= stage then return { 'stale', job.state, age, other } end
local _, after = neighbours(job.stages, stage)
if (kind == 'tokens') ~= (after ~= nil) or rows ~= tonumber(job.rows) then return { 'refused', job.state, age, '' } end

local fields = { 'completed:' .. stage, nonce, 'digest:' .. stage, digest, 'timing:' .. stage, timing, 'reported', nonce }
local function with(...)
  for _, value in ipairs({ ... }) do fields[#fields + 1] = value end
  return unpack(fields)
end
if late then
  -- Late, but not dead: the lost lease was no crash.
  with(forgive(job))
elseif claimed then
  -- How long the pool's shards take for a job: a moving average, for estimates.
  local pool, took = pool_of(job), NOW - claimed
  local before = tonumber(redis.call('HGET', P .. 'took', pool) or took)
  redis.call('HSET', P .. 'took', pool, string.format('%.1f', before + (took - before) / 16))
end

if not after then
  finish(job, 'succeeded', with('pictures', result, 'pictures_nonce', nonce))
  return { 'accepted', 'succeeded', age, '' }
end
leave(job)
charge(job, #result)
job.bytes = number(job.bytes) + #result
redis.call('HDEL', P .. 'j:' .. id, 'nonce', 'prev', 'ckpt', 'step', 'of', 'owner')
save(job, with('out:' .. stage, result, 'bytes', job.bytes, 'stage', after, 'state', 'queued', 'queued', NOW,
  'attempts', 0))
job.state, job.stage = 'queued', after
enqueue(job)
return { 'accepted', 'queued', age, '' }
