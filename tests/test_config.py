"""Configuration: what is read, what is refused in which words, and that written files read back the same."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimask.config import (
    Config,
    DataConfig,
    differences,
    from_dict,
    options,
    packaged_names,
    read_config,
    to_dict,
    to_toml,
    with_settings,
)
from minimask.errors import InputError
from minimask.weights.networks import resolved


def refusal(*settings):
    with pytest.raises(InputError) as caught:
        with_settings(Config(), settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_settings_take_toml_values_with_optional_quotes_and_brackets():
    config = with_settings(
        Config(),
        [
            "train.steps=7",
            "data.scale=0.5, 2",
            'data.train="a b.json"',
            "data.images=12",
            "train.milestones=[3, 5]",
        ],
    )
    assert config.train.steps == 7
    assert config.data.scale == (0.5, 2.0)
    assert config.data.train == "a b.json"
    assert config.data.images == "12"  # a folder may be called 12
    assert config.train.milestones == (3, 5)


def test_an_integer_is_a_float_where_a_float_is_wanted():
    value = with_settings(Config(), ["train.learning_rate=1"]).train.learning_rate
    assert value == 1.0 and isinstance(value, float)


@pytest.mark.parametrize(
    "setting, words",
    [
        ("train.learning_rat=1", "did you mean train.learning_rate?"),
        ("steps=4", "did you mean train.steps?"),
        ("train.crop=4", "did you mean data.crop?"),
        ("train.foo=4", "there are train.steps, train.batch_size"),
        ("train.steps=1.5", "train.steps must be a whole number, is 1.5"),
        ("train.steps=true", "train.steps must be a whole number, is true"),
        ("train.steps=0", "train.steps must be at least 1, is 0"),
        ("train.learning_rate=0", "train.learning_rate must be more than 0, is 0"),
        ("train.learning_rate=nan", "train.learning_rate must be a finite number, is NaN"),
        ("model.score_threshold=1.5", "model.score_threshold must be at most 1, is 1.5"),
        ("data.flip_vertical=1", "data.flip_vertical must be true or false, is 1"),
        ("train.schedule=cosin", "did you mean cosine?"),
        ("data.scale=1", "data.scale must be a list of 2 numbers, is [1]"),
        ("data.scale=2,1", "data.scale must be [least, greatest], is [2.0, 1.0]"),
        ("train.milestones=5,3", "train.milestones must rise"),
        ("train.steps", "expected KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_named_with_its_mend(setting, words):
    message = refusal(setting)
    assert message.startswith(f"--set {setting}: ") and words in message


def test_a_file_is_named_in_what_it_gets_wrong(tmp_path):
    for text, words in [
        ("[train]\nsteps = 'many'", 'train.steps must be a whole number, is "many"'),
        ("[trian]\nsteps = 3", "there is no section [trian]; did you mean [train]?"),
        ("steps = 3", "there is no option steps; did you mean train.steps?"),
        ("[train\n", "not TOML"),
    ]:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            read_config(str(path))
        assert str(caught.value).startswith(str(path)) and words in str(caught.value)


def test_a_missing_file_says_which_names_are_packaged(tmp_path):
    with pytest.raises(
        InputError, match=r"No such file or directory; give a TOML file or one of the names .*demo"
    ):
        read_config(str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match="Is a directory"):
        read_config(str(tmp_path))


def test_every_packaged_configuration_is_valid_and_survives_being_written(tmp_path):
    assert {"demo", "quick", "nuclei"} <= set(packaged_names())
    for name in packaged_names():
        config = read_config(name)
        (tmp_path / "written.toml").write_text(to_toml(config), encoding="utf-8")
        assert read_config(str(tmp_path / "written.toml")) == config
        assert from_dict(to_dict(config), "a checkpoint") == config


@given(
    text=st.text(st.characters(exclude_categories=["Cs"])), rate=st.floats(min_value=1e-300, max_value=1e300)
)
def test_any_text_and_number_survive_being_written(tmp_path_factory, text, rate):
    config = from_dict({"data": {"train": text}, "train": {"learning_rate": rate}}, "here")
    path = tmp_path_factory.mktemp("toml") / "written.toml"
    path.write_bytes(to_toml(config).encode("utf-8"))
    assert read_config(str(path)) == config


def test_a_file_changes_only_what_it_names(tmp_path):
    path = tmp_path / "part.toml"
    path.write_text("[data]\ncrop = 64\n")
    base = with_settings(Config(), ["train.steps=9"])
    config = read_config(str(path), base)
    assert config == dataclasses.replace(base, data=dataclasses.replace(DataConfig(), crop=64))
    assert differences(base, config) == ["data.crop is 64, was 256"]


def test_every_option_states_its_meaning():
    assert all(entry.metadata["help"] for _, entry in options())


def test_what_is_left_to_the_network_is_filled_in_by_its_recipe():
    small = resolved(Config())
    assert (small.train.learning_rate, small.train.reference_batch) == (0.02, 2)
    assert small.model.norm is None and small.model.trainable_layers is None
    large = resolved(with_settings(Config(), ["model.name=maskrcnn_resnet50_fpn"]))
    assert (large.train.learning_rate, large.train.reference_batch) == (0.02, 16)  # the paper's
    assert (large.model.norm, large.model.trainable_layers) == ("group", 5)
    assert resolved(large) == large
    given = ["model.name=maskrcnn_resnet50_fpn", "model.norm=frozen", "train.learning_rate=0.1"]
    chosen = resolved(with_settings(Config(), given))
    assert (chosen.model.norm, chosen.model.trainable_layers) == ("frozen", 5)
    assert (chosen.train.learning_rate, chosen.train.reference_batch) == (0.1, 16)
    with pytest.raises(InputError, match=r"model\.norm: maskrcnn_small has no such choice; leave it out"):
        resolved(with_settings(Config(), ["model.norm=batch"]))
