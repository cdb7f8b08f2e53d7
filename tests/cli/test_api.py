"""`rensei api` and `--jq`: the REST interface as it is, and nothing but it."""

import json

import pytest

from rensei.dispatch.models import Run

pytestmark = pytest.mark.outside


class TestApi:
    def test_writes_the_answer(self, terminal, my_project):
        assert terminal.read("rensei api GET /projects")["results"][0]["id"] == "my-project"
        assert terminal.read("rensei api /api/v1/projects") == terminal.read("rensei api get projects")

    def test_sends_a_body_of_fields_or_from_standard_input(self, terminal):
        first = terminal.read("rensei api POST /projects -f id=one -f name='The first'")
        second = terminal.read("""echo '{"id": "two", "name": "Two"}' | rensei api POST /projects --input -""")
        changed = terminal.read("rensei api PATCH /projects/two -f name=2")

        assert (first["name"], second["name"], changed["name"]) == ("The first", "Two", "2")
        assert terminal.run("rensei api DELETE /projects/one").stdout == ""

    def test_sends_json_in_fields(self, terminal, connected, make_profile):
        run = terminal.read(
            f"rensei api /runs -f profileId={make_profile()} -f input=Hello -F maxTokens=99 "
            """-F 'metadata={"a": true}' -H 'Prefer: wait=30'"""
        )

        assert (run["state"], run["metadata"], Run.objects.get().max_tokens) == ("SUCCEEDED", {"a": True}, 99)

    def test_reads_all_pages_into_one_list(self, terminal, acme):
        for number in range(3):
            terminal.succeed(f"rensei project create p-{number}")

        page = terminal.read("rensei api '/projects?pageSize=2'")
        by_field = terminal.read("rensei api GET /projects -F pageSize=2")
        whole = terminal.read("rensei api /projects --paginate")

        assert (len(page["results"]), len(by_field["results"]), len(whole["results"])) == (2, 2, 3)
        assert page["next"]
        assert whole["next"] is None

    @pytest.mark.parametrize("path", ["/statements", "/providers"])
    def test_reads_a_list_that_is_always_one_page(self, terminal, path):
        assert terminal.read(f"rensei api {path} --paginate") == terminal.read(f"rensei api {path}")

    @pytest.mark.parametrize("name", ["limit", "path", "self", "query"])
    def test_passes_on_every_name_of_a_query(self, terminal, name):
        in_address = terminal.run(f"rensei api '/runs?{name}=1' --paginate --json")
        named = terminal.run(f"rensei api GET /runs -f {name}=1 --paginate --json")

        assert f"/query/{name}" in in_address.stderr
        assert f"/query/{name}" in named.stderr

    def test_says_what_has_no_pages(self, terminal):
        assert terminal.run("rensei api /me --paginate").stderr.startswith("NOT_A_LIST: ")

    def test_writes_what_is_no_json_as_it_is(self, terminal):
        assert terminal.succeed("rensei api /cost-events.csv").startswith("occurred_at,id,")

    def test_ends_with_1_and_the_problem_where_it_is_refused(self, terminal):
        result = terminal.run("rensei api /runs/run_unknown --json")

        assert (result.returncode, json.loads(result.stderr)["code"]) == (1, "NOT_FOUND")

    @pytest.mark.parametrize(
        "path",
        ["http://127.0.0.1:1/api/v1/me", "//127.0.0.1:1/me", "../../healthz", "/runs/../../../readyz", "/me#x", "a\\b"],
    )
    def test_sends_the_token_nowhere_else(self, terminal, simulator, path):
        other = path.replace("127.0.0.1:1", simulator.url.removeprefix("http://"))

        result = terminal.run(f"rensei api '{other}'")

        assert result.returncode in {1, 2}
        assert terminal.variables["RENSEI_AUTH_TOKEN"] not in json.dumps(simulator.requests())

    @pytest.mark.parametrize("header", ["Authorization: Bearer x", "cookie: a=b", "Host: other", "nothing"])
    def test_takes_no_header_that_signs(self, terminal, header):
        assert terminal.run(f"rensei api /me -H '{header}'").returncode == 2

    @pytest.mark.parametrize(
        "line", ["a b c", "FETCH /me", "/me -f x", "/me -F x=y", "POST /me --paginate", "/me -f a=b --input -"]
    )
    def test_says_what_is_wrong_in_a_line(self, terminal, line):
        result = terminal.run(f"rensei api {line}")

        assert (result.returncode, "Traceback" in result.stderr) == (2, False)


class TestJq:
    def test_writes_texts_as_they_are_and_the_rest_as_json(self, terminal, my_project):
        assert terminal.succeed("rensei project list --jq '.results[].id'") == "my-project\n"
        assert terminal.succeed("rensei --jq '.results | length, map(.id)' project list") == '1\n["my-project"]\n'

    def test_is_checked_before_anything_is_done(self, terminal, connected, make_profile):
        result = terminal.run(f"rensei dispatch --profile {make_profile()} Hello --jq '.['")

        assert result.returncode == 2
        assert not Run.objects.exists()

    def test_that_does_not_fit_ends_with_1(self, terminal):
        result = terminal.run("rensei whoami --jq '.user + 1'")

        assert (result.returncode, json.loads(result.stderr)["code"]) == (1, "JQ_FAILED")
