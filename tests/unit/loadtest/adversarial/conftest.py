from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.adversarial.victim import Victim
from tests.support.victims import make_victim


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    folder: Path = tmp_path_factory.mktemp("victim")
    return make_victim(folder)
