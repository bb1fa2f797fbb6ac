from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from loadtest import scenario as scenario_module
from loadtest.scenario import SCENARIO_DIR, ScenarioError, find_scenario, load_scenario, parse_scenario
from loadtest.workloads.mix import count_requests


def minimal(**fields: Any) -> dict[str, Any]:
    return {
        "name": "t",
        "mix": [{"surface": "http_classify"}],
        "phases": [{"name": "main", "arrival": {"kind": "poisson", "rate_per_s": 5}, "duration_s": 2}],
        "slo": {"deadline_ms": 100},
        **fields,
    }


def phase(**fields: Any) -> dict[str, Any]:
    return {"name": "p", "arrival": {"kind": "uniform", "rate_per_s": 5}, "duration_s": 2, **fields}


SHIPPED = sorted(path.stem for path in SCENARIO_DIR.glob("*.yaml"))


def test_the_scenarios_that_the_documentation_names_are_shipped() -> None:
    chat = ["chat-image", "chat-repeated", "chat-text"]
    assert sorted(SHIPPED) == sorted(
        [
            *chat,
            "classify-burst",
            "classify-poisson",
            "fill-and-squeeze",
            "hot-experts",
            "mixed-200",
            "mixed-surfaces",
            "smoke",
        ]
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_scenario_is_valid_and_sends_enough_for_its_objectives(name: str) -> None:
    scenario = load_scenario(name)
    assert scenario.name == name
    if scenario.slo.max_p99_ms is not None:
        assert count_requests(scenario) > 700


def test_every_field_says_what_it_is() -> None:
    models = [item for item in vars(scenario_module).values() if isinstance(item, type) and issubclass(item, BaseModel)]
    fields = {
        f"{model.__name__}.{name}": field.description
        for model in models
        for name, field in model.model_fields.items()
        if name != "kind"
    }
    assert len(fields) > 40
    assert [name for name, description in fields.items() if not description] == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sead": 1}, "sead"),
        ({"seed": -1}, "seed"),
        ({"mix": []}, "mix"),
        ({"mix": [{"surface": "smtp"}]}, "mix[0].surface"),
        ({"mix": [{"surface": "http_oip", "weight": 0}]}, "mix[0].weight"),
        ({"mix": [{"surface": "http_oip", "chat": {}}]}, "http_oip is no chat surface"),
        ({"mix": [{"surface": "http_oip", "draw": {}}]}, "http_oip makes no pictures"),
        ({"mix": [{"surface": "http_images", "draw": {"size": "big"}}]}, "mix[0].draw.size"),
        ({"mix": [{"surface": "http_images", "draw": {"settings": {"k0": [1]}}}]}, "mix[0].draw.settings.k0"),
        ({"mix": [{"surface": "http_oip", "phases": ["later"]}]}, "there is no phase later; there are: main"),
        (
            {"slo": {"deadline_ms": 1, "isolation": {"baseline": "main", "attack": "x", "tenants": ["a"]}}},
            "there is no phase x",
        ),
        (
            {"mix": [{"surface": "http_oip", "phases": ["a"]}], "phases": [phase(name="a"), phase(name="b")]},
            "nothing is sent in phase b",
        ),
        ({"mix": [{"surface": "http_classify", "images_per_request": 0}]}, "images_per_request is 0"),
        ({"mix": [{"surface": "http_chat", "chat": {"max_token": 3}}]}, "mix[0].chat.max_token"),
        ({"mix": [{"surface": "http_oip", "budget": {"latency": 1}}]}, "mix[0].budget.latency"),
        ({"phases": [phase(duration_s=0)]}, "phases[0].duration_s"),
        ({"phases": [phase(arrival={"kind": "gamma", "rate_per_s": 5})]}, "phases[0].arrival.gamma.cv"),
        ({"phases": [phase(arrival={"kind": "poisson", "rate_per_s": float("inf")})]}, "rate_per_s"),
        ({"phases": [phase(arrival={"kind": "burst"})]}, "phases[0].arrival"),
        ({"phases": [phase(arrival={"kind": "trace", "times_s": [2, 1]})]}, "times_s goes back"),
        ({"phases": [phase(is_warm_up=True)]}, "warm-up phases must come first"),
        ({"phases": [phase(), phase(name="w", is_warm_up=True)]}, "warm-up phases must come first"),
        ({"phases": [phase(), phase()]}, "names must differ"),
        ({"target": {"http_url": "localhost:8000"}}, "target.http_url"),
        ({"target": {"grpc_address": "localhost"}}, "target.grpc_address"),
        ({"slo": {"deadline_ms": 100, "min_good_share": 1.5}}, "slo.min_good_share"),
        ({"slo": {}}, "slo.deadline_ms"),
        ({"tenants": [{"name": "a", "api_key_env": "K"}]}, "tenants default are not in"),
        ({"tenants": [{"name": "a", "api_key": "secret"}]}, "tenants[0].api_key"),
        ({"images": {"formats": ["gif"]}}, "images.formats[0]"),
    ],
)
def test_an_error_names_the_field(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(minimal(**change), source="here.yaml")
    assert str(caught.value).startswith("here.yaml: ")
    assert named in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ScenarioError, match="2 problem"):
        parse_scenario(minimal(seed=-1, sead=1), source="x")


@pytest.mark.parametrize("text", ["", "- a list", "name: [unclosed", "\0"])
def test_a_file_that_is_no_scenario_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=r"bad\.yaml"):
        load_scenario(str(path))


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ScenarioError, match="smoke"):
        find_scenario("smok")


def test_overrides_make_a_new_scenario_and_are_validated() -> None:
    phases = [
        phase(name="warm", is_warm_up=True),
        phase(name="main"),
        phase(name="closed", arrival={"kind": "closed", "concurrency": 2}),
    ]
    scenario = parse_scenario(minimal(phases=phases), source="x")
    other = scenario.with_overrides(http_url="http://h:1", grpc_address="h:2", seed=9, rate_per_s=50)
    assert (other.target.http_url, other.target.grpc_address, other.seed) == ("http://h:1", "h:2", 9)
    assert [getattr(p.arrival, "rate_per_s", None) for p in other.phases] == [5, 50, None]
    assert scenario.seed == 0
    with pytest.raises(ScenarioError, match="rate_per_s"):
        scenario.with_overrides(rate_per_s=-1)


def test_a_scenario_survives_yaml() -> None:
    scenario = parse_scenario(minimal(), source="x")
    again = parse_scenario(yaml.safe_load(yaml.safe_dump(scenario.model_dump(mode="json"))), source="x")
    assert again == scenario
