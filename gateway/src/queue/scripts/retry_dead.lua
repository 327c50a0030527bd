-- Dead jobs get another life: fresh budgets, their full time again, their old place in the queue.
-- ARGV: token of this call, id, id, … (at most 100)
-- Reply: for each 'retried' | 'not_dead' | 'unknown'; repeating a call with its token gives the same
local token = ARGV[1]
if is_empty(token) or #ARGV < 2 or #ARGV > 101 then return redis.error_reply('ERR retry_dead: bad arguments') end

local replies = {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local job = load(id)
  local reply = 'unknown'
  if job and redis.call('HGET', P .. 'j:' .. id, 'retried') == token then
    -- Also when it has failed again meanwhile: one call, one more life.
    reply = 'retried'
  elseif job and job.state == 'failed' then
    revive(job, 'retried', token)
    reply = 'retried'
  elseif job then
    reply = 'not_dead'
  end
  replies[#replies + 1] = reply
end
return replies
