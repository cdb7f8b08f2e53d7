"""
The usage in an answer, as parts: the model, the tokens of each class, and the factors on their prices.

Only this module uses the fields of `usage`. Source: the types `BetaUsage`, `BetaMessageDeltaUsage` and
`Beta…IterationUsage` of the `anthropic` SDK, and https://platform.claude.com/docs/en/about-claude/pricing
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, TypeGuard

from catalog.providers import PROVIDERS
from integrations.providers.anthropic.begun import Begun
from integrations.providers.anthropic.usage_counts import COUNTED, TOKENS_MAX, bounded, usage_of
from rensei.core.limits import limit
from rensei.core.unknown import note_unknown
from rensei.core.usage import NOTHING, Usage, UsagePart, merged

ITERATIONS_MAX = limit(
    10_000,
    "steps",
    what="Steps of an answer whose usage is read one by one",
    told="operators: the usage is marked as estimated",
)
MODELS_MAX = 32
NAMES_MAX = 256
MODEL_CHARACTERS_MAX = 128

# Objects in `usage` whose members are counts. The members are named `object.member` here.
_OBJECTS = ("cache_creation", "output_tokens_details", "server_tool_use")
# Known fields that cost nothing, with the reason.
_FREE = {
    "server_tool_use.web_fetch_requests": "a fetch costs the tokens that it brings, and nothing else",
    "fallback_credit": "tells whether a discount was given, and is not known to make anything dearer",
    "type": "names the kind of an iteration",
    "model": "names the model of an iteration",
    "iterations": "has a reader of its own",
}
_ONE = Fraction(1)
# Every factor of 1 is this object, so that no fractions need to be compared.
_FACTORS = {
    name: {value: _ONE if factor == _ONE else factor for value, factor in factors.items()}
    for name, factors in PROVIDERS["claude"].price_factors.items()
}
# Iterations whose tokens are in the counts of the answer, and iterations whose tokens are not.
_INSIDE = frozenset({"message", "fallback_message"})
_BESIDE = frozenset({"compaction", "advisor_message"})


_NOTHING_ASKED: Mapping[str, object] = {}


class UsageReader:
    """
    Reads the usage reports of one answer. There is one, or several in a stream.

    Counts are cumulative, so the highest reported value of each is kept.
    """

    def __init__(self, *, asked: Mapping[str, object] = _NOTHING_ASKED) -> None:
        """:param asked: the values with a factor that the request asks for, by their names"""
        self.model = ""
        self.absurd = False
        # True if something has no known price: the charge is then an upper bound.
        self.uncertain = False
        # What has been seen since the output was last reported.
        self.begun = Begun()
        self._fell_back = False
        self._at_start: dict[str, int] = {}
        self._since: dict[str, int] = {}
        # Counts by unknown names in iterations whose known counts are in those of the answer.
        self._inside: Counter[str] = Counter()
        self._beside: dict[str, Counter[str]] = {}
        self._absurd_beside: dict[str, int] = {}
        self._samplings: dict[str, int] = {}
        self._unexpected: dict[str, dict[str, int]] = {}
        self._iterations_told = 0
        self._asked = asked
        self._factors: dict[str, Fraction] = {}

    @property
    def knows_prompt(self) -> bool:
        return "input_tokens" in self._at_start or "input_tokens" in self._since

    @property
    def knows_output(self) -> bool:
        """Return whether the output was counted. The count at the start of a stream is a placeholder."""
        return "output_tokens" in self._since

    def take_model(self, model: object, *, fell_back: bool = False) -> None:
        """Record which model answers, as named by the answer itself."""
        if isinstance(model, str) and (name := _printable(model)):
            self.model = name
            self._fell_back |= fell_back
        elif not fell_back:
            note_unknown("model", "(not named)")

    def take_unread(self, size: int) -> None:
        """Count what could not be read as output. What it told beside, such as another model, is lost."""
        self._note_uncertain("answer", "(not readable)")
        self.begun.take_unread(size)

    def take_unexpected(self, usage: object, *, place: str) -> None:
        """
        Process usage in a place where none is known. It may be a part of the other reports, or come in addition: for an
        upper bound, it is added to them. Of one place, the highest report counts.
        """
        if not isinstance(usage, dict):
            return
        self.uncertain = True
        found, is_believable = self._counts(usage)
        self.absurd |= not is_believable
        place = place if place in self._unexpected or len(self._unexpected) < NAMES_MAX else ""
        self._raise(self._unexpected.setdefault(place, {}), found)
        if (iterations := usage.get("iterations")) is not None:
            self._take_iterations(iterations)

    def take(self, usage: object, *, at_start: bool) -> None:
        """Process a usage report."""
        if not isinstance(usage, dict):
            return
        counts = self._at_start if at_start else self._since
        found, is_believable = self._counts(usage)
        self.absurd |= not is_believable
        for name, count in found.items():
            if not (at_start and name == "output_tokens") and count >= counts.get(name, 0):
                counts[name] = count
        if not at_start and "output_tokens" in found:
            self.begun = Begun()
        if (iterations := usage.get("iterations")) is not None:
            self._take_iterations(iterations)

    def parts(self, *, input_tokens_about: int, refused: bool) -> list[UsagePart]:
        """
        Return what each model used: as reported, and estimated where the report is missing or implausible.

        The first part is the answering model's. A refusal before any output reports counts that are not billed:
        https://platform.claude.com/docs/en/test-and-evaluate/strengthen-guardrails/handle-streaming-refusals
        """
        factor = _ONE
        for each in self._factors.values():
            if each is not _ONE:
                factor *= each
        for name, value in self._asked.items():
            # What was asked for and is not reported was given, for all that is known.
            if name not in self._factors and (each := _factor_of(name, value)) is not _ONE:
                factor *= each
                self.uncertain = True
        used, unreported = Usage(), NOTHING
        if not refused or self.absurd or not self.knows_prompt:
            used = bounded(usage_of(self._own_counts()))
            if self.absurd or not self.knows_prompt or not self.knows_output or self.begun.is_anything:
                unreported = self._unreported(used, input_tokens_about=input_tokens_about)
                used += unreported
        estimated = self.uncertain or self.absurd or not self.knows_prompt or not self.knows_output
        answered = UsagePart(
            model_id=self.model,
            usage=used,
            price_factor=factor,
            estimated=estimated or unreported is not NOTHING or not self.model,
            samplings=self._samplings.get(self.model, 1) + self.begun.turns,
            unreported=unreported,
        )
        if self._unexpected:
            answered += UsagePart(
                model_id=self.model,
                usage=bounded(sum(map(usage_of, self._unexpected.values()), start=NOTHING)),
                price_factor=factor,
                estimated=True,
                samplings=0,
            )
        if not self._beside:
            return [answered]
        guess = Usage(input_tokens=input_tokens_about, output_tokens=self.begun.output_tokens)
        beside = [
            UsagePart(
                model_id=model or self.model,
                usage=bounded(sum([guess] * self._absurd_beside.get(model, 0), start=usage_of(counts))),
                price_factor=factor,
                # Whether another model ran at the same speed is not reported.
                estimated=estimated or (model not in {"", self.model} and self._factors.get("speed", 1) != 1),
                samplings=self._samplings.get(model, 1),
            )
            for model, counts in self._beside.items()
        ]
        return merged([answered, *(part for part in beside if part.usage != Usage())])

    def _unreported(self, reported: Usage, *, input_tokens_about: int) -> Usage:
        """
        Estimate what the answer has used beyond its reports.

        A prompt whose size is not known has at least the estimated one. Each turn that began after the last report
        reads the prompt again, with what the tools have brought.
        """
        missing = 0
        if self.absurd or not self.knows_prompt:
            missing = max(0, input_tokens_about - reported.prompt_tokens)
        prompts = missing + self.begun.turns * (reported.prompt_tokens + missing)
        return bounded(
            Usage(
                input_tokens=prompts + self.begun.result_tokens,
                output_tokens=self.begun.output_tokens,
                web_search_requests=self.begun.searches,
            )
        )

    def _own_counts(self) -> dict[str, int]:
        """The counts of the answer. After a fallback, those at the start belonged to the model that declined."""
        counts = dict(self._since)
        if not (self._fell_back and "input_tokens" in self._since):
            for name, count in self._at_start.items():
                counts[name] = max(count, counts.get(name, 0))
        for name, count in self._inside.items():
            counts[name] = max(count, counts.get(name, 0))
        return counts

    def _take_iterations(self, iterations: object) -> None:
        if not isinstance(iterations, list) or len(iterations) > ITERATIONS_MAX:
            self._note_uncertain("usage_field", "iterations")
            return
        # Lists are cumulative, so an incomplete one does not show which model answered in the end.
        is_whole = len(iterations) >= self._iterations_told
        self._iterations_told = max(self._iterations_told, len(iterations))
        inside: Counter[str] = Counter()
        beside: dict[str, Counter[str]] = {}
        absurd: Counter[str] = Counter()
        samplings: Counter[str] = Counter()
        for iteration in self._objects_in(iterations):
            kind = str(iteration.get("type"))
            model = _printable(iteration.get("model") or "")
            if kind == "fallback_message" and is_whole:
                self.take_model(model, fell_back=True)
            found, is_believable = self._counts(iteration, is_iteration=True)
            self.uncertain |= not is_believable
            if kind in _INSIDE:
                samplings[model or self.model] += 1
                inside.update({name: count for name, count in found.items() if name not in COUNTED})
                continue
            if kind not in _BESIDE:
                # Its tokens may be in the counts of the answer. For an upper bound, they are assumed not to be.
                self._note_uncertain("iteration_type", kind)
            elif kind == "advisor_message" and not model:
                self._note_uncertain("iteration_type", f"{kind} without a model")
            if model not in self._beside and model not in beside and len(self._beside) + len(beside) >= MODELS_MAX:
                # Each model would have its own ledger line.
                self.uncertain, model = True, ""
            samplings[model] += 1
            beside.setdefault(model, Counter()).update(found)
            if not is_believable:
                absurd[model] += 1
        for model, counts in beside.items():
            self.uncertain |= any(count > TOKENS_MAX for count in counts.values())
            # A later report repeats the iterations of an earlier one, but may be incomplete.
            self._raise(self._beside.setdefault(model, Counter()), counts)
        self._raise(self._inside, inside)
        self._raise(self._absurd_beside, absurd)
        self._raise(self._samplings, samplings)

    def _raise(self, known: dict[str, int], counts: Mapping[str, int]) -> None:
        """Raise known counts to those of a report. Of more names than any real answer has, the highest counts."""
        for name, count in counts.items():
            if name not in known and len(known) >= NAMES_MAX:
                self.uncertain, name = True, next(reversed(known))
            known[name] = max(count, known.get(name, 0))

    def _objects_in(self, iterations: list[Any]) -> Iterator[dict[str, Any]]:
        """Walk the iterations of a report, and those inside of others, which no known report has."""
        waiting, count = list(reversed(iterations)), 0
        while waiting:
            iteration = waiting.pop()
            if not isinstance(iteration, dict):
                self._note_uncertain("iteration_type", type(iteration).__name__)
                continue
            count += 1
            if inner := iteration.get("iterations"):
                self._note_uncertain("usage_field", "iterations.iterations")
                if isinstance(inner, list) and count + len(waiting) + len(inner) <= ITERATIONS_MAX:
                    waiting += reversed(inner)
            yield iteration

    def _counts(self, usage: Mapping[str, Any], *, is_iteration: bool = False) -> tuple[dict[str, int], bool]:
        """
        List the counts of a report by name, including unknown ones, and record all other fields.

        Also return whether the known counts are plausible.
        """
        counts: dict[str, int] = {}
        is_believable = True
        for name, value in _flat(usage):
            if name in COUNTED:
                if _is_count(value):
                    counts[name] = value
                elif value is not None:
                    is_believable = False
            elif name in _FACTORS:
                self._take_factor(name, value)
                if is_iteration and value is not None:
                    # No known iteration has one. Applied to the whole answer, it is an upper bound.
                    self._note_uncertain("usage_field", f"iterations.{name}")
            elif name not in _FREE:
                note_unknown("usage_field", name)
                if not value or name.startswith("output_tokens_details."):
                    # It is zero or empty, or a part of the output, which is charged in full.
                    continue
                self.uncertain = True
                if ("token" in name or "request" in name) and _is_count(value):
                    counts[name] = value
        return counts, is_believable

    def _take_factor(self, name: str, value: object) -> None:
        """Record a factor on the token prices. For an unknown value, the highest known factor is used."""
        if value is None:
            return
        factor = _FACTORS[name].get(value) if isinstance(value, str) else None
        if factor is None:
            self._note_uncertain(name, value if isinstance(value, str) else "(not a text)")
            factor = max(_FACTORS[name].values())
        told = self._factors.get(name)
        if told is None or (factor is not told and factor > told):
            self._factors[name] = factor

    def _note_uncertain(self, kind: str, name: str) -> None:
        note_unknown(kind, name)
        self.uncertain = True


def asked_factors(params: Mapping[str, Any]) -> dict[str, object]:
    """List the values with a factor on prices that a request asks for, by their names. Most ask for none."""
    return {name: params[name] for name in _FACTORS.keys() & params.keys()}


def _factor_of(name: str, value: object) -> Fraction:
    """Return the factor of a value that was asked for; 1 if it has none, as the provider refuses such a value."""
    return _FACTORS[name].get(value, _ONE) if isinstance(value, str) else _ONE


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= TOKENS_MAX


def _flat(usage: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """List the fields of a report, with members of its known objects named `object.member`."""
    flat: list[tuple[str, Any]] = []
    for name, value in usage.items():
        if name not in _OBJECTS:
            flat.append((name, value))
        elif isinstance(value, dict):
            flat += [(f"{name}.{member}", inner) for member, inner in value.items()]
        elif value is not None:
            flat.append((name, value))
    return flat


def _printable(name: object) -> str:
    text = str(name)
    if not text.isprintable():
        text = "".join(character for character in text if character.isprintable())
    return text[:MODEL_CHARACTERS_MAX]
