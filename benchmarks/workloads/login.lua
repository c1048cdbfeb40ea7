-- POST an address and a password, of each user in turn: FILE PASSWORD FORM, addresses a line each;
-- FORM is "json", or "form" for RFC 6749's fields.

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
    requests[#requests + 1] = wrk.format("POST", nil, {["Content-Type"] = content_type}, body)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end
