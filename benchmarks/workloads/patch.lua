-- PATCH the name to another one each time, as the bearer of each token of a file in turn: FILE.

require "report"

local tokens, turn = {}, 0

function init(arguments)
  for token in io.lines(arguments[1]) do
    tokens[#tokens + 1] = token
  end
  -- Another beginning each time, so that no round sends what an earlier one has written.
  turn = os.time() % 1000000 * 1000
end

function request()
  turn = turn + 1
  local headers = {
    ["Authorization"] = "Bearer " .. tokens[turn % #tokens + 1],
    ["Content-Type"] = "application/json",
  }
  return wrk.format("PATCH", nil, headers, '{"name":"Name ' .. turn .. '"}')
end
