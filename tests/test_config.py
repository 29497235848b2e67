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


@pytest.mark.parametrize(
    "values, limit",
    [
        ({"model": {"detections": 100}, "evaluate": {"max_detections": 400}}, 400),
        ({"evaluate": {"max_detections": 300}}, 300),
        ({"model": {"detections": 5}, "evaluate": {"max_detections": 100}}, 5),
        ({"model": {"detections": 7}, "evaluate": {"max_detections": 400}}, 7),
        ({"model": {"name": "maskrcnn_small"}, "evaluate": {"max_detections": 10**6}}, 65_535),
    ],
)
def test_the_limit_of_detections_of_earlier_versions_is_understood(values, limit, tmp_path):
    assert from_dict(values, "old").model.detections == limit
    lines = [
        f"[{section}]\n" + "".join(f"{k} = {v!r}\n" for k, v in entries.items())
        for section, entries in values.items()
    ]
    (tmp_path / "old.toml").write_text("".join(lines))
    assert read_config(str(tmp_path / "old.toml")).model.detections == limit


def test_the_old_name_of_the_limit_is_another_of_the_new_one():
    assert with_settings(Config(), ["evaluate.max_detections=400"]).model.detections == 400
    assert "evaluate" not in to_dict(Config()) and "max_detections" not in to_toml(Config())
    with pytest.raises(InputError, match=r"model\.detections must be at most 65535, is 65536"):
        with_settings(Config(), ["model.detections=65536"])
    with pytest.raises(InputError, match=r"model\.detections must be a whole number, is"):
        from_dict({"evaluate": {"max_detections": "many"}}, "old")
    with pytest.raises(InputError, match=r"no section \[evaluate\]"):
        from_dict({"evaluate": {"max_detections": 4, "other": 1}}, "old")


def test_the_packaged_configurations_have_the_limits_they_had():
    limits = {name: read_config(name).model.detections for name in ("demo", "nuclei", "quick")}
    assert limits == {"demo": 300, "nuclei": 400, "quick": 100}
