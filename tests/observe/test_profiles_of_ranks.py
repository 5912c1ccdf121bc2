"""A profile says which rank it is of, and those of all ranks are laid side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from statemachine_trainer import Trainer
from statemachine_trainer.observe.profile import Profile
from statemachine_trainer.observe.profiles import BadProfile, profiles_side_by_side

FORWARD = "fit.epoch.batch.optimizer.forward"


def profile_of_fit() -> Profile:
    model = nn.Linear(1, 1)
    trainer = Trainer(max_epochs=1, device="cpu", progress=False)
    with trainer.profile() as profile:
        trainer.fit(
            model,
            [(torch.ones(1, 1), torch.ones(1, 1))] * 3,
            loss=nn.MSELoss(),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        )
    return profile


def test_the_profiles_of_two_ranks_are_laid_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher tells it; here one after the other
    paths = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        profile = profile_of_fit()
        assert profile.rank == int(rank)
        assert f"rank {rank}" in str(profile)
        assert f"<th>rank {rank}</th>" in profile._repr_html_()
        profile.save(tmp_path / f"profile-{rank}.json")
        paths.append(tmp_path / f"profile-{rank}.json")
    head, *rows = profiles_side_by_side(*paths).splitlines()
    assert head.split() == ["rank", "0", "rank", "1", "most", "/", "least"]
    (forward,) = [row.split() for row in rows if row.startswith(FORWARD)]
    assert forward[2] == forward[4] == "ms"


def test_a_profile_of_one_process_names_no_rank(tmp_path: Path) -> None:
    profile = profile_of_fit()
    assert profile.rank is None
    assert "rank" not in profile.to_dict()
    profile.save(tmp_path / "profile.json")
    with pytest.raises(BadProfile, match="it is not the profile of a rank"):
        profiles_side_by_side(tmp_path / "profile.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"rank": "0", "states": {}}',
        '{"rank": 0, "states": []}',
        '{"rank": 0, "states": {"a": 1}}',
        '{"rank": 0, "states": {"a": {"total": 1.0, "mean": "x"}}}',
    ],
)
def test_other_files_are_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(BadProfile, match=r"other\.json"):
        profiles_side_by_side(path)


def test_no_file_and_one_that_is_gone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadProfile, match="say which files"):
        profiles_side_by_side()
    with pytest.raises(BadProfile, match=r"gone\.json"):
        profiles_side_by_side(tmp_path / "gone.json")


def test_a_state_that_only_one_rank_has_been_in_is_shown_with_a_gap(tmp_path: Path) -> None:
    one, other = tmp_path / "0.json", tmp_path / "1.json"
    one.write_text('{"rank": 0, "states": {"a": {"total": 1.0, "mean": 0.5}}}')
    other.write_text('{"rank": 1, "states": {}}')
    assert profiles_side_by_side(other, one).splitlines()[1].split() == ["a", "500", "ms", "-"]
