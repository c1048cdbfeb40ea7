-- GET, as the bearer of each token of a file in turn: FILE COUNT, or of none: no arguments.

require "report"

local requests, turn = {}, 0

function init(arguments)
  local file, count = arguments[1], tonumber(arguments[2] or 1)
  if not file then
    requests[1] = wrk.format("GET")
    return
  end
  for token in io.lines(file) do
    if #requests == count then break end
    requests[#requests + 1] = wrk.format("GET", nil, {["Authorization"] = "Bearer " .. token})
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end
