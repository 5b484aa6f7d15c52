import re

from dreambooth_core.cli.output import print_table

TITLE = "All photos of the dog"
DIGEST = "0123456789abcdef" * 4


def printed(capsys) -> list[str]:
    print_table(TITLE, ("name", "digest"), [("a photo of [a] dog", DIGEST)])
    return capsys.readouterr().out.splitlines()


def test_rows_are_not_wrapped_without_a_terminal(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = [line.rstrip() for line in printed(capsys)]
    assert f"a photo of [a] dog  {DIGEST}" in lines


def test_a_narrow_terminal_wraps_rows_without_loss(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    lines = printed(capsys)
    assert max(map(len, lines)) == 30
    assert DIGEST in re.sub(r"\s|a photo of|\[a\]|dog", "", "".join(lines[1:]))


def test_a_title_may_be_longer_than_its_table(capsys):
    print_table(TITLE, ("n",), [("1",)])
    assert capsys.readouterr().out.splitlines()[0].rstrip() == TITLE
