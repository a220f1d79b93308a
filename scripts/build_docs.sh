#!/usr/bin/env bash
# Builds the documentation site into .local/docs-site, without the network once everything is installed.
#
#   scripts/build_docs.sh            writes what is generated from the code anew, then builds; warnings are errors
#   scripts/build_docs.sh --serve    shows the site on http://localhost:8000 and follows changes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
install docs

python docs/site/generate.py
export NO_MKDOCS_2_WARNING=1  # an advertisement of the theme
if [ "${1:-}" = --serve ]; then exec mkdocs serve --config-file docs/site/mkdocs.yml; fi
mkdocs build --strict --quiet --config-file docs/site/mkdocs.yml
echo "the site is in .local/docs-site; open .local/docs-site/index.html"
