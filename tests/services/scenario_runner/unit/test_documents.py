"""The documents hold together: links, anchors, paths, numbers, citations, and the parts generated from the code."""

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import yaml

pytestmark = pytest.mark.unit

REPO = Path(__file__).resolve().parents[4]
DOCS = REPO / "docs"
DOCUMENTS = [REPO / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.rglob("*.md"))
LONGEST_README = 150
# What people read: texts, messages of programs, scripts.
FOR_PEOPLE = {".md", ".py", ".sh", ".conf", ".env", ".service", ".yaml", ".json", ""}

# What the documents name and the repository does not have: names that stand for any.
NOT_HERE = {"authority/sql/NAME.sql", "authority/migrations/NAME/", "authority/schema/NAME.sql"}


def names(path: Path) -> str:
    return str(path.relative_to(REPO))


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(path: Path) -> frozenset[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *#*$", prose(path), flags=re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        base = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 1
        anchor = base
        while anchor in found:
            anchor, number = f"{base}-{number}", number + 1
        found.add(anchor)
    return frozenset(found)


def links(path: Path) -> list[str]:
    return re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", prose(path))


@pytest.mark.parametrize("document", DOCUMENTS, ids=names)
def test_every_link_leads_to_a_file_and_an_anchor_that_exist(document: Path) -> None:
    broken = []
    for link in links(document):
        if re.match(r"https?://", link):
            continue
        file, _, anchor = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if DOCS in path.parents], ids=names)
def test_links_of_the_site_stay_inside_the_site(document: Path) -> None:
    targets = [(document.parent / link.partition("#")[0]).resolve() for link in links(document) if "://" not in link]
    assert [str(target) for target in targets if DOCS not in target.parents and target != DOCS] == []


def test_nobody_is_told_to_install_what_another_project_has_under_this_name_on_pypi() -> None:
    texts = [path for path in DOCUMENTS if path.name != "CHANGELOG.md"]
    for folder in ("daemon/scenario_runner", "deploy", "infra", "scripts"):
        texts += [path for path in (REPO / folder).rglob("*") if path.is_file() and path.suffix in FOR_PEOPLE]
    bare = re.compile(r"scenario-runner\[[a-z]|pip3? install [^\n]*(?<![./\w])scenario[-_.]runner\b(?!-\d)")
    assert [names(path) for path in texts if bare.search(path.read_text("utf-8"))] == []
    assert bare.search("pip install scenario-runner")
    assert not bare.search("pip install './scenario_runner-0.1.0-py3-none-any.whl[s3]'")


def path_exists(text: str) -> bool:
    folders = (REPO, REPO / "daemon/scenario_runner", REPO / "tests/services/scenario_runner", DOCS)
    return text in NOT_HERE or any((folder / text).exists() for folder in folders)


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.name != "CHANGELOG.md"], ids=names)
def test_every_path_of_the_repository_that_a_document_names_exists(document: Path) -> None:
    spans = re.findall(r"`([^`\n]+)`", prose(document))
    endings = r"(/|\.(py|sh|ps1|sql|md|ya?ml|toml|txt))"
    paths = [span for span in spans if re.fullmatch(rf"[\w.-]+(/[\w.-]+)*{endings}", span) and "/" in span]
    tops = ("config", "daemon", "docs", "infra", "scripts", "tests", ".ci", ".github", "unit", "integration")
    rooms = {path.name for path in (REPO / "daemon/scenario_runner").iterdir() if path.is_dir()}
    ours = {path for path in paths if path.partition("/")[0] in {*tops, "acceptance", *rooms}}
    assert sorted(path for path in ours if not path_exists(path)) == []


def test_the_readme_is_short() -> None:
    assert len((REPO / "README.md").read_text("utf-8").splitlines()) <= LONGEST_README


# --- decisions


def decisions() -> list[Path]:
    return sorted((DOCS / "adr").glob("[0-9]*.md"))


def test_decisions_are_numbered_without_gaps() -> None:
    assert [path.name[:4] for path in decisions()] == [f"{number:04}" for number in range(1, len(decisions()) + 1)]


def test_the_index_lists_every_decision_with_its_title() -> None:
    titles = [path.read_text("utf-8").splitlines()[0].removeprefix("# ") for path in decisions()]
    listed = re.findall(r"^- \[(.+)\]\((.+)\)$", (DOCS / "adr/README.md").read_text("utf-8"), flags=re.MULTILINE)
    assert listed == [(title, path.name) for title, path in zip(titles, decisions(), strict=True)]


@pytest.mark.parametrize("decision", decisions(), ids=names)
def test_a_decision_says_context_decision_and_what_else_was_considered(decision: Path) -> None:
    text = decision.read_text("utf-8")
    assert text.startswith(f"# {decision.name[:4]}. ")
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert [heading for heading in headings if heading != "Consequences"] == ["Context", "Decision", "Considered"]
    assert 15 <= len(text.splitlines()) <= 90


# --- citations in the code


def cited() -> list[tuple[str, str]]:
    found = []
    for folder in ("daemon", "tests", "scripts", "docs", "infra", "config"):
        for path in sorted((REPO / folder).rglob("*")):
            if path.suffix in (".py", ".sql", ".sh", ".yaml", ".md") and path.resolve() != Path(__file__).resolve():
                text = path.read_text("utf-8")
                found += [(names(path), item) for item in re.findall(r"adr/(\d{4})", text)]
                found += [
                    (names(path), item) for item in re.findall(r"(\w+\.md,? sections? \d(?:(?: and|,) \d)*)", text)
                ]
    return found


def test_every_document_and_section_that_the_code_cites_exists() -> None:
    numbers = {path.name[:4] for path in decisions()}
    unknown = []
    for place, item in cited():
        if item.isdigit():
            known = item in numbers
        else:
            file = DOCS / item.partition(".md")[0]
            document = file.with_suffix(".md")
            headings = prose(document) if document.is_file() else ""
            known = all(f"\n## {number}. " in headings for number in re.findall(r"\d", item))
        if not known:
            unknown.append((place, item))
    assert unknown == []


# --- the site


@cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "site/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_parts_of_the_contracts_are_those_that_the_code_gives() -> None:
    text = (DOCS / "contracts.md").read_text("utf-8")
    assert generator().generated(text) == text, "run: python docs/site/generate.py"


def test_the_contracts_have_a_table_for_every_document_and_every_shared_part() -> None:
    there = set(re.findall(r"<!-- generated: fields (\w+) -->", (DOCS / "contracts.md").read_text("utf-8")))
    assert there == set(generator()._parts())


def test_every_page_is_in_the_navigation() -> None:
    text = re.sub(r"!!python\S*", "", (DOCS / "site/mkdocs.yml").read_text("utf-8"))
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"])))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert pages - listed == {f"adr/{path.name}" for path in decisions()}
    assert listed <= pages


# --- what users of the former service have in their notes

KNOWN = """
fraud-platform/sr/instance_receipts/output_id=<output_id>/<scope partitions>/instance_receipt.json
config/platform/sr/wiring_local.yaml
config/platform/sr/wiring_local_parity.yaml
config/platform/sr/wiring_local_kinesis.yaml
config/platform/sr/wiring_aws.yaml
config/platform/sr/policy_v0.yaml
engine_contracts_root
docker compose -f infra/local/docker-compose.sr-parity.yaml up -d
http://localhost:9001
minio123
sr-local
5433
sr_dev
Get-Content .env | ForEach-Object
tests/services/scenario_runner/test_s3_store.py tests/services/scenario_runner/test_authority_store_postgres.py
docker run --rm -p 4566:4566 -e SERVICES=kinesis localstack/localstack:latest
localstack.ps1 logs
Get-Content .env.localstack.example | ForEach-Object
$env:SR_KINESIS_ENDPOINT_URL="http://localhost:4566"
$env:SR_KINESIS_STREAM="sr-control-bus"
$env:SR_KINESIS_REGION="us-east-1"
$env:AWS_ACCESS_KEY_ID="test"
$env:AWS_SECRET_ACCESS_KEY="test"
tests/services/scenario_runner/test_control_bus_kinesis.py -q
python -m pytest tests/services/scenario_runner -m "not parity and not localstack and not engine_fixture" -q
python -m pytest tests/services/scenario_runner -m "parity" -q
python -m pytest tests/services/scenario_runner -m "localstack" -q
python -m pytest tests/services/scenario_runner -m "engine_fixture" -q
SR_TEST_S3_BUCKET
SR_TEST_PG_DSN
SR_TEST_S3_ENDPOINT_URL
SR_TEST_S3_REGION
SR_TEST_S3_PATH_STYLE
runs/local_full_run-*
run_sr_tests.ps1 -Tier tier0
run_sr_tests.ps1 -Tier parity
run_sr_tests.ps1 -Tier localstack
run_sr_tests.ps1 -Tier engine_fixture
""".strip().splitlines()


@pytest.mark.parametrize("text", KNOWN)
def test_what_users_have_in_their_notes_is_documented(text: str) -> None:
    assert any(text in path.read_text("utf-8") for path in DOCUMENTS if path.name != "CHANGELOG.md")
