#!/usr/bin/env bash
# The management API as the contract has it, call by call, with nothing but curl. For a peer that does not coordinate:
# what the coordinator owns is passed on to it.
#
#   URL=http://127.0.0.1:8080 USERNAME=admin PASSWORD=... SERVER=http://127.0.0.1:11434 PEER=tower contract.sh
#
# SERVER is an OpenAI-compatible server that is no peer, PEER another machine of the mesh. Each line is a call, the
# status that must come and a text that must be in the answer. What it makes it deletes again.
set -uo pipefail
: "${URL:?}" "${USERNAME:?}" "${PASSWORD:?}" "${SERVER:?}" "${PEER:?}"
SERVER_HOST=${SERVER#http://} SERVER_PORT=${SERVER##*:}
SERVER_HOST=${SERVER_HOST%%:*}
failed=0 BODY='' TOKEN='' KEY='' AGENT_TOKEN=''

# call STATUS METHOD PATH [TEXT [BODY [HEADER...]]]: the answer is left in $BODY
call() {
  local status=$1 method=$2 path=$3 text=${4:-} body=${5:-}
  local more=() header answer
  for header in "${@:6}"; do more+=(-H "$header"); done
  [ -n "$body" ] && more+=(-H 'Content-Type: application/json' -d "$body")
  [ -n "$TOKEN" ] && more+=(-H "Authorization: Bearer $TOKEN")
  answer=$(curl -sS -m 30 -X "$method" "$URL$path" "${more[@]+"${more[@]}"}" -w '\n%{http_code}') || answer=$'\n000'
  BODY=${answer%$'\n'*}
  if [ "${answer##*$'\n'}" != "$status" ] || { [ -n "$text" ] && [[ $BODY != *"$text"* ]]; }; then
    printf 'FAILED %s %s: expected %s %s, got %s %s\n' "$method" "$path" "$status" "$text" "${answer##*$'\n'}" "${BODY:0:400}"
    failed=1
  else
    printf 'ok     %s %s: %s\n' "$method" "$path" "$status"
  fi
}
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" <<<"$BODY" | head -1; }

# --- who is asked
call 200 GET /health
call 200 GET /ready
call 401 GET /api/users '"error"'
call 401 POST /api/auth/login 'error' "{\"username\": \"$USERNAME\", \"password\": \"not that one\"}"
call 200 POST /api/auth/login '"expires_in"' "{\"username\": \"$USERNAME\", \"password\": \"$PASSWORD\", \"token\": true}"
TOKEN=$(field token)
call 200 GET /api/auth/me "\"username\": \"$USERNAME\""

# --- users and keys
call 201 POST /api/users '"role": "viewer"' '{"username": "vera", "password": "a long enough one", "role": "viewer"}'
VERA=$(field id)
call 400 POST /api/users 'error' '{"username": "vera", "password": "a long enough one", "role": "viewer"}'
call 200 GET /api/users '"vera"'
[[ $BODY == *password* ]] && { echo "FAILED users tell of passwords: $BODY"; failed=1; }
call 204 DELETE "/api/users/$VERA"
call 404 DELETE "/api/users/$VERA"
call 201 POST /api/api-keys 'sk-mesh-' '{"name": "script"}'
KEY=$(field key) KEY_ID=$(field id)
call 200 GET /api/api-keys '"script"'
[[ $BODY == *"$KEY"* ]] && { echo "FAILED a key is shown twice"; failed=1; }
call 400 POST /api/api-keys 'expires_at' '{"name": "late", "expires_at": "tomorrow or so"}'

# --- inference, with that key
ADMIN=$TOKEN TOKEN=$KEY
call 200 GET /v1/models '"object": "list"'
call 200 GET /v1/models/hello '"hello"'
call 404 GET /v1/models/nothing 'model_not_found'
call 200 POST /v1/chat/completions '"chat.completion"' '{"model": "hello", "messages": [{"role": "user", "content": "Hi"}]}'
call 200 POST /v1/completions '"text_completion"' '{"model": "hello", "prompt": "Hi", "max_tokens": 4}'
call 200 POST /api/chat '"chat.completion"' '{"model": "hello", "messages": [{"role": "user", "content": "Hi"}]}'
call 200 POST /api/generate '"text_completion"' '{"model": "hello", "prompt": "Hi", "max_tokens": 4}'
call 200 POST /v1/chat/completions 'data: [DONE]' \
  '{"model": "hello", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}'
call 400 POST /v1/chat/completions 'model' '{"messages": [{"role": "user", "content": "Hi"}]}'
call 403 GET /api/users 'error'
TOKEN=''
call 401 GET /v1/models 'invalid_api_key' '' 'Authorization: Bearer sk-mesh-nobody'
call 200 GET /v1/models '"list"' '' "x-api-key: $KEY"
TOKEN=$ADMIN
call 204 DELETE "/api/api-keys/$KEY_ID"
TOKEN=''
call 401 GET /v1/models 'invalid_api_key' '' "Authorization: Bearer $KEY"
TOKEN=$ADMIN

# --- agents, under both spellings
for agents in agents nodes; do
  call 200 GET "/api/$agents" "\"machine_name\": \"$PEER\""
  call 200 GET "/api/$agents/$PEER" "$PEER"
  call 404 GET "/api/$agents/nobody-has-this-name" 'error'
  REGISTRATION="{\"machine_name\": \"box-$agents\", \"ip_address\": \"$SERVER_HOST\", \"runtime_version\": \"1.0\",
    \"runtime_port\": $SERVER_PORT, \"gpu_available\": true, \"gpu_devices\": [{\"model\": \"RTX\", \"count\": 1}]}"
  call 201 POST "/api/$agents" '"registered"' "$REGISTRATION"
  call 200 POST "/api/$agents" '"updated"' "$REGISTRATION"
  AGENT=$(field agent_id) AGENT_TOKEN=$(field agent_token)
  call 403 POST "/api/$agents" 'GPU hardware is required for agent registration' \
    "${REGISTRATION/\"gpu_available\": true/\"gpu_available\": false}"
  BEAT="{\"agent_id\": \"$AGENT\", \"cpu_usage\": 10, \"memory_usage\": 20, \"active_requests\": 0}"
  TOKEN=''
  call 200 POST /api/health '' "$BEAT" "X-Agent-Token: $AGENT_TOKEN"
  call 401 POST /api/health 'error' "$BEAT" 'X-Agent-Token: agt_wrong'
  METRICS="{\"agent_id\": \"$AGENT\", \"cpu_usage\": 10, \"memory_usage\": 20, \"active_requests\": 1,
    \"avg_response_time_ms\": 120, \"timestamp\": \"2026-01-01T00:00:00Z\"}"
  call 204 POST "/api/$agents/$AGENT/metrics" '' "$METRICS" "X-Agent-Token: $AGENT_TOKEN"
  call 400 POST "/api/$agents/$AGENT/metrics" 'error' "${METRICS/\"cpu_usage\": 10/\"cpu_usage\": 101}" \
    "X-Agent-Token: $AGENT_TOKEN"
  TOKEN=$ADMIN
  call 404 POST "/api/$agents/00000000-0000-0000-0000-000000000000/metrics" 'error' "${METRICS/$AGENT/nobody}"
  call 200 PUT "/api/$agents/$AGENT/settings" '"custom_name": "Box"' '{"custom_name": " Box ", "tags": ["a", ""], "notes": ""}'
  call 202 POST "/api/$agents/$AGENT/disconnect"
  call 200 GET "/api/$agents/$AGENT" '"offline"'
  call 202 POST "/api/$agents/$AGENT/enable"
  call 204 DELETE "/api/$agents/$AGENT"
  call 404 DELETE "/api/$agents/$AGENT" 'error'
  call 409 DELETE "/api/$agents/$PEER" 'confirm'
  call 200 PUT "/api/$agents/$PEER/settings" '"notes": "by the door"' '{"notes": "by the door"}'
  call 202 POST "/api/$agents/$PEER/disconnect"
  call 202 POST "/api/$agents/$PEER/enable"
  call 200 GET "/api/$agents/$PEER/logs?limit=5" '"message"'
done

# --- history
call 200 GET '/api/dashboard/request-responses?page=1&per_page=10&model=hello&status=success' '"total_count"'
RECORD=$(field id)
call 200 GET "/api/dashboard/request-responses/$RECORD" '"request_body"'
call 404 GET /api/dashboard/request-responses/00000000-0000-0000-0000-000000000000 'error'
call 200 GET '/api/dashboard/request-responses?q=Hi&per_page=15' '"per_page": 10'
call 400 GET '/api/dashboard/request-responses?from=whenever' 'from'
call 200 GET '/api/dashboard/request-responses/export?format=csv' 'request_type'
call 200 GET '/api/dashboard/request-responses/export?format=json' '"request_type"'
call 400 GET '/api/dashboard/request-responses/export?format=xml' 'format'
call 200 GET /api/dashboard/stats '"openai_key_present"'
call 200 GET /api/dashboard/overview '"generation_time_ms"'
call 200 GET /api/audit '"entries"'

# --- settings, the mesh, and what machines read
call 200 PUT /api/settings '"history_days"' '{"history_days": 8}'
call 400 PUT /api/settings 'history_days' '{"history_days": 0}'
call 200 PUT /api/settings '"origin": "default"' '{"history_days": null}'
call 200 GET /api/settings '"load_balancer_mode"'
call 200 GET /api/mesh '"coordinator"'
call 200 GET /openapi.json '"openapi"'
call 200 GET /metrics 'llm_router_requests_total'
call 204 POST /api/auth/logout
call 401 GET /api/auth/me 'error'
exit $failed
