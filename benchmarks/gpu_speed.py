"""The parts of benchmarks/gpu.py that measure speed and memory."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import engine
import model
import optim
from benchmarks import ensemble_speed, harness, product, training_speed
from benchmarks.gpu_parts import PartContext
from benchmarks.training_speed import EPOCHS, FOLDS, HELD_OUT, TRAINED
from runtime import cli
from runtime.devices import peak_memory
from training import fold as training_fold

AIM = 2000  # photographs a second, EfficientNet-b3 at 224 px, batch 256, on one H100
MODES = ("eager", "graph", "contiguous", "compiled")
REAL_MODES = ("eager", "compiled")  # those that train.py has
PROFILED_STEPS, LISTED_KERNELS = 3, 15
SMALL_AIM, WAITING_AIM, MINUTES_AIM = 0.8, 3, 20  # of large's speed; percent; of the whole recipe


class ReadyLoader:
    """A sampler's batches without reading: all of the same pixels, in pinned memory for a GPU."""

    def __init__(self, trainer: training_fold.FoldTrainer, batch_sampler: Any) -> None:
        self.batch_sampler, compute = batch_sampler, trainer.context.compute
        count, size = compute.batch_size, trainer.context.data.image_size
        rows = torch.tensor(harness.cycle(trainer.batches.indices, count))
        pairs = torch.stack([rows, rows], 1)
        pixels = torch.randint(256, (count, size, size, 3), dtype=torch.uint8)
        is_gpu = compute.device.type == "cuda"
        self.batch = (pairs.pin_memory(), [pixels.pin_memory()]) if is_gpu else (pairs, [pixels])

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        pairs, (pixels,) = self.batch
        for number in range(len(self)):
            count = len(self.batch_sampler.split(number)[0])
            yield pairs[:count], [pixels[:count]]


def make_trainer(args: argparse.Namespace, **options: Any) -> training_fold.FoldTrainer:
    """A trainer of the network that is measured."""
    named = {"backbone": args.backbone, "image_size": args.image_size}
    return product.make_trainer(args, **named, **{"batch_size": args.batch_size, **options})


def ready_training(trainer: training_fold.FoldTrainer, count: int) -> product.Training:
    """The training of `count` photographs that need not be read."""
    side = product.own_training(trainer, count)
    side.loader = product.TimedLoader(ReadyLoader(trainer, side.batches))
    return side


def whole_batches(args: argparse.Namespace, batch_size: int) -> int:
    """Batches of a turn that reads nothing: its speed does not depend on their number."""
    return max(1, args.images // batch_size // 4)


def new_step(
    trainer: training_fold.FoldTrainer,
    memory_format: torch.memory_format = torch.channels_last,
    capturable: bool = False,
) -> Callable[[], object]:
    """A bare step of a new network; capturable: in a CUDA graph."""
    context, size = trainer.context, trainer.context.data.image_size
    network = product.make_network(context.model.backbone or "", size, context.compute).train()
    network.to(memory_format=memory_format)
    optimizer = optim.make_optimizer("adam", model.parameter_groups(network, 1.0), 0.001, 0.0)
    for group in optimizer.param_groups:
        group["capturable"] = capturable
    return product.bare_step(network, optimizer, size, context.compute, memory_format)


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """A step as one CUDA graph, after three steps beside it."""
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    # other threads, such as a loader's that pins memory, may go on meanwhile
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()

    def replay() -> object:
        graph.replay()
        return step  # keeps the batch and the optimizer's state, in whose memory the graph works

    return replay


def measure(context: PartContext, name: str, side: harness.Side) -> float:
    """Photographs a second of a side, after a first turn that does not count; its peak memory."""
    gc.collect()
    is_gpu = torch.cuda.is_initialized()
    if is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    side()
    first = time.perf_counter() - start
    if isinstance(side, product.Training):
        side.reset()
    speed = 1 / harness.median_seconds({name: side}, context.args.rounds)[name]
    peak = (torch.cuda.max_memory_allocated() if is_gpu else peak_memory()) / 2**30
    reserved = torch.cuda.max_memory_reserved() / 2**30 if is_gpu else peak
    memory = f"peak {peak:.2f} GiB, {reserved:.2f} reserved"
    context.add(
        name, speed, f"{name:<31} {speed:>8.1f} images/s  first turn {first:.1f} s  {memory}"
    )
    context.add(f"{name}, first turn s", first)
    context.add(f"{name}, GiB reserved", reserved)
    return speed


def training(context: PartContext, trainer: training_fold.FoldTrainer) -> float:
    """Photographs a second of the fastest real loop, and what it is to be compared with."""
    args, compute, size = context.args, trainer.context.compute, context.args.image_size
    count = whole_batches(args, compute.batch_size)
    limits: dict[str, float] = {}
    reals: dict[str, float] = {}

    def bare(name: str, step: Callable[[], object]) -> None:
        side = product.repeat_step(step, count, compute)
        limits[name] = measure(context, f"bare step, {name}", side)

    for mode in args.modes:
        if mode == "graph":
            bare(mode, captured(new_step(trainer, capturable=True)))
        elif mode == "contiguous":
            bare(mode, new_step(trainer, torch.contiguous_format))
        else:
            if mode == "compiled":
                trainer.compiled = model.compile_model(trainer.network)
            model.train_mode(trainer.network)
            step = product.bare_step(trainer.compiled, trainer.optimizer, size, compute)
            bare(mode, step)
            real = product.own_training(trainer, args.images)
            reals[mode] = measure(context, f"real loop, {mode}", real)
            ready = ready_training(trainer, count * compute.batch_size)
            without = measure(context, f"loop without loading, {mode}", ready)
            add_waiting(context, mode, real, reals[mode] / without)
            if mode == "compiled":
                # which the epoch's smaller last batch may have compiled anew
                bare("compiled, after an epoch", step)
            del real, ready, step
    limit, best = max(limits, key=limits.__getitem__), max(reals, key=reals.__getitem__)
    ratio = reals[best] / limits[limit]
    context.add("real / limit", ratio, f"real loop ({best}) / limit ({limit}): {ratio:.3f}")
    return reals[best]


def add_waiting(
    context: PartContext, name: str, real: product.Training, share_of_ready: float
) -> None:
    """How much of a real loop's time is waiting; share_of_ready: its speed, of that without
    loading. The host may also wait for a batch while the GPU still computes.
    """
    waiting, host = 100 * (1 - share_of_ready), 100 * real.waiting_seconds / real.seconds
    first = 100 * real.loader.first_seconds / real.seconds
    text = f"waiting, {name}: {waiting:.1f} % (aim: under {WAITING_AIM})"
    context.add(
        f"waiting, {name}",
        waiting,
        f"{text}; the host waits {host:.1f} %, {first:.1f} % for the epochs' first batches",
    )


def add_minutes(context: PartContext, seconds: float) -> None:
    work = f"{TRAINED + HELD_OUT:,} photographs x {EPOCHS} epochs x {FOLDS} folds"
    text = f"{work}: {seconds / 60:.1f} minutes (aim: under {MINUTES_AIM})"
    context.add("whole recipe, minutes", seconds / 60, text)


def large(context: PartContext) -> None:
    """Training at --batch-size, and validation: the whole recipe's minutes by their speeds."""
    args = context.args
    trainer = make_trainer(args)
    compute, heads = trainer.context.compute, trainer.context.heads
    speed = training(context, trainer)
    context.add("aim", AIM, f"{speed:.0f} images/s (aim: {AIM} for b3 at 224 px on an H100)")
    count = max(1, args.images // 4)
    rows = harness.cycle(trainer.valid_rows.tolist(), count)
    with engine.make_eval_loader(trainer.valid_set, rows, compute) as loader:

        def validation() -> int:
            engine.validate(trainer.network, heads, loader, count, compute)
            return count

        valid = measure(context, "validation", validation)
    add_minutes(context, FOLDS * EPOCHS * (TRAINED / speed + HELD_OUT / valid))


def small(context: PartContext) -> None:
    """Training at --small-batch-size."""
    args = context.args
    speed = training(context, make_trainer(args, batch_size=args.small_batch_size))
    figures = context.results.get("large", {})
    reals = [figures[name] for mode in REAL_MODES if (name := f"real loop, {mode}") in figures]
    ratio = speed / max(reals, default=AIM)
    text = f"batch {args.small_batch_size} / batch {args.batch_size}: {ratio:.3f}"
    context.add("small / large", ratio, f"{text} (aim: {SMALL_AIM})")


class EpochTimes(cli.RemainingTime):
    """Notes when epochs end."""

    def __init__(self, epochs: int) -> None:
        super().__init__(epochs)
        self.times = [time.perf_counter()]

    def epoch_over(self) -> str:
        self.times.append(time.perf_counter())
        return super().epoch_over()


def recipe(context: PartContext) -> None:
    """Two epochs of a fold by train_fold, in the mode that `large` found to be the faster."""
    args, figures = context.args, context.results.get("large", {})
    modes = [mode for mode in args.modes if mode in REAL_MODES]
    best = max(modes, key=lambda mode: figures.get(f"real loop, {mode}", 0.0))
    with tempfile.TemporaryDirectory() as name:
        run = make_trainer(args, epochs=2, compile=best == "compiled", save_path=name).context
        copies = max(1, (args.images + args.images // 4) // len(run.table))
        tables = [run.table.assign(file=f"{k}/" + run.table["file"]) for k in range(copies)]
        run = dataclasses.replace(
            run, table=pd.concat(tables, ignore_index=True), run_dir=Path(name)
        )
        times = EpochTimes(2)
        training_fold.train_fold(run, 0, times, cli.StopSignal())
        whole = time.perf_counter() - times.times[0]
        history = pd.read_csv(run.fold_dir(0) / "history.csv")
        rate = float(history["images_per_second"].iloc[-1])
    first, second = (b - a for a, b in zip(times.times, times.times[1:], strict=False))
    trained = int((run.table["fold"] != 0).sum()) / rate
    text = f"{len(run.table)} photographs, {best}: first epoch {first:.1f} s, second {second:.1f} s"
    context.add("first epoch, s", first)
    context.add("second epoch, s", second, f"{text} (training {trained:.1f}), all {whole:.1f} s")
    context.add("second epoch, training s", trained)
    epoch = second * (TRAINED + HELD_OUT) / len(run.table)
    add_minutes(context, FOLDS * (whole - 2 * second + EPOCHS * epoch))


def loading_speed(context: PartContext) -> None:
    """Photographs read a second and waiting, with and without the cache in memory."""
    args, without = context.args, 0.0
    for cache in ("none", "ram"):
        trainer = make_trainer(args, cache=cache)
        real = product.own_training(trainer, args.images)

        def alone(real: product.Training = real) -> int:
            for _ in real.loader:
                pass
            return len(real.batches.indices)

        measure(context, f"loading alone, cache {cache}", alone)
        speed = measure(context, f"real loop, cache {cache}", real)
        if not without:
            ready = ready_training(trainer, whole_batches(args, args.batch_size) * args.batch_size)
            without = measure(context, "loop without loading", ready)
        add_waiting(context, f"cache {cache}", real, speed / without)


def ensemble(context: PartContext) -> None:
    """See ensemble_speed.py."""
    args = context.with_args(
        batch_size=context.args.small_batch_size,
        images=max(2, context.args.images // 8),
        views=2,
        plain_passes=1,
    )
    seconds = ensemble_speed.measure(args, ensemble_speed.own_photos(args))
    for name, each in seconds.items():
        context.add(f"passes/s, {name}", 1 / each)


def profile(context: PartContext) -> None:
    """Where an eager bare step's time goes, kernel by kernel."""
    trainer = make_trainer(context.args)
    step, device = new_step(trainer), trainer.context.compute.device
    step()
    kind = torch.profiler.ProfilerActivity
    is_gpu = device.type == "cuda"
    with torch.profiler.profile(activities=[kind.CPU, *([kind.CUDA] if is_gpu else [])]) as result:
        for _ in range(PROFILED_STEPS):
            step()
        product.synchronize(device)
    attribute = "self_device_time_total" if is_gpu else "self_cpu_time_total"
    # beside a GPU an operation's row repeats the time of its kernels, which have rows of their own
    events = [e for e in result.key_averages() if not is_gpu or e.device_type.name == "CUDA"]
    ms = {event.key: getattr(event, attribute) / 1000 / PROFILED_STEPS for event in events}
    total = sum(ms.values())
    context.add("all", total, f"{total:.1f} ms a step")
    for name in sorted(ms, key=ms.__getitem__, reverse=True)[:LISTED_KERNELS]:
        context.add(name, ms[name], f"{ms[name]:>8.2f} ms {ms[name] / total:>6.1%}  {name[:90]}")


def plain(context: PartContext) -> None:
    """A tutorial's loop at both batch sizes."""
    for batch_size in (context.args.batch_size, context.args.small_batch_size):
        args = context.with_args(batch_size=batch_size)
        batches, device = args.images // batch_size // 10, torch.device(args.device)
        child = training_speed.start_plain(args, args.backbone, args.image_size, batches, device)
        child()
        speed = 1 / harness.median_seconds({"plain": child}, args.rounds)["plain"]
        child.close()
        line = f"plain loop, batch {batch_size}: {speed:.1f} images/s"
        context.add(f"batch {batch_size}", speed, line)
