import re

from dreambooth_core.cli.printing import print_table

DIGEST = "0123456789abcdef" * 4


def printed(capsys) -> list[str]:
    print_table("Photos", ("name", "digest"), [("a photo of [a] dog", DIGEST)])
    return capsys.readouterr().out.splitlines()


def test_a_row_is_a_line_where_there_is_no_edge(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    row = f"a photo of [a] dog  {DIGEST}"
    assert [line for line in map(str.rstrip, printed(capsys)) if row == line]


def test_a_narrow_terminal_breaks_lines_and_loses_nothing(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    lines = printed(capsys)
    assert max(map(len, lines)) == 30
    assert DIGEST in re.sub(r"\s|a photo of|\[a\]|dog", "", "".join(lines))
