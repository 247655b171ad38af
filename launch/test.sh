#!/usr/bin/env bash
# Format, lint, types, layers, tests. `--slow` adds the tests that take long, and resumes them after an interruption; it installs
# Gradio and Playwright for those of the page, which drive the browser that is there (Debian's chromium) or are skipped. Every other
# argument goes to pytest: launch/test.sh tests/data -k manifest
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

arguments=() extras=test
for argument in "$@"; do
  if [[ "$argument" == "--slow" ]]; then
    arguments+=(-m "slow or not slow" --resume) extras=test,serve,browser
  else
    arguments+=("$argument")
  fi
done

make_environment .venv-test "$extras"
export PATH="$ROOT/.venv-test/bin:$PATH" JAX_PLATFORMS=cpu
failed=()

check() {
  echo "== $*"
  "$@" || failed+=("$*")
}

check ruff format --check --quiet .
check ruff check --quiet .
check mypy
check lint-imports --no-logo
check python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${arguments[@]+"${arguments[@]}"}"

[[ ${#failed[@]} -eq 0 ]] || die "failed: $(printf '%s; ' "${failed[@]}" | sed 's/; $/./')"
echo "all checks passed"
