-- Forgets dead jobs now.
-- ARGV: id, id, … (at most 100)
-- Reply: for each 'purged' | 'not_dead'; a job that is not there (any more) is purged
if #ARGV < 1 or #ARGV > 100 then return redis.error_reply('ERR purge_dead: bad arguments') end

local replies = {}
for i, id in ipairs(ARGV) do
  local state = redis.call('HGET', P .. 'j:' .. id, 'state')
  if state and state ~= 'failed' then
    replies[i] = 'not_dead'
  else
    forget(id)
    replies[i] = 'purged'
  end
end
return replies
