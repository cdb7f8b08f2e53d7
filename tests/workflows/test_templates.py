"""The references of a text: three forms, nothing evaluated, nothing read twice."""

import pytest

from rensei.workflows import templates
from rensei.workflows.templates import BadReference, Reference, RenderedTextTooLong, Rendering, references
from tests.attacks import peak_bytes


def render(text, *, given, outputs):
    return Rendering(given=given, outputs=outputs).render(text)


class TestReferences:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("nothing", []),
            ("{{ input }}", [Reference()]),
            ("{{input}}", [Reference()]),
            ("{{\n  input.topic\n}}", [Reference(name="topic")]),
            ("{{ input.snake_case-and-dash }}", [Reference(name="snake_case-and-dash")]),
            ("{{ nodes.llm_call_1.output }}", [Reference(node="llm_call_1")]),
            ("{{ nodes.1-a.output }}{{ input.x }}", [Reference(node="1-a"), Reference(name="x")]),
            ("{ input } {% input %} }} ${input}", []),
            (r"\{{ input }}", []),
        ],
    )
    def test_are_found(self, text, found):
        assert references(text) == found

    @pytest.mark.parametrize(
        "text",
        [
            "{{ }}",
            "{{ inputs }}",
            "{{ input. }}",
            "{{ input.a.b }}",
            "{{ input['x'] }}",
            "{{ input.x | upper }}",
            "{{ input.__class__.__mro__ }}",
            "{{ nodes.a }}",
            "{{ nodes.a.error }}",
            "{{ nodes.a.output.x }}",
            "{{ nodes..output }}",
            "{{ 7 * 7 }}",
            "{{ config.secret }}",
            "{{ {{ input }} }}",
            "{{ input",
            "a {{ input }} {{",
        ],
    )
    def test_of_any_other_form_are_refused(self, text):
        with pytest.raises(BadReference) as refused:
            references(text)

        assert "{{" in str(refused.value)


class TestRender:
    @pytest.mark.parametrize(
        ("text", "given", "rendered"),
        [
            ("Hello {{ input }}!", "Ada", "Hello Ada!"),
            ("{{ input }}", {"a": "é", "b": [1, None, True]}, '{"a": "é", "b": [1, null, true]}'),
            ("{{ input.a }}{{ input.b }}", {"a": "x", "b": 12.5}, "x12.5"),
            ("{{ input.a }}", {"a": {"b": "c"}}, '{"b": "c"}'),
            (r"\{{ input }} {{ input }}", "x", "{{ input }} x"),
            (r"C:\{dir}\ {{ input }}", "x", r"C:\{dir}\ x"),
        ],
    )
    def test_puts_the_input_in(self, text, given, rendered):
        assert render(text, given=given, outputs={}) == rendered

    def test_puts_outputs_in(self):
        assert render("{{ nodes.a.output }}-{{ nodes.b.output }}", given=None, outputs={"a": "1", "b": "2"}) == "1-2"

    def test_reads_nothing_twice(self):
        outputs = {"a": "{{ input.secret }} \\{{ {{"}

        assert render("{{ nodes.a.output }}", given={"secret": "canary"}, outputs=outputs) == outputs["a"]

    def test_counts_before_it_builds(self):
        bomb = "{{ nodes.a.output }}" * 10_000

        with pytest.raises(RenderedTextTooLong) as refused:
            render(bomb, given=None, outputs={"a": "x" * 10_000_000})

        assert str(templates.LONGEST_RENDERED) in refused.value.detail

    def test_writes_a_value_once_however_often_it_is_referred_to(self):
        given = {"text": "é" * 1_000_000}

        def refused():
            with pytest.raises(RenderedTextTooLong):
                render("{{input}}" * 2500, given=given, outputs={})

        # Written once, the value takes 2 MB, and twice as much while it is written.
        assert peak_bytes(refused) < 12_000_000

    def test_counts_the_texts_of_a_node_together(self):
        rendering = Rendering(given="x" * (templates.LONGEST_RENDERED // 3), outputs={})
        for _ in range(3):
            rendering.render("{{ input }}")

        with pytest.raises(RenderedTextTooLong):
            rendering.render("{{ input }}")
