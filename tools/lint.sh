#!/usr/bin/env bash
# Format, style and the rules that no compiler checks. Reports everything that is wrong, then fails. Under a minute.
set -u
cd "$(dirname "$0")/.."
bin=.venv/bin
failed=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
step() { # what command...: silent when it succeeds
    local what=$1
    shift
    if ! "$@" >"$scratch/log" 2>&1; then
        echo "lint: $what" >&2
        cat "$scratch/log" >&2
        failed=1
    fi
}
none() { # shows its input; fails when there is any
    local found
    found=$(cat)
    echo "$found"
    [ -z "$found" ]
}
tracked() { # pathspec...: files of the repository and those not yet added
    git ls-files --cached --others --exclude-standard -- "$@" | while read -r file; do [ -f "$file" ] && echo "$file"; done
}
mapfile -t c_files < <(tracked '*.c' '*.h' '*.cu' '*.cuh')
mapfile -t text_files < <(tracked | grep -vE '^bench/results/|^tests/(fuzz/corpus|vectors)/')
python_folders=(python tests bench tools)

step "C and CUDA are not formatted; run: make format" "$bin/clang-format" --dry-run -Werror --ferror-limit=1 "${c_files[@]}"
step "Python is not formatted; run: make format" "$bin/ruff" format --check "${python_folders[@]}"
step "Python style; run: make format" "$bin/ruff" check --no-fix "${python_folders[@]}"
step "shell scripts do not parse" bash -c 'for f in tools/*.sh .ci/run; do bash -n "$f" || exit 1; done'

headers() { # every public header stands alone, as C17 and as C++
    local header
    for header in include/deepwell/*.h; do
        cc -std=c17 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -Iinclude -x c "$header" || return 1
        g++ -std=c++17 -Wall -Wextra -Werror -fsyntax-only -Iinclude -x c++ "$header" || return 1
    done
}
step "a public header does not compile alone as C17 and C++" headers

words() { # words that stand for unfinished work, unless an owner is named: TODO(name)
    ! grep -nE '\b(TODO|FIXME|XXX|HACK)\b' "${text_files[@]}" | grep -vE 'TODO\([a-z]+\)|^tools/lint\.sh:'
}
step "unfinished work without an owner" words
dead_code() {
    ! grep -nE '^[[:space:]]*#[[:space:]]*if[[:space:]]+0\b' "${c_files[@]}"
}
step "code that is switched off (#if 0)" dead_code
whitespace() {
    ! grep -nIE '[[:space:]]+$' "${text_files[@]}"
}
step "spaces at the end of a line" whitespace

figures() { # speeds in the pages come from result files: they may stand in generated blocks only
    local file
    for file in README.md docs/*.md; do
        [ "$file" = docs/measured-facts.md ] && continue # facts about devices, each with device and date beside it
        sed '/<!-- bench:/,/<!-- \/bench -->/d; /^```/,/^```/d' "$file" |
            grep -nE '[0-9] ?(GB/s|TB/s|TFLOP/s|tokens/s)|[0-9]x (faster|slower|as fast)' | sed "s|^|$file: |"
    done | none
}
step "a measured figure outside a generated block; let bench/plots.py write it" figures
links() { # relative links in the pages lead somewhere
    "$bin/python" - <<'PYTHON'
import pathlib, re, sys
bad = []
for page in [pathlib.Path("README.md"), *pathlib.Path("docs").glob("*.md")]:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http:", "https:")) and not (page.parent / target).exists():
            bad.append(f"{page}: link to {target} leads nowhere")
print("\n".join(bad))
sys.exit(bool(bad))
PYTHON
}
step "broken links" links
step "plots or tables are not fresh" "$bin/python" -m bench.plots --check
step "the planner's figures are not those of bench/results" "$bin/python" tools/plan_evidence.py --check
table() { # every row of the kernel table has its line; the tests compare the whole page with the built table
    sed -nE 's/^[A-Z_]+\(([a-z0-9_]+),.*/\1/p' src/registry/kernels.inc | while read -r name; do
        grep -qsF "\`$name\`" docs/kernels.md || echo "$name is in kernels.inc but not in docs/kernels.md; run: make docs"
    done | none
}
step "docs/kernels.md lacks kernels" table

[ $failed -eq 0 ] && echo "lint: clean"
exit $failed
