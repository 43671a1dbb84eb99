"""What ``pc3d classify`` and ``pc3d parts`` have in common: verbs, shorthands, and the data of a finished run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pc3d._configured import instantiate
from pc3d._files import check_writable, read_config
from pc3d.cli import _output, _training
from pc3d.cli._inputs import UpAxis
from pc3d.cli._judging import check_rows_folder
from pc3d.cli._parser import OK, USAGE, nearest, run_verb
from pc3d.cli._several_runs import split_arguments, train_seeds

if TYPE_CHECKING:
    from pc3d.data import Compose, PointDataset

SHORTHANDS = {
    **{f"--{name}": (f"--model.{name}",) for name in ("encoder",)},
    **{f"--{name}": (f"--data.{name}",) for name in ("protocol", "validation_fraction")},
    **{
        f"--{name}": (f"--data.train.init_args.{name}", f"--data.test.init_args.{name}") for name in ("root", "variant")
    },
}
SHORTHANDS_HELP = (
    "Shorthands: --root and --variant for those of --data.train.init_args and --data.test.init_args, --protocol and "
    "--validation_fraction for those of --data, --encoder for that of --model"
)


def dispatch(
    verb: str, summary: str, verbs: Mapping[str, tuple[str, Callable[[Sequence[str]], int | None]]], argv: Sequence[str]
) -> int | None:
    """Run a verb of a verb, or print what there is."""
    width = max(map(len, verbs))
    text = "\n".join(
        [
            f"usage: pc3d {verb} VERB [options]",
            "",
            summary,
            "",
            "verbs:",
            *(f"  {name:<{width}}  {about}" for name, (about, _) in verbs.items()),
            "",
            f"pc3d {verb} VERB --help lists the options of a verb.",
        ]
    )
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(text)
        return OK if argv else USAGE
    name, *rest = argv
    if name not in verbs:
        print(f"error: unknown verb {name!r} of pc3d {verb}{nearest(name, verbs)}\n\n{text}", file=sys.stderr)
        return USAGE
    return verbs[name][1](rest)


def judge(verb: str, evaluate: Callable[..., None], argv: Sequence[str]) -> int | None:
    """Run a verb that judges a run."""
    return run_verb(verb, evaluate, argv, words=["run"])


def in_full(argv: Sequence[str], shorthands: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The arguments with shorthands written out; one that stands for several options gives each its value."""
    found: list[str] = []
    rest = iter(argv)
    for argument in rest:
        name, equals, value = argument.partition("=")
        targets = shorthands.get(name)
        if targets is None:
            found.append(argument)
            continue
        if not equals:
            value = next(rest, "")
        found += [f"{target}={value}" for target in targets]
    return found


def check_model(objects: Any) -> None:
    """Says what the backbone starts from."""
    from pc3d.methods import is_first_process

    if objects.model.initial is not None and is_first_process():
        _output.say(objects.model.initial)


@dataclass(frozen=True)
class Verb:
    """A verb that trains and judges.

    Attributes:
        build_parser: makes its parser.
        folder: of the configurations that ship for it.
        judge: judges the model of a run folder.
        result: class of the result of that, by its name in :mod:`pc3d.evaluation`.
    """

    build_parser: Callable[[], Any]
    folder: str
    judge: Callable[..., None]
    result: str

    def resolve(self, argv: Sequence[str]) -> str:
        """The configuration that arguments make, as the run folder keeps it."""
        parser = self.build_parser()
        options = parser.parse_args(_training.with_config(in_full(argv, parser.shorthands), self.folder))
        return _training.dump(parser, options)


def train(verb: Verb, argv: Sequence[str]) -> None:
    """Train as the options say, and judge the model where there is a test split; with several seeds, once for each."""
    from pc3d import evaluation

    options, rest = split_arguments(argv)
    if options.seeds is None:
        _train_once(verb, argv)
    else:
        run = partial(_train_once, verb, of_several=True)
        train_seeds(options, rest, run, verb.resolve, getattr(evaluation, verb.result))


def _train_once(verb: Verb, argv: Sequence[str], *, of_several: bool = False) -> None:
    parser = verb.build_parser()
    chosen: Any = None

    def check(objects: Any) -> None:
        nonlocal chosen
        chosen = objects
        if objects.seeds is not None:
            raise ValueError("seeds: several are an option of the command line, --seeds 0 1 2, not of a configuration")
        if objects.data.test is None and (of_several or objects.results is not None):
            raise ValueError(
                f"{'seeds' if of_several else 'results'}: they are of the test split; data.test names none"
            )
        check_rows_folder(objects.results, objects.method)
        check_model(objects)

    arguments = _training.with_config(in_full(argv, parser.shorthands), verb.folder)
    trainer, run = _training.train(parser, arguments, check)
    if not (trainer.is_global_zero and trainer.state.finished):
        return
    written = f"model written to {run.path} (encoder/ and head/)"
    if trainer.datamodule.test is None:
        _output.result({"run": str(run.path)}, written)
        return
    _output.say(written)
    device = str(trainer.strategy.root_device)
    try:
        verb.judge(str(run.path), device=device, overwrite=True, results=chosen.results, method=chosen.method)
    except KeyboardInterrupt:  # the run itself has ended: the same command would be refused
        raise KeyboardInterrupt(_training.going_on(parser, chosen)) from None


@dataclass(frozen=True)
class StoredData:
    """The test split of a run, and how its objects are prepared.

    Attributes:
        dataset: the test split.
        name: see :func:`pc3d.data.dataset.data_name`.
        split: name of the split.
        prepare: deterministic preparation.
        augment: that of training, whose farthest points begin at the first point; None where training has none.
        seed: of the run's data.
        settings: what of the configuration decides the result, without seeds and paths.
    """

    dataset: PointDataset
    name: str
    split: str
    prepare: Compose
    augment: Compose | None
    seed: int
    settings: dict[str, Any]


def stored_data(run: Path, verb: str, **changes: str | None) -> StoredData:
    """The test split that the configuration of a run names, with other arguments where ``changes`` has some.

    Raises:
        FileNotFoundError: the run has no configuration.
        ValueError: it names no test split, or the split has objects without a class.
    """
    import jsonargparse

    from pc3d.data import Compose, PointDataset, Transform
    from pc3d.data.dataset import check_labelled, data_name

    path = run / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the run folder of pc3d {verb} train")
    config = read_config(path)
    data = config.get("data", {})
    test = data.get("test")
    if not test:
        raise ValueError(f"{path} has no data.test: train with one to judge on")
    arguments = {**test.get("init_args", {}), **{name: value for name, value in changes.items() if value is not None}}
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(PointDataset, "test", required=True)
    for name in ("eval_transforms", "train_transforms"):
        parser.add_argument(f"--{name}", type=list[Transform] | None)
    lists = {name: data.get(name) for name in ("eval_transforms", "train_transforms")}
    try:
        # A copy: the parser changes what it is given.
        parsed = parser.parse_object(deepcopy({"test": {**test, "init_args": arguments}, **lists}))
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"data.test of {path} does not go with {_given(changes)}: {error}") from None
    objects = instantiate(parser, parsed)
    check_labelled("test", objects.test)
    training = objects.train_transforms
    return StoredData(
        dataset=objects.test,
        name=data_name(objects.test),
        split=str(arguments.get("split", "test")),
        prepare=Compose(objects.eval_transforms or []),
        augment=Compose([_from_first(step) for step in training]) if training else None,
        seed=int(config.get("seed", 0)),
        settings=_settings(config),
    )


def stored_up(run: Path) -> UpAxis:
    """The axis that points up in the objects that a run was trained on, by what their data set says.

    Raises:
        FileNotFoundError: the run has no configuration.
        ValueError: its data set is of a class that cannot be imported here.
    """
    from pc3d.data import MissingDataError, ObjectSet

    path = run / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the run folder of a training that has finished")
    training = read_config(path)["data"]["train"]
    module, _, name = training["class_path"].rpartition(".")
    try:
        found: type[PointDataset] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"up: {path} names the data set {training['class_path']}, which says which axis points up in the run, and "
            f"it cannot be imported here ({error}): put the folder of {module.split('.')[0]} on PYTHONPATH; or leave "
            "the option out, and files are taken as stored"
        ) from error
    arguments = training.get("init_args", {})
    if not issubclass(found, ObjectSet) or arguments.get("root") is None:
        return found.up
    try:
        description = found.read_description(Path(arguments["root"]), arguments.get("split", "train"))
    except MissingDataError:
        _output.say(
            f"note: {arguments['root']}, on which {run} was trained, is not there to say which axis points up in it: "
            f"{found.up} is taken"
        )
        return found.up
    return cast("UpAxis", description.get("up", found.up))


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    model = {name: value for name, value in config.get("model", {}).items() if name != "encoder"}
    names = ("train_transforms", "eval_transforms", "validation_fraction", "validation_seed", "batch_size", "drop_last")
    trainer = ("max_epochs", "max_steps", "gradient_clip_val", "precision", "accumulate_grad_batches")
    return {
        "model": model,
        "data": {name: config.get("data", {}).get(name) for name in names},
        "trainer": {name: config.get("trainer", {}).get(name) for name in trainer},
    }


def result_fields(run: str, model: Any, data: StoredData, training: dict[str, Any]) -> dict[str, Any]:
    """The fields that results of all tasks fill alike.

    Args:
        run: the run folder.
        model: with ``encoder``.
        data: what it is judged on.
        training: of the head's configuration.
    """
    return {
        "encoder": type(model.encoder).__name__,
        "start": training["start"],
        "run": run,
        "data": data.name,
        "split": data.split,
        "train_hash": training["train_hash"],
        "num_train": training["num_train"],
        "num_validation": training["num_validation"],
        "num_test": len(data.dataset),
        "preparation": described(data.prepare),
        "selection": {name: training[name] for name in ("epoch", "by", "score", "validation", "legacy")},
        "seed": training["seed"],
        "settings": data.settings,
        "cost": {
            "cpu_seconds": training["cpu_seconds"],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
    }


def _given(changes: Mapping[str, str | None]) -> str:
    return ", ".join(f"--{name} {value}" for name, value in changes.items() if value is not None) or "this version"


def _from_first(step: Any) -> Any:
    """Farthest points of test objects begin at the first point, as the released code has it."""
    from pc3d.data import FarthestPointSample

    if isinstance(step, FarthestPointSample):
        return FarthestPointSample(step.num_points, "first", step.capped)
    return step


def described(prepare: Compose) -> str:
    """The steps of a preparation that touch coordinates."""
    from pc3d.data import KeepFields

    steps = [repr(step) for step in prepare.transforms if not isinstance(step, KeepFields)]
    return ", ".join(steps) or "as stored"


def free_result_path(folder: Path, name: str, overwrite: bool) -> Path:
    """Where a result goes.

    Raises:
        FileExistsError: there is one, and it may not be replaced.
        NotADirectoryError, PermissionError: see :func:`pc3d._files.check_writable`.
    """
    check_writable(folder, "output")
    path = folder / f"{name}.json"
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: add --overwrite to replace it, or give another --output")
    return path


def write_result(result: Any, path: Path, results: str | None, method: str | None) -> None:
    """A result to its file, to standard output, and as rows to a folder if one is given."""
    import json

    from pc3d._files import replace_atomically
    from pc3d.evaluation import write_rows

    if results is not None:
        write_rows(result.to_rows(method), results)
    found = result.to_dict()
    with replace_atomically(path) as file:
        file.write((json.dumps(found, indent=2) + "\n").encode())
    _output.result(found, f"{result}\n\nwritten: {path}")
