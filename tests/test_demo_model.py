"""Two test workers, or a test and the demo, may want SmolLM2 at the same moment."""

import time
from concurrent.futures import ThreadPoolExecutor


def test_two_at_once_make_the_model_once(smollm2_maker, tmp_path, monkeypatch):
    calls = []

    def slowly(directory):
        calls.append(directory)
        time.sleep(0.2)
        directory.mkdir()
        (directory / "config.json").touch()

    monkeypatch.setattr(smollm2_maker, "_make", slowly)
    wanted = tmp_path / "cache" / "smollm2"
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(smollm2_maker.make, [wanted] * 3)) == [wanted] * 3
    assert calls == [wanted]
