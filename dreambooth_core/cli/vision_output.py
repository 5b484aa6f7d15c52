"""Output of `dreambooth vision`: tables or JSON."""

from dreambooth_core.cli.output import print_json, print_table
from dreambooth_core.evaluation.calibration import Agreement, Calibration
from dreambooth_core.storage.records import Estimate


def show_calibration(found: Calibration, limit: float, as_json: bool) -> None:
    """Shares with intervals, the ladder, requests and cost, and whether the gate uses the judge.

    `limit` is the judge's `min_agreement`.
    """
    gates = found.agreement >= limit
    if as_json:
        print_json({**found.model_dump(mode="json"), "required": limit, "gates": gates})
        return
    rows = [
        ["statements", *_share(found.statements)],
        *([f"  {kind}", *_share(one)] for kind, one in found.by_kind.items()),
        ["pairs, both orders", *_share(found.pairs)],
        ["equal answers when repeated", *_share(found.test_retest)],
        ["without a usable answer", *_share(found.failures)],
        ["bias to the first picture", *_estimate(found.position_bias)],
        ["bias to the first option", *_estimate(found.option_bias)],
    ]
    print_table(found.judge, ("measure", "value", "95 % interval", "cases"), rows)
    ladder = [[rung.change, f"{rung.drop:+.3f}", str(rung.images)] for rung in found.ladder]
    print_table("Scores of changed photos", ("change", "drop", "photos"), ladder)
    print(f"Spearman of hue and drop    {_number(found.spearman)}")
    print(f"Background against hue 60   {_number(found.background_ratio)}, at most 0.25 is good")
    cost = "unknown, no prices are set" if found.cost is None else f"{found.cost:.4f}"
    tokens = f"{found.input_tokens} input and {found.output_tokens} output tokens"
    print(f"{found.requests} requests, {tokens}, cost {cost}")
    if gates:
        print(f"The gate may use the checklist: at least {limit:.2f} is required")
    else:
        print(f"Advisory: the gate does not use the checklist, at least {limit:.2f} is required")


def _share(found: Agreement | None) -> list[str]:
    if found is None:
        return ["-", "", "0"]
    span = f"{found.low:.3f} to {found.high:.3f}"
    return [f"{found.value:.3f}", span, str(found.answered)]


def _estimate(found: Estimate | None) -> list[str]:
    if found is None:
        return ["-", "", ""]
    span = "" if found.low is None else f"{found.low:+.3f} to {found.high:+.3f}"
    return [f"{found.value:+.3f}", span, ""]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
