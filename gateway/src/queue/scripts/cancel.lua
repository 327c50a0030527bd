-- Cancels a job in any live state; one that has ended is left as it is.
-- ARGV: id, tenant
-- Reply: 'cancelled' | 'ended' | 'unknown'
local id, tenant = ARGV[1], ARGV[2]
if not (id and tenant) then return redis.error_reply('ERR cancel: bad arguments') end

local job = load(id, 'owner')
if not job or job.tenant ~= tenant then return 'unknown' end
if not LIVE[job.state] then return 'ended' end
revoke(job, 'cancelled')
finish(job, 'cancelled')
return 'cancelled'
