"""The report of ``--dry-run``: the plan, the parameters, the cost of an update and the memory."""

from functools import cache

from .costs import plain_cost, update_cost
from .memory import device_memory, gib


def dry_run_report(setup, *, processes=1):
    """The plan, the parameter counts and the expected cost of an update, as text."""
    config, backbone, teacher = setup.config, setup.backbone, setup.teacher
    height, width = setup.plan.final_hw
    frames, tokens = config.plan.frames, setup.cache.tokens
    final = backbone.flops(teacher, height, width, frames, tokens)

    @cache
    def relative(h, w):
        return backbone.flops(teacher, h, w, frames, tokens) / final

    count = backbone.parameters(teacher)
    common = {"cfg": config.loss.cfg, "fake_steps": config.train.fake_steps}
    common["checkpointing"] = config.backbone.gradient_checkpointing
    sharing = {"shared": config.train.share_forward, "accumulation": config.train.accumulation}
    ours = update_cost(setup.plan, relative, **sharing, **common)
    plain = plain_cost(setup.plan, relative, **common)
    batch = config.train.batch * config.train.accumulation * processes
    factors = [config.train.batch, config.train.accumulation, *([processes] if processes > 1 else [])]
    flops = ours.total * final * batch
    return "\n".join(
        [
            setup.plan.table(),
            *(f"note: {note}" for note in (*(note.text() for note in setup.plan.notes), *setup.intervals.notes)),
            "",
            f"backbone    {backbone.name}, {config.backbone.base}",
            f"parameters  {_parameters(setup, count)}",
            f"prompts     {len(setup.prompts):,}, encoder {setup.cache.encoder}",
            f"batch       {' x '.join(map(str, factors))} = {batch} samples an update",
            f"updates     {config.train.updates}, of which {config.train.fake_only_updates} train the fake score alone "
            f"and {config.train.warmup_updates} draw every stage but the last",
            f"cost        {ours.total:.2f} forwards at {height}x{width} a sample and update: trajectory "
            f"{ours.trajectory:.2f}, student {ours.student:.2f}, fake score {ours.fake:.2f}, "
            f"teacher and fake score for the student {ours.judges:.2f}",
            f"            ({plain.total:.2f} with whole trajectories and separate student forwards)",
            f"            {final / 1e9:.3g} GFLOP a forward, {flops / 1e12:.3g} TFLOP an update",
            f"sampling    {setup.plan.cost(relative):.2f} forwards a picture",
            *_memory(setup),
        ]
    )


def _parameters(setup, count):
    if setup.config.model.mode == "three networks":
        return f"{count:,} each for the student, the fake score and the frozen teacher"
    return f"{count:,} in the frozen base, {setup.memory.trained:,} in each of the two adapters"


def _memory(setup):
    available, device = device_memory(setup.config.train.device)
    rows = [*setup.memory.rows(), ("together", setup.memory.total)]
    titles = ["memory", *[""] * (len(rows) - 1)]
    lines = [f"{title:<11} {gib(count):>10}  {what}" for title, (what, count) in zip(titles, rows)]
    lines.append(f"            {gib(available):>10}  there is on {device}")
    if setup.memory.waiting:
        lines.append(f"            {gib(setup.memory.waiting):>10}  waits in main memory")
    return lines
