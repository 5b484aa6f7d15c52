"""A run started, followed and rejected in Prefect's UI, in a browser, on the servers of `dreambooth up`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreambooth_core.registry import listing, promotion
from dreambooth_core.servers.stack import deployments, services
from dreambooth_core.servers.stack.settings import StackLayout, read_settings
from tests import browser
from tests.watched import ROOT, Exporter, exporting

pytestmark = [pytest.mark.servers, pytest.mark.timeout(3600)]

PHOTOS = "examples/small_world/photos/robot"
NAME = "robot"
"""Default name of the run, from the folder of the photos."""
STEPS = 60
PROMPTS = ["a photo of {subject}", "{subject} on the beach"]
REASON = "its colours are off"
FIELD = """((...path) => {
  const own = it => it.querySelector(".schema-form-property__label").innerText;
  let place = document;
  for (const label of path)
    place = [...place.querySelectorAll(".schema-form-property")]
      .find(it => own(it).replace(" (Optional)", "") === label);
  return place.querySelector("textarea, input, select");
})"""
FIELDS = """[...document.querySelectorAll(".schema-form-property")].map(it => {
  const path = [];
  for (let at = it; at; at = at.parentElement.closest(".schema-form-property"))
    path.unshift(at.querySelector(".schema-form-property__label").innerText);
  const control = it.querySelector("textarea, input, select");
  return {
    path,
    description: it.querySelector(":scope > .p-label__header .p-label__description")?.innerText ?? "",
    choices: [...(control?.options ?? [])].map(each => each.value),
    value: control?.value ?? "",
  };
})"""
ARTIFACTS = """[...document.querySelectorAll("[role=tab], .p-tab, button")]
  .find(it => it.innerText.trim() === "Artifacts")"""
PASSWORD = 'document.querySelector("input[type=password]")'
SUBMIT = 'document.querySelector("button[type=submit]")'
RESUME = """[...document.querySelectorAll("button")].find(it => it.innerText.trim() === "Resume")"""
APPROVAL = 'document.querySelector(".p-modal article")'
LINK = f"{APPROVAL}.querySelector('a')"
ROWS = f"""[...{APPROVAL}.querySelectorAll("tbody tr")].map(
  row => [...row.querySelectorAll("td")].map(it => it.innerText.trim()))"""
ANSWER = 'document.querySelector(".p-modal__footer .p-button--default")'
REFUSED = '[...document.querySelectorAll(".p-label__message--failed")].map(it => it.innerText)'
TEXT = "document.body.innerText"
IMAGE = '[...document.querySelectorAll("img")].find(it => it.src.startsWith("data:image/webp"))'
ARTIFACT_WORDS = {
    "plan": ["instance images", "class images", "training", "evaluation"],
    "dataset": ["no findings"],
    "verdict": [f"{NAME}-", "candidate", "difference", "images won"],
    "model-card": [f"{NAME}, version 1", "Training data", "Scores"],
    "cost": ["gpu seconds", "saved seconds", "all"],
    "summary": ["tuned", "status", "stored_report"],
    "gallery": [],
    **{f"{stage}-progress": ["100"] for stage in ("priors", "train", "evaluate", "sample")},
}
"""Artifact -> words on its page."""


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    with exporting(tmp_path_factory.mktemp("exporter")) as exporter:
        yield exporter


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project, with `train` as short as the smoke deployment and without a subject."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("flows", "examples"):
        (folder / name).symlink_to(ROOT / name)
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    declared = {each["name"]: each for each in document["deployments"]}
    config = {**declared["ci-smoke"]["parameters"]["config"], "train": {"steps": STEPS}}
    # promotion is decided by a user
    config["gate"] = {**config["gate"], "auto_promote": False}
    # the gate needs more than one prompt
    config["evaluation"] = {**config["evaluation"], "prompts": PROMPTS}
    del config["name"], config["subject"]
    declared["train"]["parameters"] = {"config": config}
    (folder / "prefect.yaml").write_text(yaml.safe_dump(document))
    return folder


@pytest.fixture(scope="module")
def place(
    project: Path, exporter: Exporter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StackLayout]:
    """A running stack."""
    home = tmp_path_factory.mktemp("up")
    environment = {**os.environ, **exporter.environment, "PYTHONPATH": str(ROOT)}

    def dreambooth(*words: str) -> str:
        command = [sys.executable, "-m", "dreambooth_core.cli", *words, "--folder", str(home)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        dreambooth("up", "--detach", "--project", str(project))
        settings = read_settings(home)
        assert settings is not None
        yield StackLayout(home, settings, project)
    finally:
        dreambooth("down")


@pytest.fixture(scope="module")
def tab(place: StackLayout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Tab]:
    """A browser that is logged in to Prefect and MLflow."""
    if browser.executable() is None:
        pytest.skip("needs Chromium")
    with browser.browsing(tmp_path_factory.mktemp("profile")) as tab:
        tab.open(place.mlflow.replace("://", f"://{place.login}@"), 1400, 1000)
        tab.until("document.title === 'MLflow'", 120)
        tab.open(f"{place.prefect}/login", 1400, 1000)
        tab.write(PASSWORD, place.login)
        tab.photograph("ui-login")
        tab.click(SUBMIT)
        tab.until(f"!{PASSWORD} && {TEXT}.includes('Deployments')", 120)
        tab.problems.clear()
        yield tab


def asked(place: StackLayout, path: str, **what: Any) -> Any:
    """Response of Prefect's API."""
    response = deployments.asked(place, path, what, 60)
    assert response is not None
    assert response.status < 300
    return response.document()


def field(*path: str) -> str:
    return f"{FIELD}({', '.join(map(json.dumps, path))})"


def deployment(place: StackLayout, name: str) -> str:
    """Id of a deployment."""
    (found,) = asked(place, "/deployments/filter", deployments={"name": {"any_": [name]}})
    return str(found["id"])


def check_form(tab: browser.Tab) -> None:
    """Order and descriptions of the groups, choices, and required fields."""
    fields = [{**found, "path": found["path"][1:]} for found in tab.ask(FIELDS)]
    required = [found["path"] for found in fields if "(Optional)" not in "".join(found["path"])]
    assert required == [[], ["Subject"], ["Subject", "Images"], ["Subject", "Class Noun"]]
    known = {
        tuple(name.replace(" (Optional)", "") for name in found["path"]): found for found in fields
    }
    groups = [path[0] for path in known if len(path) == 2]
    names = list(dict.fromkeys(groups))
    assert names[:6] == ["Subject", "Model", "Dataset", "Prior", "Train", "Adapter"]
    assert names[-3:] == ["Storage", "Tracking", "Paths"]
    assert all(known[name,]["description"] for name in names)
    assert {"sdxl", "flux", "stable_diffusion"} <= {*known["Model", "Family"]["choices"]}
    assert known["Train", "Method"]["choices"][:2] == ["full", "lora"]
    assert known["Train", "Learning Rate"]["value"] == "", "set by the method by default"


def fill_in(tab: browser.Tab) -> None:
    """Submit an empty form, then an out-of-range value, then fill in valid ones."""
    tab.click(SUBMIT)
    tab.until(f"{REFUSED}.length")
    assert tab.ask(REFUSED) == [
        f"'{name}' is a required property" for name in ("images", "class_noun")
    ]
    tab.write(field("config", "Subject", "Images"), PHOTOS)
    tab.write(field("config", "Subject", "Class Noun"), "robot")
    tab.write(field("config", "Train", "Steps"), "0")
    # the message about the first submission may cover the button for some seconds
    for attempts_left in reversed(range(4)):
        tab.click(SUBMIT)
        try:
            tab.until(f"{TEXT}.includes('0 is less than the minimum of 1')", seconds=10)
            break
        except AssertionError:
            if not attempts_left:
                raise
    tab.write(field("config", "Train", "Steps"), str(STEPS))
    # the message covers the button for some seconds
    tab.until(f"!{TEXT}.includes('0 is less than the minimum of 1')")


def first_step(exporter: Exporter, pressed: float) -> float:
    """Seconds from pressing the button to the first training step in the metrics."""
    while exporter.now("dreambooth_step", model=NAME) is None:
        assert time.monotonic() < pressed + 1200, "no training step"
        time.sleep(0.1)
    return time.monotonic() - pressed


def ended(place: StackLayout, run: str, *also: str) -> dict[str, Any]:
    """The run, once it has ended or is in one of the states in `also`."""
    deadline = time.monotonic() + 1800
    while time.monotonic() < deadline:
        (found,) = asked(place, "/flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED", *also):
            return dict(found)
        time.sleep(1)
    raise AssertionError("the run did not end")


def show_artifacts(tab: browser.Tab, place: StackLayout, run: str) -> None:
    tab.open(f"{place.prefect}/runs/flow-run/{run}", 1400, 1400)
    tab.click(ARTIFACTS)


def read_artifacts(tab: browser.Tab, place: StackLayout, run: str) -> None:
    """Open all artifacts of the run's page."""
    show_artifacts(tab, place, run)
    for key in ARTIFACT_WORDS:
        tab.until(f"{TEXT}.includes({json.dumps(key)})", 120)
    tab.photograph("ui-artifacts")
    found = asked(place, "/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    for key, words in ARTIFACT_WORDS.items():
        (artifact,) = [each for each in found if each["key"] == key]
        tab.open(f"{place.prefect}/artifacts/artifact/{artifact['id']}", 1400, 1000)
        for word in words:
            tab.until(f"{TEXT}.includes({json.dumps(word)})", 120)
        if key == "gallery":
            tab.until(f"{IMAGE}?.naturalWidth > 100", 120)
        tab.photograph(f"ui-{key}")


def start_promotion(place: StackLayout) -> str:
    """Start the promotion and wait until it is suspended; its id."""
    new = {"parameters": {"promotion": {"model": f"{NAME}/1"}}, "state": {"type": "SCHEDULED"}}
    made = asked(place, f"/deployments/{deployment(place, 'manual')}/create_flow_run", **new)
    found = ended(place, made["id"], "PAUSED")
    assert found["state_name"] == "Suspended", found["state"]["message"]
    return str(made["id"])


def read_approval(tab: browser.Tab, place: StackLayout) -> str:
    """Check the numbers of the gate in the form; the link to the report, visible without scrolling."""
    tab.until(f"{APPROVAL}?.innerText.includes('Promote {NAME}/1 to champion?')")
    with opened(place) as one:
        verdict = promotion.verdict_of(one.log, "1")
    assert verdict is not None
    assert verdict.sentence in tab.ask(f"{APPROVAL}.innerText")
    assert verdict.comparisons
    assert [row[:3] for row in tab.ask(ROWS)] == [
        [one.metric.replace("_", " "), f"{one.challenger:.3f}", f"{one.champion:.3f}"]
        for one in verdict.comparisons
    ]
    # the link is visible without scrolling
    assert tab.ask(f"""(() => {{
      const box = {LINK}.getBoundingClientRect();
      return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) === {LINK}
    }})()""")
    return str(tab.ask(f"{LINK}.href"))


def reject(tab: browser.Tab, place: StackLayout, run: str) -> None:
    tab.choose(field("Decision"), "reject")
    tab.write(field("By"), "ann")
    tab.write(field("Reason"), REASON)
    tab.photograph("ui-approval")
    tab.click(ANSWER)
    end = ended(place, run)
    assert end["state_name"] == "Rejected", end["state"]["message"]
    assert end["state"]["message"] == f"ann rejected {NAME}/1: {REASON}"


@contextmanager
def opened(place: StackLayout) -> Iterator[listing.OpenedVersion]:
    """The registered version."""
    work = place.project / ".dreambooth"
    with services.client_environment(place), listing.opened_version(None, work, f"{NAME}/1") as one:
        yield one


def test_a_run_is_started_followed_and_read_in_the_browser(
    tab: browser.Tab, place: StackLayout, exporter: Exporter, capsys: pytest.CaptureFixture[str]
) -> None:
    train = deployment(place, "train")
    tab.open(f"{place.prefect}/deployments/deployment/{train}/run", 1400, 1000)
    tab.until(f"{TEXT}.includes('Work (Optional)')", 120)  # the last one
    check_form(tab)
    tab.photograph("ui-form")
    fill_in(tab)
    tab.photograph("ui-form-filled")

    pressed = time.monotonic()
    tab.click(SUBMIT)
    seconds = first_step(exporter, pressed)
    with capsys.disabled():
        print(f"\nfrom Submit to the first training step: {seconds:.1f} s")
    mine = {"deployment_id": {"any_": [train]}}
    (run,) = [each["id"] for each in asked(place, "/flow_runs/filter", flow_runs=mine)]
    show_artifacts(tab, place, run)
    tab.until(f"{TEXT}.includes('train-progress')", 300)
    assert "Running" in tab.ask(TEXT)
    tab.photograph("ui-running")

    # after a few steps, either decision is possible
    end = ended(place, run)
    assert end["state_name"] in ("Completed", "GateRejected"), end["state"]["message"]
    read_artifacts(tab, place, run)
    assert not [each for each in tab.problems if each.startswith("requested")]
    assert exporter.value("dreambooth_runs_total", state="done") == 1


def test_a_promotion_is_rejected_in_the_browser(tab: browser.Tab, place: StackLayout) -> None:
    run = start_promotion(place)
    tab.open(f"{place.prefect}/runs/flow-run/{run}", 1400, 1000)
    tab.click(RESUME)
    report = read_approval(tab, place)
    reject(tab, place, run)
    with opened(place) as one:
        last, state = one.log.history()[-1], one.log.state
    assert (last.action, last.version, last.by, last.reason) == ("reject", "1", "ann", REASON)
    assert state.champion is None
    tab.open(report, 1400, 1000)
    tab.until("document.querySelector('iframe') !== null", 120)
