"""What Prefect's server refuses when a form is submitted: the check it makes, on the schema that a deployment has."""

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from pipelines.flows.ablation_sweep import ablation_sweep
from pipelines.flows.reproduce import reproduce

SCHEMA = parameter_schema(ablation_sweep).model_dump_for_openapi()


def submit(**form):
    validate({"form": form}, SCHEMA, raise_on_error=True)


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
        ("seeds", [], "form.seeds"),
        ("profile", "mnits", "form.profile"),
        ("parallelism", 0, "form.parallelism"),
    ],
)
def test_bad_input_is_refused_with_the_fields_name(field, value, refused):
    with pytest.raises(ValidationError) as caught:
        submit(**{field: value})
    assert f"Validation failed for field '{refused}'" in str(caught.value)


def test_no_form_that_is_taken_has_ten_thousand_cells():
    lists = SCHEMA["definitions"]["SweepForm"]["properties"]
    kinds = len(lists["regularizers"]["items"]["enum"])
    longest = [lists[name]["maxItems"] for name in ("noise_ratios", "regularizer_weights", "reward_terms")]
    assert kinds * longest[0] * longest[1] * longest[2] == 3000


def test_reproduce_refuses_to_run_no_stage_at_a_time():
    schema = parameter_schema(reproduce).model_dump_for_openapi()
    validate({"parallelism": 2}, schema, raise_on_error=True)
    with pytest.raises(ValidationError, match="parallelism"):
        validate({"parallelism": 0}, schema, raise_on_error=True)


def test_reproduce_refuses_what_is_no_stage_and_takes_groups_and_their_members():
    schema = parameter_schema(reproduce).model_dump_for_openapi()
    for target in ("report", "align", "align@va-pi-0"):
        validate({"target": target}, schema, raise_on_error=True)
    for target in ("reprot", "align-all", ""):
        with pytest.raises(ValidationError, match="Validation failed for field 'target'"):
            validate({"target": target}, schema, raise_on_error=True)


def test_the_form_keeps_the_order_of_its_fields():
    fields = SCHEMA["definitions"]["SweepForm"]["properties"].values()
    assert [field["position"] for field in fields] == list(range(len(fields)))
