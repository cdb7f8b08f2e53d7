"""What every command does with flags, output, refusals and secrets, and each of them once against the real server."""

import json
import stat

import pytest
from PIL import Image

from integrations.models import Integration
from rensei.dispatch.models import Run
from rensei.tokens.models import ApiToken
from tests import servers
from tests.billing.record import capacity_line

pytestmark = pytest.mark.outside

TABLES = ("project", "catalog", "integration", "profile", "run", "workflow", "token", "host", "pool")


class TestFlags:
    def test_stand_before_and_after_the_subcommand(self, terminal):
        before = terminal.read("rensei --json catalog list --provider claude")
        after = terminal.read("rensei catalog list --json --provider claude")

        assert before == after
        assert before["next"] is None

    def test_win_over_the_environment(self, terminal):
        url = f"http://127.0.0.1:{servers.free_port()}"

        result = terminal.run(f"rensei whoami --url {url}")

        assert result.returncode == 1
        assert result.stderr.startswith(f"SERVER_UNREACHABLE: No Rensei server answers at {url}")

    def test_read_a_token_from_standard_input(self, make_terminal, make_token):
        me = make_terminal().read(f"echo {make_token()} | rensei whoami --token - --json")

        assert me["user"]["email"] == "ada@acme.test"

    def test_take_no_token_from_the_command_line(self, make_terminal, make_token):
        token = make_token()

        result = make_terminal().run(f"rensei whoami --token {token}")

        assert result.returncode == 2
        assert token not in result.stdout + result.stderr

    def test_say_no_to_a_token_of_another_organization(self, terminal):
        result = terminal.run("rensei whoami --org evil")

        assert result.returncode == 1
        assert result.stderr.startswith("ORG_MISMATCH: ")


class TestOutput:
    @pytest.mark.parametrize("noun", TABLES)
    def test_is_the_json_of_the_server(self, terminal, connected, make_profile, my_project, noun):
        make_profile()
        path = {"catalog": "catalog"}.get(noun, f"{noun}s")

        written = terminal.read(f"rensei {noun} list --json")
        curl = f'curl -s "$RENSEI_API_URL/api/v1/{path}?pageSize=200" -H "Authorization: Bearer $RENSEI_AUTH_TOKEN"'
        rest = terminal.read(curl)

        for document in (written, rest):
            for row in document["results"]:
                row.pop("lastUsedAt", None)
        assert written["results"] == rest["results"]

    def test_has_no_colours_in_a_pipe(self, terminal):
        assert "\x1b" not in terminal.succeed("rensei catalog list")

    def test_of_a_refusal_is_the_problem_document_for_programs(self, terminal):
        result = terminal.run("rensei profile show prof_unknown --json")

        assert (result.returncode, result.stdout) == (1, "")
        assert json.loads(result.stderr)["code"] == "NOT_FOUND"

    def test_of_several_wrong_values_names_each(self, terminal):
        line = "rensei pool create --name '' --provider nowhere"

        result = terminal.run(line)

        assert result.returncode == 1
        assert "/name" in result.stderr
        assert "/providerId" in result.stderr


class TestExitCode:
    @pytest.mark.parametrize("line", ["rensei nothing", "rensei profile create", "rensei dispatch", "rensei run show"])
    def test_is_2_for_a_wrong_command_line(self, terminal, line):
        assert terminal.run(line).returncode == 2

    def test_is_1_for_a_token_that_does_not_work(self, terminal):
        result = terminal.run("rensei whoami", RENSEI_AUTH_TOKEN="rsk_live_nothing")

        assert result.returncode == 1
        assert result.stderr.startswith("NOT_AUTHENTICATED: ")
        assert "rensei setup" in result.stderr
        assert "Traceback" not in result.stderr

    def test_comes_with_the_cause_only_for_debugging(self, terminal):
        url = f"http://127.0.0.1:{servers.free_port()}"

        result = terminal.run(f"rensei whoami --debug --url {url}")

        assert "Traceback" in result.stderr
        assert terminal.variables["RENSEI_AUTH_TOKEN"] not in result.stderr

    def test_is_1_where_something_else_than_rensei_answers(self, terminal, simulator_process):
        result = terminal.run(f"rensei whoami --url {simulator_process.url}")

        assert result.returncode == 1
        assert result.stderr.startswith("NOT_A_RENSEI_SERVER: ")


class TestProject:
    def test_is_created_and_listed(self, terminal):
        terminal.succeed("rensei project create research --name 'Research Group'")

        assert "Research Group" in terminal.succeed("rensei project list")


class TestPolicy:
    def test_is_set_from_a_pipe_and_shown(self, terminal, my_project):
        line = """echo '{"*": {"shared": {"allowed": false}}}' | rensei policy set - --project my-project"""

        terminal.succeed(line)

        assert "denied by project" in terminal.succeed("rensei policy show --project my-project")
        assert "denied" not in terminal.succeed("rensei policy show")


class TestIntegration:
    def test_is_added_tested_rotated_and_removed_with_keys_from_pipes(self, terminal, make_key):
        first, second = make_key(), make_key()
        added = json.loads(terminal.succeed("rensei integration add --name Main --json", given=first + "\n"))

        verdict = terminal.read(f"rensei integration test {added['id']} --json")
        rotated = json.loads(terminal.succeed(f"rensei integration rotate {added['id']} --json", given=second))
        terminal.succeed(f"rensei integration remove {added['id']}")

        assert verdict["ok"] is True
        assert added["keyHint"].endswith(first[-4:])
        assert rotated["keyHint"].endswith(second[-4:])
        assert not Integration.objects.exists()

    def test_whose_key_does_not_work_ends_with_1(self, terminal, make_key):
        result = terminal.run("rensei integration add", given=make_key("revoked"))

        assert result.returncode == 1
        assert "does not work" in result.stderr
        assert not Integration.objects.filter(status="ok").exists()


class TestProfile:
    def test_is_changed_and_deleted(self, terminal, make_profile):
        profile = make_profile()

        terminal.succeed(f"rensei profile update {profile} --auth-modes shared,byok --system 'Be brief.' --default")
        shown = terminal.read(f"rensei profile show {profile} --json")
        terminal.succeed(f"rensei profile delete {profile} --yes")

        assert (shown["authModes"], shown["system"], shown["isDefault"]) == (["byok", "shared"], "Be brief.", True)
        assert terminal.read("rensei profile list --json")["results"] == []

    def test_resolves_to_what_would_happen(self, terminal, make_profile, connected):
        profile = make_profile()

        verdict = terminal.read(f"rensei profile resolve {profile} --json")

        assert (verdict["wouldRun"], verdict["authMode"]) == (True, "byok")

    def test_that_would_be_refused_ends_with_1_and_the_code(self, terminal, make_profile):
        result = terminal.run(f"rensei profile resolve {make_profile()}")

        assert result.returncode == 1
        assert "BYOK_NOT_CONFIGURED" in result.stderr


class TestWhy:
    def test_shows_each_gate_and_ends_with_1_and_the_code(self, terminal, make_profile):
        profile = make_profile()

        result = terminal.run(f"rensei why --profile {profile} --as ada@acme.test --input Hello.")
        document = terminal.run(f"rensei why --profile {profile} --json")

        assert (result.returncode, document.returncode) == (1, 1)
        assert "A key can sign" in result.stdout
        assert "BYOK_NOT_CONFIGURED" in result.stderr
        assert json.loads(document.stdout)["code"] == "BYOK_NOT_CONFIGURED"


class TestDispatch:
    def test_writes_the_answer_and_apart_from_it_mode_and_cost(self, terminal, make_profile, connected):
        result = terminal.run(f"rensei dispatch --profile {make_profile()} --input -", given="What is a vault?")

        run = Run.objects.get()
        assert result.returncode == 0, result.stderr
        assert result.stdout == run.output_text + "\n"
        assert "byok, paid by organization" in result.stderr
        assert "$0." in result.stderr

    def test_says_everything_that_it_was_told(self, terminal, make_profile, connected, my_project, simulator):
        Image.new("RGB", (8, 8), "red").save(terminal.home / "red.png")

        terminal.succeed(
            f"rensei dispatch --profile {make_profile()} --input 'What is this?' --image red.png --effort high "
            "--system 'You see.' --max-tokens 3000 --context-window 90000 --project my-project"
        )

        sent = [request for request in simulator.requests() if request["path"] == "/v1/messages"][-1]["body"]
        assert [block["type"] for block in sent["messages"][0]["content"]] == ["image", "text"]
        assert "You see." in json.dumps(sent["system"])
        assert sent["output_config"]["effort"] == "high"
        assert sent["max_tokens"] == 3000
        run = Run.objects.get()
        assert run.project.slug == "my-project"

    def test_ends_with_1_where_the_run_fails(self, terminal, make_profile, connected):
        result = terminal.run(f"rensei dispatch --profile {make_profile()} --input '[[fault:unprocessable]] Hello'")

        assert result.returncode == 1
        assert Run.objects.get().error["code"] in result.stderr

    def test_ends_with_1_where_it_is_refused(self, terminal, make_profile):
        result = terminal.run(f"rensei dispatch --profile {make_profile()} --input Hello")

        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("BYOK_NOT_CONFIGURED: ")

    def test_waits_no_longer_than_it_is_told(self, terminal, make_profile, connected):
        line = f"rensei dispatch --profile {make_profile()} --input '[[slow 5]] Hello' --timeout 1"

        result = terminal.run(line)

        assert result.returncode == 1
        assert "WAIT_TIMEOUT" in result.stderr
        terminal.succeed(f"rensei run cancel {Run.objects.get().id}")

    def test_leaves_a_run_behind_that_can_be_watched_listed_and_shown(self, terminal, make_profile, connected):
        run_id = terminal.succeed(f"rensei dispatch --profile {make_profile()} --input Hello --no-wait").strip()

        answer = terminal.succeed(f"rensei run watch {run_id}")

        assert "This is the Anthropic simulator" in answer
        assert run_id in terminal.succeed("rensei run list --state SUCCEEDED")
        assert "This is the Anthropic simulator" in terminal.succeed(f"rensei run show {run_id}")
        assert terminal.read("rensei usage --json")["total"]["calls"] == 1

    def test_gives_programs_the_run(self, terminal, make_profile, connected):
        run = terminal.read(f"rensei dispatch --profile {make_profile()} --input Hello --json")

        assert (run["state"], run["id"]) == ("SUCCEEDED", Run.objects.get().id)


class TestWorkflow:
    DOCUMENT = """\
nodeId: llm_call_1
nodeType: action/llm.inference
config:
  profileId: prof_anthropic_deep_reasoning
  systemPrompt: "You are an expert problem solver. Think deeply."
"""

    def test_of_the_documentation_is_applied_and_run(self, terminal, make_profile, connected):
        make_profile(name="anthropic-deep-reasoning")
        (terminal.home / "workflow.yaml").write_text(self.DOCUMENT)

        terminal.succeed("rensei workflow apply workflow.yaml")
        applied = terminal.read("rensei workflow apply workflow.yaml --json")
        written = terminal.succeed("rensei workflow run llm_call_1 --input 'Why is the sky blue?'")

        assert applied["version"] == 1
        assert "This is the Anthropic simulator" in written
        assert self.DOCUMENT.strip() in terminal.succeed("rensei workflow show llm_call_1")

    def test_that_is_wrong_is_refused_with_the_place(self, terminal):
        result = terminal.run("rensei workflow apply -", given=self.DOCUMENT.replace("nodeType", "kind"))

        assert result.returncode == 1
        assert result.stderr.startswith("WORKFLOW_INVALID: ")


class TestToken:
    def test_is_written_once_and_shut(self, terminal):
        created = terminal.run("rensei token create --name ci")
        token = created.stdout.strip()

        assert terminal.run("rensei whoami", RENSEI_AUTH_TOKEN=token).returncode == 0
        row = next(one for one in terminal.read("rensei token list --json")["results"] if one["name"] == "ci")
        terminal.succeed(f"rensei token revoke {row['id']}")
        assert terminal.run("rensei whoami", RENSEI_AUTH_TOKEN=token).returncode == 1


class TestPool:
    def test_is_created(self, terminal):
        pool = terminal.read("rensei pool create --name office --provider local --json")

        assert (pool["name"], pool["providerId"]) == ("office", "local")

    def test_is_added_changed_and_removed(self, terminal):
        terminal.succeed("""rensei capacity pool add --name cloud --provider e2b --config '{"template": "mine"}'""")
        terminal.succeed("rensei capacity pool change cloud --inactive")
        changed = terminal.read("rensei capacity pool list --json")["results"]
        refused = terminal.run("rensei capacity pool remove nowhere --yes")
        terminal.succeed("rensei capacity pool remove cloud --yes")

        assert [(one["name"], one["active"], one["config"]) for one in changed] == [
            ("cloud", False, {"template": "mine"})
        ]
        assert "There is no pool 'nowhere'" in refused.stderr
        assert terminal.read("rensei capacity pool list --json")["results"] == []

    def test_has_a_cost(self, terminal, acme):
        capacity_line(acme, pool="cloud")

        shown = terminal.read("rensei capacity cost --window 24h --json")["results"]

        assert [(one["pool"], one["amountUsd"]) for one in shown] == [("cloud", "0.0027225")]
        assert "cloud" in terminal.run("rensei capacity cost").stdout

    def test_is_shown_with_the_built_in_ones(self, terminal):
        terminal.succeed("rensei pool create --name office --provider local")

        shown = terminal.read("rensei capacity show --json")["results"]
        table = terminal.run("rensei capacity show").stdout.split()

        assert [(pool["name"], pool["running"]) for pool in shown] == [("local", 0), ("sandbox", 0), ("office", 0)]
        assert {"local", "sandbox", "office"} <= set(table)


class TestConfiguration:
    def test_is_closed_to_other_users(self, machine):
        assert stat.S_IMODE(machine.config_file.stat().st_mode) == 0o600
        assert stat.S_IMODE(machine.config_file.parent.stat().st_mode) == 0o700

    def test_holds_only_the_token_of_the_machine(self, machine, ada):
        stored = machine.config()["contexts"][0]["token"]

        assert ApiToken.objects.get(hint=stored[-4:]).host_id == machine.config()["contexts"][0]["host_id"]

    def test_sends_its_token_to_no_other_server(self, machine):
        result = machine.run(f"rensei whoami --url http://127.0.0.1:{servers.free_port()}")

        assert result.stderr.startswith("NOT_SIGNED_IN: ")

    def test_that_is_broken_is_said_to_be(self, machine):
        machine.config_file.write_text("{")

        result = machine.run("rensei whoami")

        assert result.returncode == 1
        assert result.stderr.startswith("CONFIG_UNREADABLE: ")

    def test_keeps_several_organizations_apart(self, machine, make_token, eve, access_of):
        machine.succeed("rensei setup --token - --login none", given=make_token(access_of(eve, "evil")))

        assert machine.read("rensei whoami --json")["org"]["slug"] == "evil"
        assert machine.read("rensei whoami --org acme --json")["org"]["slug"] == "acme"
        machine.succeed("rensei context use acme")
        assert machine.read("rensei whoami --json")["org"]["slug"] == "acme"


class TestDoctor:
    def test_finds_everything_in_order(self, machine):
        checked = machine.read("rensei doctor --json")

        assert {row["ok"] for row in checked["results"]} == {True}

    def test_finds_a_machine_that_was_shut_out(self, machine, make_token):
        host = machine.config()["contexts"][0]["host_id"]
        by_itself = machine.run(f"rensei host revoke {host}")
        machine.succeed(f"rensei host revoke {host}", RENSEI_AUTH_TOKEN=make_token())

        result = machine.run("rensei doctor")

        assert by_itself.stderr.startswith("SCOPE_MISSING: ")
        assert result.returncode == 1
        assert "rensei setup" in result.stdout

    def test_finds_a_project_that_is_missing(self, machine):
        result = machine.run("rensei doctor --project nowhere")

        assert result.returncode == 1
        assert "rensei project create nowhere" in result.stdout


class TestDeletingAModel:
    def test_asks_first_and_is_not_done_unasked(self, terminal):
        terminal.succeed('rensei catalog create --provider claude --model-id nova --display-name "Nova"')

        unasked = terminal.run("echo y | rensei catalog delete nova")
        kept = terminal.run("rensei catalog show nova")
        agreed = terminal.succeed("rensei catalog delete nova --yes")

        assert unasked.stderr.startswith("CONFIRMATION_NEEDED: nova was not deleted.")
        assert (unasked.returncode, kept.returncode) == (1, 0)
        assert "Deleted nova." in agreed
        assert terminal.run("rensei catalog show nova").returncode == 1

    def test_leaves_the_platform_s_models_alone(self, terminal):
        refused = terminal.run("rensei catalog delete claude-opus-5-5 --yes")

        assert refused.returncode == 1
        assert refused.stderr.startswith("NOT_PERMITTED: 'claude-opus-5-5' is a model of the platform")
        assert "deny it in the access policy" in refused.stderr
