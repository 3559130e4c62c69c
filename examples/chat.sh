#!/usr/bin/env bash
# Ask a running server with curl: its models, an answer, a streamed answer, and the number of tokens.
#
#     baichuan2 serve demo
#     examples/chat.sh
#
# Set OPENAI_BASE_URL, OPENAI_API_KEY and MODEL for another server, its key and its model.
set -euo pipefail
base=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
model=${MODEL:-demo}
headers=(-H "Authorization: Bearer ${OPENAI_API_KEY:-none}" -H "Content-Type: application/json")

ask() { # PATH BODY
  # -N shows pieces as they arrive; --fail-with-body shows the error object and fails.
  curl --silent --show-error --fail-with-body -N "${headers[@]}" "$base$1" -d "$2"
  echo
}

curl --silent --show-error --fail-with-body "${headers[@]}" "$base/models"
echo

ask /chat/completions '{
  "model": "'"$model"'",
  "messages": [{"role": "user", "content": "What is the capital of France?"}],
  "max_tokens": 20, "temperature": 0
}'

ask /chat/completions '{
  "model": "'"$model"'",
  "messages": [{"role": "user", "content": "Count from one to five."}],
  "max_tokens": 20, "temperature": 0,
  "stream": true, "stream_options": {"include_usage": true}
}'

curl --silent --show-error --fail-with-body "${headers[@]}" "${base%/v1}/tokenize" \
  -d '{"prompt": "How many tokens is this?"}'
echo
