"""Energy: what is counted, what is estimated, and that the one is never taken for the other."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from drivetrain.core.site import EnergySite
from drivetrain.watch.energy import JOULES, CpuTime, Meter, Nvml, Rapl, counters, gpus
from drivetrain.watch.grid import GRAMS_PER_KWH


class Counted:
    """A counter that a test sets."""

    def __init__(self, measured: bool = True) -> None:
        self.measured = measured
        self.says = "a test"
        self.now = 5.0
        self.reads = 0

    def joules(self) -> float:
        self.reads += 1
        return self.now


def zone(root: Path, path: str, name: str, microjoules: int, most: int = 1_000_000) -> Path:
    folder = root / path
    folder.mkdir(parents=True)
    for file, text in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{text}\n")
    return folder


def test_packages_and_memory_are_summed_and_what_they_contain_is_not(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 200)
    within = zone(tmp_path, "intel-rapl:0:0", "core", 300)
    around = zone(tmp_path, "intel-rapl:1", "psys", 400)
    rapl = Rapl(tmp_path)
    for folder in (package, memory, within, around):
        (folder / "energy_uj").write_text("500000\n")
    assert rapl.joules() == pytest.approx(0.4999 + 0.4998)


def test_a_counter_that_goes_round_loses_nothing(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 999_000)
    rapl = Rapl(tmp_path)
    (package / "energy_uj").write_text("4000\n")
    assert rapl.joules() == pytest.approx(0.005)
    assert rapl.joules() == pytest.approx(0.005)


def test_a_counter_that_can_be_read_goes_before_an_estimate(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    (counter,) = counters(10.0, root=tmp_path)
    assert counter.measured


def test_without_counters_energy_is_an_estimate_of_cpu_time(tmp_path: Path) -> None:
    (counter,) = counters(10.0, root=tmp_path / "none")
    assert isinstance(counter, CpuTime)
    before, begin = counter.joules(), time.process_time()
    while time.process_time() < begin + 0.05:
        pass
    spent = time.process_time() - begin
    assert counter.joules() - before == pytest.approx(10 * spent, abs=10 * 0.03)  # ticks of 10 ms


def test_gpus_are_named_as_nvml_knows_them() -> None:
    assert gpus("cpu") == []
    assert gpus("cuda", 2, {}) == ["0", "1"]
    assert gpus("cuda:1", environment={"CUDA_VISIBLE_DEVICES": "4,GPU-ab"}) == ["GPU-ab"]
    assert gpus("cuda", environment={"CUDA_VISIBLE_DEVICES": "3"}) == ["3"]


def test_gpus_count_in_millijoules() -> None:
    asked: list[object] = []
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: asked.append(index) or "one",
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "two",
        nvmlDeviceGetTotalEnergyConsumption={"one": 1500, "two": 500}.__getitem__,
    )
    assert Nvml(["3", "GPU-ab"], library).joules() == 2.0
    assert asked == [3, "GPU-ab"]


def test_each_stage_has_its_own_and_blocks_of_one_add_up() -> None:
    counter = Counted()
    meter = Meter([counter])
    for stage, joules in (("train", 36.0), ("test", 3.6), ("train", 7.2)):
        with meter.stage(stage):
            counter.now += joules
    counter.now += 1000  # between stages
    assert meter.joules == pytest.approx({"train": 43.2, "test": 3.6})
    (whole,) = meter.figures()
    assert (whole.name, whole.repeatable) == ("run/energy_kwh", False)
    assert whole.value == pytest.approx(46.8 / JOULES)
    assert meter.figures("train")[0].value == pytest.approx(43.2 / JOULES)


def test_a_stage_that_fails_has_taken_its_energy_too() -> None:
    counter = Counted()
    meter = Meter([counter])

    def fail() -> None:
        with meter.stage("train"):
            counter.now += 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert meter.joules == {"train": 2.0}


def test_one_estimate_makes_the_sum_an_estimate() -> None:
    meter = Meter([Counted(), Counted(measured=False)])
    with meter.stage("train"):
        pass
    assert [metric.name for metric in meter.figures("train")] == ["train/estimated_energy_kwh"]


def test_counters_are_read_while_a_stage_lasts() -> None:
    counter = Counted()
    with Meter([counter], seconds=0.005).stage("train"):
        while counter.reads < 4:
            time.sleep(0.002)
    assert counter.reads >= 4


def test_carbon_is_energy_times_the_grid_and_is_called_an_estimate() -> None:
    meter = Meter([counter := Counted()], grams_per_kwh=400.0, grid="a test")
    with meter.stage("train"):
        counter.now += JOULES
    _, carbon = meter.figures()
    assert (carbon.name, carbon.value) == ("run/estimated_carbon_kg", pytest.approx(0.4))
    assert meter.note().text == "energy by a test; carbon at 400 g/kWh (a test)"


def test_a_country_stands_for_its_grid_and_a_figure_of_the_site_goes_before_it() -> None:
    german = Meter.of(EnergySite(country="DEU")).note().text
    assert f"carbon at {GRAMS_PER_KWH['DEU']:g} g/kWh (DEU, mean of the grid in 2023" in german
    own = Meter.of(EnergySite(country="DEU", grams_per_kwh=30.0)).note().text
    assert "carbon at 30 g/kWh (the site's)" in own
    assert "carbon" not in Meter.of(EnergySite()).note().text


@pytest.mark.parametrize(
    ("site", "says"),
    [
        (EnergySite(country="DE"), r"unknown country 'DE' in \[energy\] country\. Did you mean"),
        (EnergySite(grams_per_kwh=-1.0), r"\[energy\] grams_per_kwh: found -1.0"),
        (EnergySite(watts_per_cpu=-1.0), r"\[energy\] watts_per_cpu: found -1.0"),
    ],
)
def test_a_wrong_figure_of_a_site_is_named(site: EnergySite, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Meter.of(site)


def test_every_grid_has_a_plausible_figure() -> None:
    assert len(GRAMS_PER_KWH) == 78
    assert all(len(country) == 3 and country.isupper() for country in GRAMS_PER_KWH)
    assert all(10 < grams < 1000 for grams in GRAMS_PER_KWH.values())
