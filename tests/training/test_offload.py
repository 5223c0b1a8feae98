"""What waits in system memory, calls apart and 8-bit moments: the same training, with less on the device."""

import pytest
import torch

from rmd_core.errors import RMDError
from training.config import OptimiserSection
from training.networks import load_optimiser_tensors, make_optimiser, optimiser_tensors, state_sizes
from training.offload import NetworkOffloader, OffloadedOptimiser, OffloadedTensors, Recomputing
from training_world import adapted, distill, equal, make_objective, make_setup, refused, tensors, tiny_wan

ADAPTERS = ("model.mode=adapters", "model.rank=32")


def same_run(world, changes, *settings):
    """Whether two runs, the second with ``changes``, write the same bytes."""
    folders = []
    for name, more in (("plain", ()), ("changed", changes)):
        assert distill(world, *settings, *more, f"output.folder={world}/{name}", "train.updates=3") == 0
        folders.append(world / name)
    paths = [path.relative_to(folders[0]) for path in folders[0].rglob("*.safetensors")]
    assert len(paths) >= 5
    return all((folders[0] / path).read_bytes() == (folders[1] / path).read_bytes() for path in paths)


@pytest.mark.parametrize(
    "settings",
    [(), ("train.share_forward=false",), ("train.accumulation=2", "train.fake_steps=2"), ADAPTERS],
)
def test_what_waits_in_system_memory_trains_the_same_bit_for_bit(world, settings):
    assert same_run(world, ("train.offload=waiting",), *settings)


def test_a_run_may_begin_to_wait_when_it_is_resumed(world):
    assert distill(world, "train.updates=3", f"output.folder={world}/straight") == 0
    assert distill(world, "train.updates=2") == 0
    late = ("train.offload=waiting", "backbone.gradient_checkpointing=false", "train.guidance_calls=together")
    assert distill(world, *late, "train.updates=3", flags=["--resume"]) == 0
    a, b = (world / name / "student.safetensors" for name in ("straight", "out"))
    assert equal(tensors(a), tensors(b))


def test_only_the_networks_that_are_needed_are_on_the_device():
    networks = {name: tiny_wan(seed=n) for n, name in enumerate(("student", "fake", "teacher"))}
    homes = {name: next(network.parameters()).data_ptr() for name, network in networks.items()}
    offloader = NetworkOffloader(networks, torch.device("cpu"), frozen=("teacher",))
    seen = {name: offloader.hooked(name, network, lambda: None) for name, network in networks.items()}
    first = {name: next(network.parameters()) for name, network in networks.items()}

    def there():
        return {name for name, parameter in first.items() if parameter.data_ptr() != homes[name]}

    def ask(name):
        with torch.no_grad():
            seen[name]()
        return there()

    assert there() == set() and ask("student") == {"student"}
    seen["student"]()  # its gradient is still to come
    assert ask("fake") == {"student", "fake"} and ask("teacher") == {"student", "teacher"}
    with torch.no_grad():
        first["student"].add_(1.0)
    offloader.clear()
    assert there() == {"student"}
    offloader.stepped("student")
    offloader.clear()
    assert there() == set() and torch.equal(first["student"], next(tiny_wan(seed=0).parameters()) + 1)


def test_optimiser_states_are_on_the_device_for_a_step_alone():
    parameter = torch.nn.Parameter(torch.zeros(10))
    optimiser = torch.optim.AdamW([parameter], fused=True)
    tensors = OffloadedOptimiser(optimiser, torch.device("cpu"))
    homes = []
    for _ in range(3):
        parameter.grad = torch.ones(10)
        with tensors.on_device():
            pointers = {name: tensor.data_ptr() for name, tensor in optimiser.state[parameter].items()}
            optimiser.step()
        homes.append({name: tensor.data_ptr() for name, tensor in optimiser.state[parameter].items()})
        assert not pointers or all(pointers[name] != homes[-1][name] for name in pointers)
    assert homes[0] == homes[1] == homes[2] and optimiser.state[parameter]["step"] == 3


def test_tensors_that_do_not_change_are_not_taken_home():
    tensor = torch.zeros(3)
    home = tensor.data_ptr()
    tensors = OffloadedTensors([tensor], "cpu", changes=False)
    tensors.to_device()
    tensor.add_(1)
    tensors.to_cpu()
    assert tensor.data_ptr() == home and not tensor.any()


def test_block_inputs_in_system_memory_give_the_same_gradients(world):
    found = []
    for setting in (True, "offload"):
        base = adapted()
        base.enable_gradient_checkpointing(setting)
        x = (torch.randn(2, 16, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([900.0, 400.0]))
        text = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(4))
        out = base.with_adapter("student")(*x, text, return_dict=False)[0]
        base.activate("fake")
        out.square().mean().backward()
        found.append([p.grad for p in base.adapters["student"].parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found)) and all(
        p.grad is None for p in base.adapters["fake"].parameters()
    )
    assert same_run(world, ("backbone.gradient_checkpointing=offload",), "backbone.gradient_checkpointing=true")


def test_block_inputs_leave_the_device():
    """All inputs of all blocks, but nothing else: they are tensors that nothing on the device keeps."""
    tokens, text, time = 2 * 64 * 128 * 4, 2 * 5 * 128 * 4, 2 * 6 * 128 * 4
    for setting, expected in ((True, 0), ("offload", 4 * (tokens + text + time))):
        recomputing, moved = Recomputing(setting), []

        def counted(tensor, moved=moved):
            moved.append(tensor.nbytes)
            return Recomputing.to_cpu(tensor)

        recomputing.to_cpu = counted
        network = tiny_wan(layers=4)
        network.enable_gradient_checkpointing(recomputing)
        network(torch.zeros(2, 16, 1, 16, 16), torch.zeros(2), torch.zeros(2, 5, 16), return_dict=False)
        assert sum(moved) == expected


def test_guidance_calls_apart_say_the_same(world):
    setup = make_setup(world, "train.warmup_updates=0")
    objective, batch = make_objective(setup), setup.sampler().batch(1, "fake-0", round_number=0)
    _, ((_, conditioning, estimate),) = objective.fake_phase([batch], share=True)
    state = objective.noised(estimate, batch, "student")
    guided = []
    for calls in ("together", "apart"):
        objective.guidance_calls = calls
        with torch.no_grad():
            guided.append(objective.teacher_x0(state, conditioning))
    assert (guided[0] - guided[1]).norm() < 1e-6 * guided[0].norm()
    other = objective._x0_eps(objective.teacher, state.x, state.sigma, conditioning)[0]
    assert (guided[0] - other).norm() > 1e-3 * guided[0].norm()
    assert distill(world, "train.guidance_calls=apart", "train.updates=1") == 0


def settings_of(kind):
    return OptimiserSection(kind=kind, betas=(0.0, 0.95))


def tiny_module(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.modules.linear.Linear(100, 60)  # 6000 weights, in 8 bits; 60 biases, in 32


def stepped(module, optimiser, numbers):
    for number in numbers:
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        optimiser.step()


def test_8_bit_moments_are_near_and_resume_exactly():
    pytest.importorskip("bitsandbytes")
    plain, small = tiny_module(), tiny_module()
    start = [p.detach().clone() for p in plain.parameters()]
    optimisers = []
    for module, kind in ((plain, "adamw"), (small, "adamw8bit")):
        optimisers.append(make_optimiser(module, lr=1e-3, settings=settings_of(kind)))
        stepped(module, optimisers[-1], range(10))
    way = sum((p - s).norm() for p, s in zip(plain.parameters(), start))
    off = sum((p - q).norm() for p, q in zip(plain.parameters(), small.parameters()))
    assert 0 < off < 0.1 * way
    state = optimiser_tensors(optimisers[1])
    assert state["0.state1"].dtype == torch.uint8 and state["1.state1"].dtype == torch.float32
    assert sorted(state) == [
        "0.absmax1",
        "0.absmax2",
        "0.state1",
        "0.state2",
        "0.step",
        "1.state1",
        "1.state2",
        "1.step",
    ]
    counted = sum(t.nbytes for name, t in state.items() if not name.endswith("step"))
    assert counted == sum(state_sizes([p.numel() for p in small.parameters()], "adamw8bit"))
    again = tiny_module()
    again.load_state_dict(small.state_dict())
    resumed = make_optimiser(again, lr=1e-3, settings=settings_of("adamw8bit"))
    load_optimiser_tensors(resumed, {name: tensor.clone() for name, tensor in state.items()}, "there")
    for module, optimiser in ((small, optimisers[1]), (again, resumed)):
        stepped(module, optimiser, range(10, 14))
    assert equal(small.state_dict(), again.state_dict())
    for wrong in ({"0.exp_avg": torch.zeros(1)}, {name: t for name, t in state.items() if name != "1.step"}):
        with pytest.raises(RMDError, match="there: its optimiser state belongs to another network"):
            load_optimiser_tensors(
                make_optimiser(tiny_module(), lr=1.0, settings=settings_of("adamw8bit")), wrong, "there"
            )


def test_runs_with_8_bit_moments_resume_bit_for_bit(world, capsys):
    pytest.importorskip("bitsandbytes")
    settings, straight = (*ADAPTERS, "optimiser.kind=adamw8bit", "train.offload=waiting"), world / "straight"
    assert distill(world, *settings, f"output.folder={straight}", "train.updates=4") == 0
    assert distill(world, *settings, "train.updates=3") == 0
    assert distill(world, *settings, "train.updates=4", flags=["--resume"]) == 0
    for name in (
        "student.safetensors",
        *(f"checkpoints/step_000004/{n}_optimiser.safetensors" for n in ("student", "fake")),
    ):
        assert (straight / name).read_bytes() == (world / "out" / name).read_bytes(), name
    assert tensors(straight / name)["0.state1"].dtype == torch.uint8
    capsys.readouterr()
    assert distill(world, *ADAPTERS, flags=["--resume"]) == refused(capsys, 2, "optimiser.kind: adamw8bit there")


@pytest.mark.parametrize(
    ("setting", "words"), [("optimiser.kind=adamw8bit", "adamw8bit"), ("train.offload=waiting", "waiting")]
)
def test_spread_networks_refuse_what_they_cannot_do(world, setting, words):
    with pytest.raises(RMDError, match=f"{words} with three networks does not work with networks sharded"):
        make_setup(world, setting, shards=2)


def test_ranks_that_a_layer_cannot_have_are_refused(world, capsys, caplog):
    assert distill(world, "model.mode=adapters", "model.rank=65") == refused(
        capsys, 2, "model.rank is 65", "blocks.0.ffn.net.0.proj", "at most 64"
    )
    make_setup(world, "model.mode=adapters", "model.rank=8", "model.alpha=64")
    assert "multiplies each adapter step by 8" in caplog.text


@pytest.mark.parametrize(
    "setting",
    [
        "backbone.gradient_checkpointing=sometimes",
        "train.offload=all",
        "train.guidance_calls=one",
        "optimiser.kind=sgd",
    ],
)
def test_wrong_choices_are_refused_and_the_right_ones_listed(world, capsys, setting):
    name, _, value = setting.partition("=")
    assert distill(world, setting) == refused(capsys, 2, f"'{name}': input should be ", value)
