"""The progress line appears on terminals only."""

import io

import pytest
from vcbench.baselines.training.metrics_log import MetricsLog
from vcbench.baselines.training.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_one_rewritten_line():
    stream = Terminal()
    progress = Progress(100, stream=stream)
    assert progress.due(1)
    progress.show(1, 0, 0.5, 1234.5, {"host": 310.2})
    assert not progress.due(2)
    progress._started = (progress._started[0] - 10, 1)
    progress.show(51, 1, 0.25, 2000.0, {"host": 310.2, "device": 12.0})
    progress.close()
    first, second = stream.getvalue().split("\r\x1b[K")[1:]
    assert first == "epoch 1 step 1/100 loss 0.5 1,234 cells/s eta ? host 310 MiB"
    assert second == "epoch 2 step 51/100 loss 0.25 2,000 cells/s eta 0:10 host 310 MiB device 12 MiB\n"


@pytest.mark.parametrize(("stream", "enabled"), [(io.StringIO(), True), (Terminal(), False)])
def test_nothing_is_printed_elsewhere(stream, enabled):
    progress = Progress(10, enabled=enabled, stream=stream)
    assert not progress.due(5)
    progress.close()
    assert stream.getvalue() == ""


def test_durations():
    assert [duration(s) for s in (0, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]


def test_the_log_drops_what_a_resume_repeats(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.keep_until(0)
    for step in (2, 4, 6):
        log.append({"step": step, "loss": float("nan") if step == 4 else 1.0})
    with log.path.open("a") as handle:
        handle.write('{"step": 8, "lo')
    log.keep_until(4)
    assert log.path.read_text() == '{"step": 2, "loss": 1.0}\n{"step": 4, "loss": null}\n'
    log.keep_until(0)
    assert log.path.read_text() == ""
    MetricsLog(tmp_path / "none.jsonl", enabled=False).append({"step": 1})
    assert not (tmp_path / "none.jsonl").exists()
