-- The request of a load, and the figures as one line of JSON. Arguments: method, bytes of the body, "distinct" for
-- requests of which each has a target of its own.
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
