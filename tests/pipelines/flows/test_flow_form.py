"""What Prefect's server refuses when a form is submitted: the check it makes, on the schema that a deployment has."""

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate
from pydantic import ValidationError as FormError

from pipelines.flows.ablation_sweep import ablation_sweep, parse_form
from pipelines.flows.reproduce import reproduce
from pipelines.variants.sweep_form import opening_form

SCHEMA = parameter_schema(ablation_sweep).model_dump_for_openapi()


OPENED = opening_form().model_dump()


def submit(**changes):
    validate({"form": OPENED | changes}, SCHEMA, raise_on_error=True)


def test_a_form_that_can_work_is_taken():
    submit(noise_ratios=[0, 0.5], regularizers=["ce", "kl"], reward_terms=["prior", "mse+perceptual"], steps=None)
    submit(profile="scenes")
    submit(profile=None)
    submit()


@pytest.mark.parametrize(
    ("field", "value", "refused"),
    [
        ("noise_ratios", [0.5, 1.5], "form.noise_ratios[1]"),
        ("noise_ratios", [], "form.noise_ratios"),
        ("noise_ratios", [0.5, 0.5], "form.noise_ratios"),
        ("noise_ratios", [i / 10_000 for i in range(10_000)], "form.noise_ratios"),
        ("regularizer_weights", [-0.1], "form.regularizer_weights[0]"),
        ("regularizers", ["dropout"], "form.regularizers[0]"),
        ("reward_terms", ["mse+beauty"], "form.reward_terms[0]"),
        ("credits", ["pixel"], "form.credits[0]"),
        ("seeds", [], "form.seeds"),
        ("profile", "mnits", "form.profile"),
        ("parallelism", 0, "form.parallelism"),
        ("search", "random", "form.search"),
        ("cells", 0, "form.cells"),
        ("cells", 5000, "form.cells"),
        ("search_seed", -1, "form.search_seed"),
    ],
)
def test_bad_input_is_refused_with_the_fields_name(field, value, refused):
    with pytest.raises(ValidationError) as caught:
        submit(**{field: value})
    assert f"Validation failed for field '{refused}'" in str(caught.value)


@pytest.mark.parametrize("field", [name for name in OPENED if name not in ("steps", "profile")])
def test_a_field_that_was_emptied_is_refused_and_not_filled_in(field):
    """Prefect's form leaves such a field out, and may be told not to check what it submits."""
    form = {name: value for name, value in OPENED.items() if name != field}
    with pytest.raises(ValidationError, match=f"'{field}' is a required property"):
        validate({"form": form}, SCHEMA, raise_on_error=True)
    with pytest.raises(ParameterTypeError, match=f"form.{field}: Field required"):
        ablation_sweep.validate_parameters({"form": form})


def test_the_form_opens_with_the_papers_table_and_needs_neither_steps_nor_profile():
    assert SCHEMA["required"] == ["form"]  # Prefect calls optional what is not
    fields = SCHEMA["definitions"]["SweepForm"]["properties"]
    assert {name: field["default"] for name, field in fields.items()} == OPENED
    assert OPENED["noise_ratios"] == [0.0, 0.25, 0.5, 0.75, 0.95] and OPENED["seeds"] == [4, 5, 6]
    validate({"form": {n: v for n, v in OPENED.items() if n not in ("steps", "profile")}}, SCHEMA, raise_on_error=True)


def test_every_field_says_what_it_does_and_what_it_may_be():
    fields = SCHEMA["definitions"]["SweepForm"]["properties"]
    assert all(len(field["description"]) > 40 for field in fields.values())
    for name, words in {"noise_ratios": "0 to 1", "regularizer_weights": "0 or more", "parallelism": "1 to 64"}.items():
        assert words in fields[name]["description"]
    for name in ("regularizers", "credits"):
        assert all(f"{choice}:" in fields[name]["description"] for choice in fields[name]["items"]["enum"])
    assert all(f"{choice}:" in fields["search"]["description"] for choice in fields["search"]["enum"])


def test_a_search_has_options_too():
    form, _ = parse_form(["--search", "optuna", "--cells", "8", "--search-seed", "3"])
    assert (form.search, form.cells, form.search_seed) == ("optuna", 8, 3)


def test_an_option_that_is_not_given_is_as_the_form_opens_and_one_that_is_given_empty_is_refused():
    assert parse_form([]) == (opening_form(), False)
    form, dry_run = parse_form(["--seeds", "7", "8", "--dry-run"])
    assert (form, dry_run) == (opening_form(seeds=[7, 8]), True)
    for option in ("--noise-ratios", "--regularizers", "--seeds"):
        with pytest.raises(FormError, match=option.strip("-").replace("-", "_")):
            parse_form([option])


def test_no_form_that_is_taken_has_ten_thousand_cells():
    lists = SCHEMA["definitions"]["SweepForm"]["properties"]
    kinds = len(lists["regularizers"]["items"]["enum"]) * len(lists["credits"]["items"]["enum"])
    longest = [lists[name]["maxItems"] for name in ("noise_ratios", "regularizer_weights", "reward_terms")]
    assert kinds * longest[0] * longest[1] * longest[2] == 9000


def test_reproduce_refuses_to_run_no_stage_at_a_time():
    schema = parameter_schema(reproduce).model_dump_for_openapi()
    validate({"parallelism": 2}, schema, raise_on_error=True)
    with pytest.raises(ValidationError, match="parallelism"):
        validate({"parallelism": 0}, schema, raise_on_error=True)


def test_reproduce_refuses_what_is_no_stage_and_takes_groups_and_their_members():
    schema = parameter_schema(reproduce).model_dump_for_openapi()
    for target in ("report", "align", "align@va-pi"):
        validate({"target": target}, schema, raise_on_error=True)
    for target in ("reprot", "align-all", ""):
        with pytest.raises(ValidationError, match="Validation failed for field 'target'"):
            validate({"target": target}, schema, raise_on_error=True)


def test_the_form_keeps_the_order_of_its_fields():
    fields = SCHEMA["definitions"]["SweepForm"]["properties"].values()
    assert [field["position"] for field in fields] == list(range(len(fields)))
