-- A stage is done: on to the next one, or to the end, in one step.
-- ARGV: id, nonce, stage, 'tokens' | 'pictures', the tokens or the list of pictures, timing, rows in the result
-- Reply: {'accepted' | 'duplicate' | 'stale' | 'refused', state now, ms since the job was created}
local id, nonce, stage, kind, result, timing = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local rows = tonumber(ARGV[7])
if not (id and nonce and stage and result and timing and rows) or (kind ~= 'tokens' and kind ~= 'pictures') then
  return redis.error_reply('ERR complete: bad arguments')
end

local job = load(id)
if not job then return { 'stale', '', 0 } end
local created = tonumber(redis.call('HGET', P .. 'j:' .. id, 'created') or NOW) or NOW
if redis.call('HGET', P .. 'j:' .. id, 'completed:' .. stage) == nonce then
  return { 'duplicate', job.state, NOW - created }
end
local holds = job.state == 'running' and job.nonce == nonce
local late = job.state == 'queued' and job.prev == nonce
if not (holds or late) or job.stage ~= stage then return { 'stale', job.state, NOW - created } end
local _, after = neighbours(job.stages, stage)
if (kind == 'tokens') ~= (after ~= nil) or rows ~= tonumber(job.rows) then
  return { 'refused', job.state, NOW - created }
end

local fields = { 'completed:' .. stage, nonce, 'timing:' .. stage, timing, 'reported', nonce }
local function with(...)
  for _, value in ipairs({ ... }) do fields[#fields + 1] = value end
  return unpack(fields)
end
-- Late, but not dead: the lost lease was no crash.
if late then with('crashes', math.max(0, (tonumber(job.crashes) or 0) - 1)) end

if not after then
  finish(job, 'succeeded', with('pictures', result, 'pictures_nonce', nonce))
  return { 'accepted', 'succeeded', NOW - created }
end
leave(job)
redis.call('HDEL', P .. 'j:' .. id, 'nonce', 'prev', 'ckpt', 'step', 'of', 'owner')
save(job, with('out:' .. stage, result, 'stage', after, 'state', 'queued', 'queued', NOW, 'attempts', 0))
job.state, job.stage = 'queued', after
enqueue(job)
return { 'accepted', 'queued', NOW - created }
