-- The request of a load, and the figures as one line of JSON. Arguments: method, bytes of the body; "distinct" for
-- requests of which each has a target of its own, or "templates", a file and a number: requests as traffic.py writes
-- them, which have the number, and those after it, in their places.
function init(args)
   wrk.method = args[1]
   local size = tonumber(args[2])
   if size > 0 then
      wrk.body = '{"text":"' .. string.rep("x", size - 11) .. '"}'
      wrk.headers["Content-Type"] = "application/json"
   end
   if args[3] == "distinct" then
      local path, number = wrk.path, 0
      function request()
         number = number + 1
         return wrk.format(nil, path .. "?n=" .. number)
      end
   elseif args[3] == "templates" then
      request = from_templates(args[4], tonumber(args[5]))
   end
end

-- One concatenation a request: the generator shares its core with the members.
function from_templates(name, number)
   local file = assert(io.open(name, "rb"))
   local templates, concat = {}, table.concat
   for template in file:read("*a"):gmatch("([^%z\1][^\1]*)\1") do
      local pieces = {}
      for piece in (template .. "\0"):gmatch("(%Z*)%z") do
         pieces[#pieces + 1] = piece
      end
      templates[#templates + 1] = pieces
   end
   file:close()
   local count = #templates
   return function()
      local pieces = templates[number % count + 1]
      local text = concat(pieces, number)
      number = number + 1
      return text
   end
end

function done(summary, latency, requests)
   local e = summary.errors
   io.write(string.format(
      '\n{"requests":%d,"bytes":%d,"seconds":%.6f,"p50_ms":%.4f,"p99_ms":%.4f,' ..
      '"errors":{"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}}\n',
      summary.requests, summary.bytes, summary.duration / 1e6,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
      e.connect, e.read, e.write, e.timeout, e.status))
end
