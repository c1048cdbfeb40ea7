-- POST a refresh token, which is good once, then the one that its answer gives: FILE FIRST COUNT,
-- the first of each chain are COUNT lines of the file from line FIRST. More chains than connections.

require "report"

local ready = {}

function init(arguments)
  local first, count, number = tonumber(arguments[2]), tonumber(arguments[3]), 0
  for token in io.lines(arguments[1]) do
    number = number + 1
    if number >= first and number < first + count then
      ready[#ready + 1] = token
    end
  end
end

function request()
  local body = '{"refresh_token":"' .. (table.remove(ready, 1) or "none") .. '"}'
  return wrk.format("POST", nil, {["Content-Type"] = "application/json"}, body)
end

function response(status, headers, body)
  -- A chain ends with an answer that has no token; ready[n] = nil adds nothing.
  ready[#ready + 1] = body:match('"refresh_token":"([^"]+)"')
end
