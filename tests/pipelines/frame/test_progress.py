"""A log gets a plain line now and then, not a bar."""

from pipelines.frame.progress import LINES, progress


def test_a_log_gets_a_tenth_of_the_task_per_line(capsys):
    with progress("tokenize", 1000, "images") as advance:
        for _ in range(1000):
            advance(note="loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == LINES
    assert lines[0].startswith("tokenize: 100/1000, ") and lines[0].endswith("loss 0.5")
    assert "images/s" in lines[0] and "0 s left" in lines[-1]


def test_steps_larger_than_a_line_are_told_once_each(capsys):
    with progress("sample", 3, "sets") as advance:
        for _ in range(3):
            advance()
    assert len(capsys.readouterr().err.splitlines()) == 3
